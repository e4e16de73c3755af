"""Draws one picture of what a training on glyphs learnt.

    python demo/plot.py --run OUTPUT_DIR --dataset DATA_DIR --output picture.png

Reads from the run's folder:

- ``metrics.jsonl``: a JSON object per line; ``{"event": "train", "step", "lr", "loss", ...}`` while training.
- ``test.json``, the result of the test: ``{"glyphs": {"accuracy", "std", ...}, "held_out": {"at_far": {"1e-3": {"tar",
  "low", "high", ...}, ...}, ...}}``.
- ``glyphs_pairs.npz``, written by the test: ``similarity``, float [P], the cosine of each pair's embeddings, and
  ``issame``, bool [P], in the order of the pairs in ``DATA_DIR/glyphs.bin``. Without a test only the loss is drawn.

Needs matplotlib: pip install '.[demo]'.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed to write a file

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure, SubFigure  # noqa: E402

from plsc.data.verification import load_verification  # noqa: E402
from plsc.errors import DataError, PlscError  # noqa: E402

BLUE, ORANGE, GREEN, RED, GREY = "#1f5fa8", "#d9822b", "#2a8a4a", "#c0392b", "#777777"
MARKED = 1e-3  # The false accept rate that the picture puts into words.
PAIRS_PER_ROW = 5


def read_metrics(run: str) -> list[dict[str, Any]]:
    """Returns the events of ``run/metrics.jsonl``."""
    path = os.path.join(run, "metrics.jsonl")
    events = []
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                try:
                    events.append(json.loads(line))
                except ValueError:
                    continue  # the last line of a run that is still writing
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); name the output folder of a run"
        ) from error
    return events


def read_pairs(run: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns similarity float [P] and issame bool [P] of ``run/glyphs_pairs.npz``, or None without that file."""
    path = os.path.join(run, "glyphs_pairs.npz")
    if not os.path.exists(path):
        return None
    try:
        with np.load(path) as content:
            return content["similarity"].astype(np.float64), content["issame"].astype(bool)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not a file of pairs ({error}); test the run again to replace it") from error


def best_threshold(similarity: np.ndarray, issame: np.ndarray) -> float:
    """Returns the threshold of the similarity that decides most pairs correctly."""
    order = np.argsort(-similarity, kind="stable")
    ordered, same = similarity[order], issame[order]
    # The number of correct decisions when the first k pairs are accepted, k = 0..P.
    right = np.concatenate([[0], np.cumsum(same)]) + (~same).sum() - np.concatenate([[0], np.cumsum(~same)])
    # Pairs of equal similarity cannot be told apart, so a cut never runs between them.
    right[1:-1][ordered[1:] == ordered[:-1]] = -1
    k = int(right.argmax())
    if k == 0:
        return float(np.nextafter(ordered[0], np.inf))
    return float(ordered[-1] if k == len(ordered) else (ordered[k - 1] + ordered[k]) / 2)


