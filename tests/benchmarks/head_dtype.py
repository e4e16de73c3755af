"""What class centres in bfloat16 cost and what they lose, as JSON: python tests/benchmarks/head_dtype.py

`step` compares the head's step in both types: the processor's seconds of the fastest of several steps, of one process
that takes turns. `initial` is the time to draw the rows of a head. `synthetic` trains the centres of many classes on
noisy copies of a direction for each class, with updates that are below half the gap between two bfloat16 numbers, as
at the end of a training: in float32, in bfloat16, and in bfloat16 with every number rounded to the nearest. `--results
FILE` keeps what it has measured, so that a benchmark that was killed continues with the next. What bfloat16 does to the
accuracy of a network is measured by `noise.py`.
"""

import argparse
import contextlib
import json
import os
import time
from pathlib import Path

import checkout  # noqa: F401
from kept_results import KeptResults

EMB_DIM = 512
PARTS = ("step", "initial", "synthetic")
ROUNDINGS = ("float32", "bfloat16", "bfloat16, to the nearest")


@contextlib.contextmanager
def rounding_to_the_nearest():
    """Has all rows rounded to the nearest bfloat16 number."""
    import paddle

    from plsc.heads import bfloat16

    def nearest(self, values_CD, first, matrix, out=None):
        rounded = bfloat16.tensor_like(values_CD.numpy(), paddle.bfloat16)
        return rounded if out is None else paddle.assign(rounded, out)

    kept, bfloat16.Rounding.round = bfloat16.Rounding.round, nearest
    try:
        yield
    finally:
        bfloat16.Rounding.round = kept


def made_head(row_dtype, classes, emb_dim, rate, **options):
    """Returns a head, and what moves its rows."""
    import paddle

    from plsc import optim
    from plsc.heads import build_head

    head = build_head("dist_cosface", classes, emb_dim, row_dtype=row_dtype, **options)
    optimizer = paddle.optimizer.Momentum(rate, 0.9, parameters=head.parameters(), weight_decay=5e-4)
    return head, optim.take_rows(optimizer, dict(head.named_parameters()))["weight"]


def step_seconds(classes, batch, ratio, steps):
    """Returns the processor's seconds of the fastest step in float32 and in bfloat16."""
    import numpy as np
    import paddle

    heads = {kind: made_head(kind, classes, EMB_DIM, 0.1, sample_ratio=ratio) for kind in ("float32", "bfloat16")}
    rng, best = np.random.default_rng(0), dict.fromkeys(heads, float("inf"))
    for _ in range(steps):
        embedding = paddle.to_tensor(rng.standard_normal((batch, EMB_DIM), dtype="float32"))
        label = rng.integers(0, classes, batch)
        for kind, (head, mover) in heads.items():
            begin = time.process_time()
            head(embedding, label)
            head.backward(mover)
            best[kind] = min(best[kind], time.process_time() - begin)
    found = {kind: round(seconds, 4) for kind, seconds in best.items()}
    share = round(best["bfloat16"] / best["float32"], 3)
    return {"classes": classes, "batch": batch, "ratio": ratio, **found, "bfloat16 / float32": share}


def initial_seconds(rows):
    """Returns the seconds in which the rows of a head are allocated and drawn."""
    from plsc.heads import build_head

    begin = time.perf_counter()
    head = build_head("dist_cosface", rows, EMB_DIM, is_drawn=False)
    allocated = time.perf_counter()
    head.draw()
    return {
        "rows": rows,
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "allocated": round(allocated - begin, 2),
        "drawn": round(time.perf_counter() - allocated, 2),
    }


def synthetic(kind, classes, epochs, rate):
    """Trains class centres alone; returns how near they come to the directions, and how often they are the nearest.

    Args:
        kind: One of `ROUNDINGS`.
        classes: Number of classes.
        epochs: Number of samples of each class.
        rate: The learning rate.
    """
    import numpy as np
    import paddle

    from plsc.heads.bfloat16 import tensor_like

    emb_dim, batch, noise, start = 32, 512, 0.05, 0.8
    rng = np.random.default_rng(12345)

    def units(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    directions = units(rng.standard_normal((classes, emb_dim), dtype="float32"))
    away = rng.standard_normal((classes, emb_dim), dtype="float32")
    away = units(away - (away * directions).sum(axis=1, keepdims=True) * directions)
    tested = rng.choice(classes, min(classes, 4000), replace=False)

    def samples(of):
        return directions[of] + noise * rng.standard_normal((len(of), emb_dim), dtype="float32")

    test_samples = samples(tested)

    def figures():
        weight = units(head.weight.astype("float32").numpy())
        found = np.concatenate([(part @ weight.T).argmax(axis=1) for part in np.array_split(test_samples, 16)])
        return {
            "cosine": round(float((weight * directions).sum(axis=1).mean()), 4),
            "accuracy": round(float((found == tested).mean()), 4),
        }

    row_dtype = "float32" if kind == "float32" else "bfloat16"
    head, mover = made_head(row_dtype, classes, emb_dim, rate, scale=32.0, sample_ratio=min(1.0, batch / classes))
    rows = start * directions + np.float32((1 - start**2) ** 0.5) * away
    head.weight.set_value(tensor_like(rows, head.weight.dtype))
    before, began = figures(), time.process_time()
    with rounding_to_the_nearest() if kind.endswith("to the nearest") else contextlib.nullcontext():
        for _ in range(epochs):
            for of in np.array_split(rng.permutation(classes), max(1, classes // batch)):
                head(paddle.to_tensor(samples(of)), of)
                head.backward(mover)
    return {"before": before, **figures(), "cpu_seconds": round(time.process_time() - began)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--classes", type=int, default=200_000, help="of the synthetic task and the step")
    parser.add_argument("--rows", type=int, default=2_000_000, help="that are drawn")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="the learning rate of the synthetic task")
    parser.add_argument("--roundings", choices=ROUNDINGS, nargs="+", default=ROUNDINGS)
    parser.add_argument("--synthetic-epochs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--results", type=Path, metavar="FILE", help="JSON lines of the synthetic task, to continue")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import paddle

    import plsc  # noqa: F401 - it sets what Paddle's speed depends on

    parts, result, kept = options.only or PARTS, {"paddle": paddle.__version__}, KeptResults(options.results)
    if "step" in parts:
        cases = [(batch, 1.0) for batch in (64, 256, 1024)] + [(256, 0.1)]
        result["step"] = [step_seconds(options.classes, batch, ratio, options.steps) for batch, ratio in cases]
    if "initial" in parts:
        result["initial"] = initial_seconds(options.rows)
    if "synthetic" in parts:
        given = {"classes": options.classes, "epochs": options.synthetic_epochs, "rate": options.rate}
        result["synthetic"] = [
            kept.get({"part": "synthetic", "kind": kind, **given}, lambda kind=kind: synthetic(kind, **given))
            for kind in options.roundings
        ]
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
