"""Trains heads that are not sharded on batches whose size differs between ranks, with the chunk that plsc chooses.

`uneven_heads.py OUTPUT_DIR` writes `<OUTPUT_DIR>/<world size>_<rank>.npz` with this rank's numbers of each case.
"""

import sys
from pathlib import Path

import numpy as np

CLASSES, DIM = 1500, 512
CASES = [(kind, counts) for kind in ("arcface", "softmax") for counts in ((300, 120, 200), (120, 0, 300))]


def batch_of(case):
    """Returns embeddings [B, D], labels [B] and weights [C, D] of the global batch of a case."""
    rng = np.random.default_rng(case)
    size = sum(CASES[case][1])
    embedding, weight = rng.normal(size=(size, DIM)), rng.normal(size=(CLASSES, DIM)) * 0.05
    return embedding.astype("float32"), rng.integers(0, CLASSES, size), weight.astype("float32")


def bounds_of(counts, world, rank):
    """Returns where the samples of a rank begin and end; the last rank has those of the ranks that are missing."""
    ends = [0, *np.cumsum(counts)[: world - 1].tolist(), sum(counts)]
    return ends[rank], ends[rank + 1]


def main(output):
    import paddle
    from paddle import distributed

    from plsc import parallel
    from plsc.heads import build_head
    from plsc.optim import take_rows

    parallel.initialise()
    reduce, sizes, results = distributed.all_reduce, [], {}

    def recorded(tensor, *arguments, **options):
        sizes.append(tensor.size if isinstance(tensor.size, int) else int(tensor.size()))
        return reduce(tensor, *arguments, **options)

    distributed.all_reduce = recorded
    for case, (kind, counts) in enumerate(CASES):
        embedding, label, weight = batch_of(case)
        first, last = bounds_of(counts, parallel.world_size(), parallel.rank())
        head = build_head(kind, CLASSES, DIM, scale=16.0)
        head.weight.set_value(weight)
        optimizer = paddle.optimizer.Momentum(1.0, 0.9, parameters=head.parameters(), weight_decay=1e-4)
        updates = take_rows(optimizer, dict(head.named_parameters()))
        own = paddle.to_tensor(embedding[first:last]) if last > first else paddle.zeros([0, DIM])
        out = head(own, label[first:last])
        sizes.clear()
        head.backward(updates["weight"], updates.get("bias"))
        results[f"{case}/reductions"] = np.array(sizes, "int64")
        results[f"{case}/loss"], results[f"{case}/weight"] = out.loss, head.weight.numpy()
    np.savez(Path(output) / f"{parallel.world_size()}_{parallel.rank()}.npz", **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
