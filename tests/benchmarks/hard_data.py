"""What the settings for rare classes and for wrong labels are worth, as JSON.

    python tests/benchmarks/hard_data.py --classes 60 --epochs 20 --seeds 0 1 2

Glyphs in two kinds of bad data: a long tail, in which the images of a class fall from 24 to 2, and classes of 12 images
of which 30 % have a wrong label. Networks are trained on both with one setting after another. Each is tested on images
of the same characters that it has not seen, 8 of each, all rightly labelled: how many are nearest to the centre of
their class, and in the long tail also how many of those of the rarest third of the classes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import checkout  # noqa: F401
import numpy as np
import paddle

from plsc import BaseModel, Entry
from plsc.data.glyphs import render_glyphs

MOST, EVEN, FEWEST, TESTED = 24, 12, 2, 8

Change = Callable[[Entry], object]
LONG_TAIL: dict[str, Change] = {
    "plain": lambda ins: None,
    "balanced sampler": lambda ins: ins.set_sampler("balanced"),
    "class weights": lambda ins: ins.set_class_weights("balanced"),
    "class weights, beta 0.9": lambda ins: ins.set_class_weights("balanced", beta=0.9),
    "ldam": lambda ins: ins.set_class_margins("ldam"),
}
WRONG_LABELS: dict[str, Change] = {
    "plain": lambda ins: None,
    "filter 0.3": lambda ins: ins.set_interclass_filter(0.3),
    "filter 0.5": lambda ins: ins.set_interclass_filter(0.5),
    "smoothing 0.1": lambda ins: ins.set_label_smoothing(0.1),
    "filter 0.5, smoothing 0.1": lambda ins: [ins.set_interclass_filter(0.5), ins.set_label_smoothing(0.1)],
}


class SmallNet(BaseModel):
    """Three convolutions and a linear layer, which train in seconds."""

    def __init__(self) -> None:
        super().__init__()
        layers = []
        for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
            layers += [paddle.nn.Conv2D(inputs, outputs, 3, 2, 1), paddle.nn.BatchNorm2D(outputs), paddle.nn.ReLU()]
        self.layers = paddle.nn.Sequential(*layers, paddle.nn.Flatten(), paddle.nn.Linear(64 * 4 * 4, 64))
        self.norm = paddle.nn.BatchNorm1D(64)

    def build_network(self, input, label, is_train):
        return self.norm(self.layers(input))


def write_set(good: Path, folder: Path, counts: np.ndarray, wrong: float, seed: int) -> list[tuple[str, int]]:
    """Writes a training set with `counts` images of each class; returns the paths and the labels of the test images."""
    rng, lines, tested, seen = np.random.default_rng(seed), [], [], np.zeros(len(counts), int)
    folder.mkdir()
    (folder / "images").symlink_to((good / "images").resolve())
    for line in (good / "label.txt").read_text().splitlines():
        path, label = line.rsplit(" ", 1)
        number, shown = seen[int(label)], int(label)
        seen[int(label)] += 1
        if number < TESTED:
            tested.append((str(good / path), shown))
        elif number < TESTED + counts[shown]:
            if rng.random() < wrong:
                shown = int((shown + rng.integers(1, len(counts))) % len(counts))
            lines.append(f"{path} {shown}\n")
    (folder / "label.txt").write_text("".join(lines))
    return tested


def accuracies(data: Path, tested: list[tuple[str, int]], change: Change, seed: int, options: argparse.Namespace):
    """Trains a network; returns whether each test image is nearest to the centre of its class."""
    ins = Entry()
    with tempfile.TemporaryDirectory() as folder:
        ins.set_dataset_dir(str(data))
        ins.set_model_save_dir(folder)
        ins.set_class_num(options.classes)
        ins.set_image_shape((3, 32, 32))
        ins.set_model(SmallNet())
        ins.set_emb_size(64)
        ins.set_loss_type(options.loss)
        ins.set_scale(options.scale)
        ins.set_margin(options.margin)
        ins.set_augmentation(mirror=False, translate=0.03)
        ins.set_train_batch_size(32)
        ins.set_train_epochs(options.epochs)
        ins.set_schedule("cosine")
        ins.set_lr(options.lr)
        ins.set_warmup_epochs(1)
        ins.set_seed(seed)
        ins.set_with_test(False)
        ins.set_log_period(100)
        change(ins)
        ins.train()
        source = Path(folder, "tested.txt")
        source.write_text("".join(f"{path} {label}\n" for path, label in tested))
        answers = ins.classify(source, top=1)
    return np.array([answer[0].number == label for answer, (_, label) in zip(answers, tested)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--loss", default="dist_cosface")
    parser.add_argument("--scale", type=float, default=20.0)
    parser.add_argument("--margin", type=float, default=0.2)
    parser.add_argument("--lr", type=float, default=2.0)
    parser.add_argument("--settings", nargs="+", help="the settings to try; all by default")
    parser.add_argument("--kinds", nargs="+", default=["long tail", "wrong labels"])
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as name:
        good = Path(name, "good")
        render_glyphs(str(good), options.classes, images=MOST + TESTED, size=32, held_out=4, pairs=8, seed=1)
        for seed in options.seeds:
            falling = np.geomspace(MOST, FEWEST, options.classes).round().astype(int)
            counts = np.random.default_rng(seed).permutation(falling)
            rare = counts <= np.sort(counts)[options.classes // 3 - 1]
            for kind, settings, of_class, wrong in (
                ("long tail", LONG_TAIL, counts, 0.0),
                ("wrong labels", WRONG_LABELS, np.full(options.classes, EVEN), 0.3),
            ):
                if kind not in options.kinds:
                    continue
                data = Path(name, f"{kind} {seed}")
                tested = write_set(good, data, of_class, wrong, seed)
                is_rare = rare[[label for _, label in tested]]
                for setting, change in settings.items():
                    if options.settings and setting not in options.settings:
                        continue
                    right = accuracies(data, tested, change, seed, options)
                    runs.append(
                        {"data": kind, "setting": setting, "seed": seed, "accuracy": round(float(right.mean()), 4)}
                    )
                    if kind == "long tail":
                        runs[-1]["of_the_rare_third"] = round(float(right[is_rare].mean()), 4)
                    print(runs[-1], file=sys.stderr, flush=True)
    print(json.dumps({"command": sys.argv, "runs": runs}, indent=2))


if __name__ == "__main__":
    main()