def draw_loss(axes: Axes, events: list[dict[str, Any]]) -> None:
    """Draws the loss, and the learning rate as a dotted line, over the steps."""
    train = [event for event in events if event.get("event") == "train" and event.get("loss") is not None]
    axes.set_title("1. Training loss", loc="left", fontweight="bold")
    axes.set_xlabel("training step")
    axes.set_ylabel("loss (lower is better)", color=BLUE)
    if not train:
        axes.text(0.5, 0.5, "no training steps\nin metrics.jsonl", ha="center", va="center", transform=axes.transAxes)
        return
    steps = np.array([event["step"] for event in train])
    loss = np.array([event["loss"] for event in train], np.float64)
    width = max(1, len(loss) // 30)
    axes.plot(steps, loss, color=BLUE, linewidth=0.8, alpha=0.35 if width > 1 else 1.0)
    if width > 1:
        smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
        axes.plot(steps[width // 2 : width // 2 + len(smooth)], smooth, color=BLUE, linewidth=2)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    rate = axes.twinx()
    rate.plot(steps, [event.get("lr", np.nan) for event in train], color=GREY, linewidth=1, linestyle=":")
    rate.set_ylabel("learning rate (dotted)", color=GREY)
    rate.tick_params(axis="y", colors=GREY, labelsize=8)
    rate.set_ylim(bottom=0)
    rate.spines["top"].set_visible(False)


def read_test(run: str) -> dict[str, Any] | None:
    """Returns the content of ``run/test.json``, or None without that file."""
    path = os.path.join(run, "test.json")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def rates_of(test: dict[str, Any]) -> np.ndarray:
    """Returns FAR, TAR and the bounds of TAR over all pairs, float [4, R] by ascending FAR."""
    rates = test["held_out"]["at_far"].items()
    return np.array(sorted((float(far), rate["tar"], rate["low"], rate["high"]) for far, rate in rates), np.float64).T


def draw_rates(axes: Axes, rates: np.ndarray) -> None:
    """Draws TAR with its bounds over a logarithmic FAR, and puts one of the rates into words."""
    far, tar, low, high = rates
    axes.errorbar(
        far, tar, np.maximum([tar - low, high - tar], 0), color=BLUE, linewidth=2, marker="o", elinewidth=1.2,
        capsize=4, label="this run, with 95 % bounds",
    )  # fmt: skip
    chance = np.geomspace(far[0], 1, 100)
    axes.plot(chance, chance, color=GREY, linestyle="--", linewidth=1, label="guessing")
    axes.set_xscale("log")
    axes.set_xlim(far[0] * 0.7, 1)
    axes.set_ylim(0, 1.02)
    if MARKED in far:
        at = float(tar[far == MARKED][0])
        axes.axvline(MARKED, color=ORANGE, linewidth=1, linestyle=":")
        axes.plot([MARKED], [at], "o", color=ORANGE, markersize=9, zorder=5)
        axes.annotate(
            f"{at:.1%} of same pairs accepted\nwhen 1 in 1,000 different\npairs is (TAR@1e-3)",
            (MARKED, at), xytext=(14, -14 if at > 0.35 else 14), textcoords="offset points", color=ORANGE,
            va="top" if at > 0.35 else "bottom", fontsize=9,
        )  # fmt: skip
    axes.set_title("2. All pairs of images of never-seen characters", loc="left", fontweight="bold")
    axes.set_xlabel("different pairs accepted (FAR, log scale)")
    axes.set_ylabel("same pairs accepted (TAR)")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower left", frameon=False)


def draw_pairs(
    figure: SubFigure, similarity: np.ndarray, issame: np.ndarray, images: np.ndarray, threshold: float
) -> None:
    """Draws four rows of pairs: correctly decided ones, and the hardest of each kind."""
    accepted = similarity >= threshold
    rng = np.random.default_rng(0)
    same, other = np.flatnonzero(issame), np.flatnonzero(~issame)

    def some(candidates: np.ndarray) -> np.ndarray:
        return rng.permutation(candidates)[:PAIRS_PER_ROW]

    rows = [
        ("Same character, recognised as the same", some(same[accepted[same]])),
        ("Different characters, told apart", some(other[~accepted[other]])),
        ("Hardest same pairs (least similar)", same[np.argsort(similarity[same], kind="stable")][:PAIRS_PER_ROW]),
        (
            "Hardest different pairs (most similar)",
            other[np.argsort(-similarity[other], kind="stable")][:PAIRS_PER_ROW],
        ),
    ]
    figure.text(
        0.02, 0.945, "3. Some of the pairs, and how similar the network finds them", fontweight="bold", fontsize="large"
    )
    figure.text(
        0.02, 0.905, f"\u201csame\u201d from {threshold:.2f} on; green frame: decided correctly, red: wrongly",
        fontsize=9, color=GREY,
    )  # fmt: skip
    top, height = 0.875, 0.225
    for row, (title, chosen) in enumerate(rows):
        upper = top - row * height
        figure.text(0.02, upper - 0.028, title, fontsize=10)
        if not len(chosen):
            figure.text(0.02, upper - 0.11, "none", fontsize=9, color=GREY)
        for column, pair in enumerate(chosen):
            width = 0.96 / PAIRS_PER_ROW
            axes = figure.add_axes((0.02 + column * width, upper - 0.175, width * 0.93, 0.135))
            colour = GREEN if accepted[pair] == issame[pair] else RED
            draw_pair(axes, images[2 * pair], images[2 * pair + 1], similarity[pair], colour)


def draw_pair(axes: Axes, left: np.ndarray, right: np.ndarray, similarity: float, colour: str) -> None:
    """Draws two images side by side in a frame, with their similarity below."""
    gap = np.full((left.shape[0], max(1, left.shape[1] // 16), left.shape[2]), 255, np.uint8)
    axes.imshow(np.concatenate([left, gap, right], axis=1), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=2.5)
    axes.set_xlabel(f"{similarity:.2f}", fontsize=9, color=colour, labelpad=3)


def headline(test: dict[str, Any] | None) -> str:
    """Returns the title, with the accuracy of the test."""
    if test is None:
        return "Training run (not tested yet)"
    accuracy = f"{test['glyphs']['accuracy']:.2%} \u00b1 {test['glyphs']['std']:.2%}"
    return f"Same character or not? {accuracy} of the pairs decided correctly (characters not seen in training)"


def plot(run: str, dataset: str, output: str) -> None:
    """Draws the run in the folder ``run``, tested on ``dataset/glyphs.bin``, into the picture ``output``."""
    events = read_metrics(run)
    pairs = read_pairs(run)
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10})
    test = read_test(run)
    if pairs is None or test is None:
        figure: Figure = plt.figure(figsize=(8.5, 4.8), dpi=120, layout="constrained")
        draw_loss(figure.add_subplot(), events)
        figure.suptitle(headline(None), fontsize=10)
        print(f"plot: {run} has no test.json, so only the loss is drawn; test it first", file=sys.stderr)
    else:
        similarity, issame = pairs
        # The images are shown large, so one size suits data sets of any size.
        verification = load_verification(os.path.join(dataset, "glyphs.bin"), (3, 32, 32))
        if similarity.shape != issame.shape or not np.array_equal(verification.issame, issame):
            raise DataError(
                f"{run}/glyphs_pairs.npz: does not hold the pairs of {dataset}/glyphs.bin; name the data set that the "
                f"run was tested on"
            )
        threshold = best_threshold(similarity, issame)
        figure = plt.figure(figsize=(18, 6), dpi=100)
        curves, pair_area = figure.subfigures(1, 2, width_ratios=(0.63, 0.37))
        curves.text(0.018, 0.945, headline(test), fontsize=13, fontweight="bold")
        draw_loss(curves.add_axes((0.06, 0.11, 0.36, 0.74)), events)
        draw_rates(curves.add_axes((0.57, 0.11, 0.41, 0.74)), rates_of(test))
        draw_pairs(pair_area, similarity, issame, verification.images, threshold)
    figure.savefig(output)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(description="Draw the loss, TAR over FAR, and pairs of a glyph training run.")
    parser.add_argument("--run", required=True, metavar="OUTPUT_DIR", help="output folder of the run")
    parser.add_argument("--dataset", required=True, metavar="DATA_DIR", help="data set folder, with glyphs.bin")
    parser.add_argument("--output", required=True, metavar="PICTURE", help="picture to write, such as run.png")
    options = parser.parse_args(arguments)
    try:
        plot(options.run, options.dataset, options.output)
    except PlscError as error:
        print(f"plot: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
