"""What class centres in bfloat16 cost and what they lose, as JSON: python tests/benchmarks/head_dtype.py

`step` compares the head's step in both types: the processor's seconds of the fastest of several steps, of one process
that takes turns. `initial` is the time to draw the rows of a head. `synthetic` trains the centres of many classes on
noisy copies of a direction for each class, with updates that are often below half the gap between two bfloat16 numbers:
in float32, in bfloat16, and in bfloat16 with every number rounded to the nearest. `glyphs` is the accuracy of pairs of
characters that training never saw, by seed.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

EMB_DIM = 512
PARTS = ("step", "initial", "synthetic", "glyphs")


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


def synthetic(row_dtype, classes, epochs, rate):
    """Trains class centres alone; returns how near they come to the directions, and how often they are the nearest."""
    import numpy as np
    import paddle

    emb_dim, batch, noise = 64, 512, 0.12
    rng = np.random.default_rng(12345)  # with 0 it would draw the fresh rows of the head again
    directions = rng.standard_normal((classes, emb_dim), dtype="float32")
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)

    def samples(of):
        return directions[of] + noise * rng.standard_normal((len(of), emb_dim), dtype="float32")

    head, mover = made_head(row_dtype, classes, emb_dim, rate, scale=32.0, sample_ratio=0.1)
    for _ in range(epochs):
        for of in np.array_split(rng.permutation(classes), max(1, classes // batch)):
            head(paddle.to_tensor(samples(of)), of)
            head.backward(mover)
    weight = head.weight.astype("float32").numpy()
    weight /= np.linalg.norm(weight, axis=1, keepdims=True)
    tested = rng.choice(classes, min(classes, 4000), replace=False)
    found = (samples(tested) @ weight.T).argmax(axis=1)
    return {
        "cosine": round(float((weight * directions).sum(axis=1).mean()), 4),
        "accuracy": round(float((found == tested).mean()), 4),
    }


def glyph_accuracy(data, row_dtype, epochs, seed):
    """Returns the accuracy of pairs of glyphs after training."""
    from glyph_entry import glyph_entry

    ins = glyph_entry(data, epochs, seed)
    ins.set_schedule("cosine")
    ins.set_head_dtype(row_dtype)
    return round(ins.train()["test"]["glyphs"]["accuracy"], 4)


def glyphs(classes, epochs, seeds):
    """Returns the accuracies of both types, by seed."""
    from plsc.data.glyphs import render_glyphs

    with tempfile.TemporaryDirectory() as folder:
        render_glyphs(folder + "/glyphs", classes=classes)
        kinds = ("float32", "bfloat16")
        rows = [
            {kind: glyph_accuracy(folder + "/glyphs", kind, epochs, seed) for kind in kinds} for seed in range(seeds)
        ]
    means = {kind: round(sum(row[kind] for row in rows) / len(rows), 4) for kind in kinds}
    return {"classes": classes, "epochs": epochs, "seeds": rows, "mean": means}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--classes", type=int, default=200_000, help="of the synthetic task and the step")
    parser.add_argument("--rows", type=int, default=2_000_000, help="that are drawn")
    parser.add_argument("--rate", type=float, default=3e-5, help="the learning rate of the synthetic task")
    parser.add_argument("--synthetic-epochs", type=int, default=100)
    parser.add_argument("--glyph-classes", type=int, default=300)
    parser.add_argument("--glyph-epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import paddle

    import plsc  # noqa: F401 - it sets what Paddle's speed depends on

    parts, result = options.only or PARTS, {"paddle": paddle.__version__}
    if "step" in parts:
        cases = [(batch, 1.0) for batch in (64, 256, 1024)] + [(256, 0.1)]
        result["step"] = [step_seconds(options.classes, batch, ratio, options.steps) for batch, ratio in cases]
    if "initial" in parts:
        result["initial"] = initial_seconds(options.rows)
    if "synthetic" in parts:
        given = options.classes, options.synthetic_epochs, options.rate
        result["synthetic"] = {"classes": given[0], "epochs": given[1], "rate": given[2]}
        for kind in ("float32", "bfloat16"):
            result["synthetic"][kind] = synthetic(kind, *given)
        with rounding_to_the_nearest():
            result["synthetic"]["bfloat16, to the nearest"] = synthetic("bfloat16", *given)
    if "glyphs" in parts:
        result["glyphs"] = glyphs(options.glyph_classes, options.glyph_epochs, options.seeds)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
