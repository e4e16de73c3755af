"""Cases for separate heads on any number of ranks.

As a script, `head_groups.py OUTPUT_DIR` computes them in float64 on this rank.
"""

import sys
from pathlib import Path

import numpy as np
from head_cases import DIM, SCALE, margin_of, own_rows

WEIGHTS = (1.0, 0.5, 3.0)
_KINDS = ("dist_arcface", "arcface", "dist_softmax", "softmax", "dist_magface", "dist_adaface", "curricularface")
# (loss type, classes of each head, rows of the embedding per rank of 3 ranks, heads of the samples, sample ratio)
CASES = [
    *((kind, (7, 2, 4), (5, 4, 2), (0, 1, 2), 1.0) for kind in _KINDS),
    ("dist_cosface", (7, 2, 4), (0, 6, 2), (0, 2), 1.0),  # a rank without samples, and a head without samples
    ("dist_softmax", (1, 5, 3), (1, 1, 0), (1,), 1.0),
    ("dist_arcface", (23, 9), (3, 1, 4), (0, 1), 0.4),
    ("softmax", (23, 9), (3, 1, 4), (0, 1), 0.4),
    ("dist_cosface", (7, 2, 4), (5, 4, 2), (0, 1, 2), 1.0),
    ("dist_softmax", (23, 9), (3, 1, 4), (0, 1), 0.4),
]
_WEIGHTED = (len(CASES) - 2, len(CASES) - 1)  # the cases with class weights and label smoothing


def terms_of(case, classes):
    """Returns what a case changes in the loss of a head with these of the classes of all heads."""
    from plsc.heads.terms import LossTerms

    if case not in _WEIGHTED:
        return LossTerms()
    weights = np.random.default_rng(case).uniform(0, 3, sum(CASES[case][1])).astype("float32")
    return LossTerms(label_smoothing=0.2, class_weights=weights[classes])


def has_statistics(case):
    return CASES[case][0].endswith(("adaface", "curricularface"))


def data(case):
    """Returns the global batch, and the weights and biases of all heads one after another, in float64."""
    _, sizes, counts, used, _ = CASES[case]
    rng = np.random.default_rng(case)
    ends = np.cumsum(sizes)
    head = rng.choice(used, sum(counts))
    label = np.array([rng.integers(ends[k] - sizes[k], ends[k]) for k in head])
    embedding = rng.normal(size=(len(label), DIM)) * rng.uniform(1, 60, (len(label), 1))
    return {
        "embedding": embedding,
        "label": label,
        "weight": rng.normal(size=(ends[-1], DIM)),
        "bias": rng.normal(size=ends[-1]),
    }


def expected_of(case, taken):
    """Returns the weighted sum of what the dense reference gives for each head over its classes of `taken`."""
    from plsc.heads import build_margin, reference

    kind, sizes = CASES[case][:2]
    full, margin = data(case), build_margin(kind, margin_of(kind))
    every = terms_of(case, np.arange(sum(sizes)))
    total = every.weight_of(full["label"])
    found = {"loss": 0.0, **{name: np.zeros_like(full[name]) for name in ("embedding", "weight", "bias")}}
    for number, (end, size) in enumerate(zip(np.cumsum(sizes), sizes)):
        classes = taken[(taken >= end - size) & (taken < end)]
        own = np.flatnonzero((full["label"] >= end - size) & (full["label"] < end))
        found[f"loss {number}"] = found[f"state {number}"] = np.zeros(0)
        if not len(own):
            continue
        embedding, label = full["embedding"][own], np.searchsorted(classes, full["label"][own])
        terms, weight_of_own = terms_of(case, classes), every.weight_of(full["label"][own])
        if margin is None:
            one = reference.softmax_step(embedding, full["weight"][classes], full["bias"][classes], label, terms)
            found["bias"][classes] += one.bias * (WEIGHTS[number] * weight_of_own / total)
        else:
            one = reference.margin_step(
                embedding,
                full["weight"][classes],
                label,
                margin=margin,
                scale=SCALE,
                statistics=margin.initial_state,
                terms=terms,
            )
            found[f"state {number}"] = np.array(one.statistics)
        share = WEIGHTS[number] * weight_of_own / total
        found["loss"] += one.loss * share
        found[f"loss {number}"] = np.array([one.loss * weight_of_own, weight_of_own])
        found["embedding"][own] += one.embedding * share
        found["weight"][classes] += one.weight * share
    return found


