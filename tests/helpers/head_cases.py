"""Cases for the head on any number of ranks.

As a script, `head_cases.py OUTPUT_DIR DTYPE MICRO_BATCHES` computes them on this rank, with MICRO_BATCHES=1 also in
micro-batches.
"""

import sys
from pathlib import Path

import numpy as np

KINDS = ("softmax", "arcface", "cosface", "sphereface", "combined", "adaface", "magface", "curricularface")
MARGINS = {"sphereface": 1.7, "combined": (1.2, 0.3, 0.1), "magface": None, "softmax": None}
SCALE = 16.0
DIM = 6
CHUNK = 3

# (loss type, classes, rows of the embedding per rank when there are 3 ranks, sample ratio)
_SIZES = ((7, (4, 4, 4)), (11, (5, 1, 3)), (5, (0, 6, 2)), (2, (3, 0, 1)), (1, (1, 1, 0)))
CASES = [
    *((f"{prefix}{kind}", *size, 1.0) for prefix in ("", "dist_") for kind in KINDS for size in _SIZES),
    *((f"{prefix}{kind}", 23, (3, 1, 4), 0.4) for prefix in ("", "dist_") for kind in KINDS),
]
_PLAIN_CASES = len(CASES)
# The same with what changes the loss: (loss type, classes, rows, sample ratio, filter, smoothing, weights?, margins?)
_TERMS = [
    (f"{prefix}{name}", *others)
    for prefix in ("", "dist_")
    for name, *others in (
        ("cosface", 11, (5, 1, 3), 1.0, 0.3, 0.2, True, True),
        ("arcface", 7, (0, 8, 4), 1.0, 0.2, 0.0, False, True),
        ("softmax", 11, (0, 6, 2), 1.0, 0.0, 0.3, True, False),
        ("adaface", 7, (4, 4, 4), 1.0, 0.3, 0.1, True, True),
        ("magface", 5, (0, 6, 2), 1.0, 0.1, 0.1, True, False),
        ("curricularface", 7, (4, 1, 4), 1.0, 0.3, 0.2, True, True),
        ("curricularface", 23, (3, 1, 4), 0.4, 0.0, 0.3, False, False),
        ("cosface", 23, (3, 1, 4), 0.4, 0.3, 0.2, True, True),
        ("softmax", 23, (3, 1, 4), 0.4, 0.0, 0.2, True, False),
        ("arcface", 1, (1, 1, 0), 1.0, 0.3, 0.2, True, True),
    )
]
# Of these, the last have sub-centres too.
_TERMS += [
    ("cosface", 11, (5, 1, 3), 1.0, 0.3, 0.0, True, True),
    ("arcface", 7, (0, 8, 4), 1.0, 0.2, 0.2, True, True),
    ("dist_cosface", 5, (0, 6, 2), 1.0, 0.0, 0.3, False, False),
    ("dist_curricularface", 7, (4, 1, 4), 1.0, 0.3, 0.1, True, True),
    ("dist_arcface", 23, (3, 1, 4), 0.4, 0.3, 0.2, True, True),
    ("dist_arcface", 1, (1, 1, 0), 1.0, 0.3, 0.2, True, True),
]
CASES += [terms[:4] for terms in _TERMS]
_FIRST_WITH_SUB_CENTERS = len(CASES) - 6
CASES += [
    *((f"dist_{kind}", *_SIZES[n % 2], 1.0) for n, kind in enumerate(KINDS[1:])),
    *((f"{prefix}arcface", *size, 1.0) for prefix in ("", "dist_") for size in _SIZES[2:]),
    *((f"{prefix}{kind}", 23, (3, 1, 4), 0.4) for prefix in ("", "dist_") for kind in ("arcface", "curricularface")),
]


def sub_centers_of(case):
    """Returns how many rows each class has."""
    return 1 if case < _FIRST_WITH_SUB_CENTERS else 2 + case % 2


def terms_of(case, taken=slice(None)):
    """Returns what a case changes in the loss, for the classes `taken` in this order."""
    from plsc.heads.terms import LossTerms

    if not _PLAIN_CASES <= case < _PLAIN_CASES + len(_TERMS):
        return LossTerms()
    _, classes, _, _, threshold, smoothing, has_weights, has_margins = _TERMS[case - _PLAIN_CASES]
    rng = np.random.default_rng(case)
    weights, margins = rng.uniform(0, 3, classes).astype("float32"), rng.uniform(0, 0.7, classes).astype("float32")
    return LossTerms(
        threshold, smoothing, weights[taken] if has_weights else None, margins[taken] if has_margins else None
    )


def margin_of(loss_type):
    return MARGINS.get(loss_type.replace("dist_", ""), 0.4)


def data(case):
    """Returns the global batch and the full head of a case in float64."""
    loss_type, classes, counts, _ = CASES[case]
    rng = np.random.default_rng(case)
    embedding = rng.normal(size=(sum(counts), DIM))
    if loss_type.endswith(("adaface", "magface")):
        embedding *= rng.uniform(1, 60, (sum(counts), 1))  # norms below, within and beyond MagFace's bounds
    if case % 2:
        embedding[0] = 0.0
    return {
        "embedding": embedding,
        "weight": rng.normal(size=(classes, *([sub_centers_of(case)] if sub_centers_of(case) > 1 else []), DIM)),
        "bias": rng.normal(size=classes),
        "label": rng.integers(0, classes, sum(counts)),
    }