def build(case, **options):
    """Returns the heads of a case, with the rows of this rank."""
    from plsc.heads import HeadGroup, build_head

    kind, sizes, _, _, ratio = CASES[case]
    options = {"scale": SCALE, "dtype": "float64", "sample_ratio": ratio, "chunk": 3, **options}
    heads = [
        build_head(
            kind,
            size,
            DIM,
            margin_of(kind),
            seed=case + number,
            loss_weight=weight,
            terms=terms_of(case, np.arange(end - size, end)),
            **options,
        )
        for number, (end, size, weight) in enumerate(zip(np.cumsum(sizes), sizes, WEIGHTS))
    ]
    group, full = HeadGroup(heads, [f"set{number}" for number in range(len(heads))]), data(case)
    for _, first, head in group.parts:
        own = slice(first + head.lower, first + head.upper)
        for name in ("weight", "bias"):
            if getattr(head, name) is not None:
                getattr(head, name).set_value(full[name][own].astype(options["dtype"]))
    return group


def step(group, embedding, label, cuts=()):
    """Computes a step of micro-batches; returns the sum of the outputs and all gradients."""
    import paddle

    parts = list(zip(np.split(embedding, cuts), np.split(label, cuts)))
    gathered = group.gather_labels(*(labels for _, labels in parts))
    outputs = []
    for part, (rows, _) in enumerate(parts):
        rows = paddle.to_tensor(rows) if len(rows) else paddle.zeros([0, DIM], embedding.dtype.name)
        outputs.append(group(rows, gathered, True, part))
        assert outputs[-1].problem is None
    titles = outputs[0].of_heads
    result = {
        "loss": sum(out.loss for out in outputs),
        "correct": np.sum([out.correct for out in outputs], axis=0),
        "embedding": np.concatenate([out.embedding_grad.numpy() for out in outputs]),
        **{f"loss {n}": np.sum([out.of_heads[title] for out in outputs], axis=0) for n, title in enumerate(titles)},
    }
    for number, (_, first, head) in enumerate(group.parts):
        rows = None if head._step is None or head._step.rows is None else head._step.rows.selected
        rows = np.arange(head.upper - head.lower) if rows is None else rows
        result[f"taken {number}"] = first + head.lower + rows
        result[f"squares {number}"] = sum(head.gradient_squares().values())
        head.backward()
        for name, parameter in head.named_parameters():
            gradient = parameter.grad
            result[f"{name} {number}"] = np.zeros(parameter.shape) if gradient is None else gradient.numpy()
            parameter.clear_gradient(False)
        if head.margin_state is not None:
            result[f"state {number}"] = head.margin_state.numpy()
    return result


def compute():
    """Returns what this rank computes of all cases."""
    from plsc import parallel

    rank, world = parallel.rank(), parallel.world_size()
    results = {}
    for case in range(len(CASES)):
        group, full = build(case), data(case)
        rows = own_rows(CASES[case][2], world, rank)
        embedding, label = full["embedding"][rows], full["label"][rows]
        results.update({f"{case}/{name}": value for name, value in step(group, embedding, label).items()})
        if not has_statistics(case):  # running statistics see each micro-batch
            group.next_step, cuts = 0, [len(label) // 2, max(0, len(label) - (rank + case) % 2)]
            results.update({f"{case}/parts/{name}": one for name, one in step(group, embedding, label, cuts).items()})
    return results


def main(output):
    from plsc import parallel

    parallel.initialise()
    results = compute()
    np.savez(Path(output) / f"{parallel.world_size()}_{parallel.rank()}.npz", **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