def expected_of(case, taken):
    """Returns what the dense reference gives for a case over the classes `taken`."""
    from plsc.heads import build_margin, reference

    full, margin = data(case), build_margin(CASES[case][0], margin_of(CASES[case][0]))
    label, weight, terms = np.searchsorted(taken, full["label"]), full["weight"][taken], terms_of(case, taken)
    if margin is None:
        result = reference.softmax_step(full["embedding"], weight, full["bias"][taken], label, terms)
    else:
        statistics = margin.initial_state
        result = reference.margin_step(
            full["embedding"], weight, label, margin=margin, scale=SCALE, statistics=statistics, terms=terms
        )
    expected = {"loss": result.loss, "embedding": result.embedding, "weight": np.zeros_like(full["weight"])}
    expected["weight"][taken] = result.weight
    if result.bias is not None:
        expected["bias"] = np.zeros_like(full["bias"])
        expected["bias"][taken] = result.bias
    if result.statistics:
        expected["state"] = result.statistics
    return expected


def own_rows(counts, world, rank):
    """Returns the slice of the global batch that `rank` holds; fewer ranks than three get the three parts in order."""
    owner = [min(part, world - 1) for part in range(3)]
    first = sum(count for part, count in enumerate(counts) if owner[part] < rank)
    return slice(first, first + sum(count for part, count in enumerate(counts) if owner[part] == rank))


def accumulate(results, case, head, embedding, label):
    """Computes the same batch again in three micro-batches, the last of which is empty on some ranks or on all."""
    import paddle

    from plsc import optim, parallel

    kept = {name: parameter.grad.numpy() for name, parameter in head.named_parameters()}
    head.next_step = 0
    cuts = [len(label) // 2, len(label) - (parallel.rank() + case) % 2]
    parts = list(zip(np.split(embedding, cuts), np.split(label, cuts)))
    gathered = head.gather_labels(*(labels for _, labels in parts))
    outputs = []
    for part, (rows, _) in enumerate(parts):
        rows = paddle.to_tensor(rows) if len(rows) else paddle.zeros([0, DIM], embedding.dtype.name)
        outputs.append(head(rows, gathered, True, part))
    own = sum(head.gradient_squares().values())
    squares = optim.head_squares({"weight": own}, [("weight",)], head.sharded and parallel.world_size() > 1)[
        ("weight",)
    ]
    head.backward()
    results[f"{case}/parts/loss"] = sum(out.loss for out in outputs)
    results[f"{case}/parts/correct"] = np.sum([out.correct for out in outputs], axis=0)
    results[f"{case}/parts/embedding"] = np.concatenate([out.embedding_grad.numpy() for out in outputs])
    results[f"{case}/parts/square_sum"] = squares
    for name, parameter in head.named_parameters():
        results[f"{case}/parts/{name}"] = parameter.grad.numpy()
        parameter.grad = paddle.to_tensor(kept[name])


def main(output, dtype, micro_batches):
    import paddle

    from plsc import parallel
    from plsc.heads import build_head, walk

    walk._REDUCED_BYTES = 2 * 4 * CHUNK * DIM  # two chunks at a time
    parallel.initialise()
    rank, world = parallel.rank(), parallel.world_size()
    results = {}
    for case, (loss_type, classes, counts, ratio) in enumerate(CASES):
        full = data(case)
        head = build_head(
            loss_type,
            classes,
            DIM,
            margin_of(loss_type),
            scale=SCALE,
            dtype=dtype,
            sample_ratio=ratio,
            seed=case,
            chunk=CHUNK,
            terms=terms_of(case),
            sub_centers=sub_centers_of(case),
        )
        if head.weight is not None:
            head.weight.set_value(full["weight"][head.lower : head.upper].astype(dtype))
        if head.bias is not None:
            head.bias.set_value(full["bias"][head.lower : head.upper].astype(dtype))
        rows = own_rows(counts, world, rank)
        out = head(paddle.to_tensor(full["embedding"][rows].astype(dtype)), full["label"][rows], True)
        assert out.problem is None
        rows_walked = head._step.rows
        taken = None if rows_walked is None else rows_walked.selected
        taken = np.arange(head.upper - head.lower) if taken is None else taken
        head.backward()
        moves = head.margin is not None and head.margin.initial_state  # running statistics see each micro-batch
        if micro_batches == "1" and not moves:
            accumulate(results, case, head, full["embedding"][rows].astype(dtype), full["label"][rows])
        results[f"{case}/taken"] = taken + head.lower
        results[f"{case}/loss"] = out.loss
        results[f"{case}/embedding"] = out.embedding_grad.numpy()
        results[f"{case}/correct"] = np.array(out.correct)
        if head.margin_state is not None:
            results[f"{case}/state"] = head.margin_state.numpy()
        for name in ("weight", "bias"):
            parameter = getattr(head, name)
            if parameter is not None:
                results[f"{case}/{name}"] = parameter.grad.numpy()
    np.savez(Path(output) / f"{world}_{rank}.npz", **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
