"""What wrong labels cost, how well they are found, and what helps against them, as JSON.

    python tests/benchmarks/noise.py /tmp/noise --classes 100 --epochs 5 --seeds 0 1 2

Wrong labels (0, 10 and 30 % of the images) and, in spoilt data, copies in other classes (5 %) are planted in glyphs.
Networks are trained on the data with one method after another. Two of them train again, without the images that
`plsc data outliers` or `plsc merge-sub-centers --drop-beyond` has listed; what the lists find is measured too. Each
network is tested on pairs of characters that no training has seen, and on other images of the characters that it has
learnt, all rightly labelled: how many are nearest to the centre of their class. With the good data, class centres in
bfloat16 are tried too.

The folder keeps the data, the checkpoints, and a line for each trial in `results.jsonl`. A benchmark that was killed
continues where it stopped. Processes can share a folder if each has other seeds, shares of wrong labels or methods; a
method that needs a list needs the network that makes it: arcface or sub-centres.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
import numpy as np
from kept_results import KeptResults

from plsc import Entry
from plsc.data.glyphs import render_glyphs

TESTED = 8  # images of each class that are not trained on
COPIES = 0.05
BEYOND = 75.0  # degrees from the dominant sub-centre
SETTINGS = {
    "num_classes": "auto",
    "model_name": "GlyphNet",
    "emb_dim": 128,
    "augmentation": {"mirror": False, "translate": 0.06},
    "schedule": "cosine",
    "scale": 20,
    "lr": 0.4,
    "train_batch_size": 32,
    "warmup_epochs": 1,
    "val_targets": "glyphs",
    "with_test": False,
    "log_period": 50,
    "keep_checkpoints": 1,
}
ARCFACE = {"loss_type": "dist_arcface", "margin": 0.3}
METHODS: dict[str, dict[str, Any]] = {
    "softmax": {"loss_type": "dist_softmax"},
    "arcface": ARCFACE,
    "sub-centres and filter": {**ARCFACE, "sub_centers": 3, "interclass_filter": 0.4},
    "arcface without outliers": ARCFACE,
    "arcface without far images": ARCFACE,
    "arcface in bfloat16": {**ARCFACE, "head_dtype": "bfloat16"},
}
LISTS = {"arcface without outliers": "outliers", "arcface without far images": "far images"}
OF_GOOD_DATA = ("arcface in bfloat16",)


class Trials:
    """The trials of one seed and one share of wrong labels.

    Args:
        good: The glyphs as they were rendered.
        folder: Folder of the trials.
        rate: Share of wrong labels.
        seed: Seed of the faults and of the trainings.
        options: The options of the command line.
    """

    def __init__(self, good: Path, folder: Path, rate: float, seed: int, options: argparse.Namespace) -> None:
        self._folder, self._seed, self._options = folder, seed, options
        self._data = folder / "data"
        self._tested, self._bad = spoil(good, self._data, rate, COPIES if rate else 0.0, seed)

    def train(self, method: str) -> dict[str, Any]:
        """Trains a network; returns its accuracies in percent."""
        options, listed = self._options, LISTS.get(method)
        ins = Entry(settings={**SETTINGS, **METHODS[method]})
        ins.set_dataset_dir(str(self._data), exclude=listed and str(self._list(listed)))
        ins.set_model_save_dir(str(self._checkpoints(method)))
        ins.set_image_shape((3, options.side, options.side))
        ins.set_train_epochs(options.epochs)
        ins.set_seed(self._seed)
        ins.train()
        pairs = ins.test()["glyphs"]
        source = self._checkpoints(method) / "tested.txt"
        source.write_text("".join(f"{path} {label}\n" for path, label in self._tested))
        answers = ins.classify(source, top=1)
        right = [answer[0].number == label for answer, (_, label) in zip(answers, self._tested)]
        return {
            "pairs": round(100 * pairs["accuracy"], 2),
            "auc": round(100 * pairs["auc"], 2),
            "classes": round(100 * float(np.mean(right)), 2),
        }

    def find(self, kind: str) -> dict[str, Any]:
        """Lists images that are to be left out; returns how many of them are bad, and how many of the bad ones."""
        target = self._folder / kind
        shutil.rmtree(target, ignore_errors=True)
        if kind == "outliers":
            run_command("data", "outliers", self._last("arcface"), self._data, "--output", target)
            return self._found(names_in(self._list(kind)))
        merging = ["merge-sub-centers", self._last("sub-centres and filter"), self._data, target / "merged"]
        target.mkdir()
        run_command(*merging, "--drop-beyond", "1", "--list", target / "all.txt")
        lines = [line.split("\t") for line in (target / "all.txt").read_text().splitlines()]
        angles = {name: float(why.split()[0]) for name, why in lines}
        self._list(kind).write_text("".join(f"{name}\n" for name, angle in angles.items() if angle > BEYOND))
        by_angle = {
            str(limit): self._found(name for name, angle in angles.items() if angle > limit)
            for limit in (60, 65, 70, 75, 80)
        }
        return {**by_angle[str(int(BEYOND))], "by_angle": by_angle}

    def _found(self, names: Iterable[str]) -> dict[str, Any]:
        listed = set(names)
        copies = {name for name in self._bad if name.startswith("copies/")}
        hits, shares = listed & self._bad, {}
        for name, bad in (("recall", self._bad), ("recall_of_copies", copies)):
            if bad:
                shares[name] = round(100 * len(listed & bad) / len(bad), 1)
        if self._bad and listed:
            shares["precision"] = round(100 * len(hits) / len(listed), 1)
        return {"listed": len(listed), "bad": len(self._bad), "hits": len(hits), **shares}

    def _list(self, kind: str) -> Path:
        return self._folder / kind / "leave_out.txt"

    def _checkpoints(self, method: str) -> Path:
        return self._folder / method

    def _last(self, method: str) -> Path:
        return self._checkpoints(method) / str(self._options.epochs - 1)


def spoil(good: Path, folder: Path, rate: float, copies: float, seed: int) -> tuple[list[tuple[str, int]], set[str]]:
    """Plants wrong labels and copies in other classes, if that was not done before.

    Returns:
        The paths and labels of the test images, and the names of the images that are in the wrong class.
    """
    rng, bad, lines, tested = np.random.default_rng(seed), set(), [], []
    images = [line.rsplit(" ", 1) for line in (good / "label.txt").read_text().splitlines()]
    classes = 1 + max(int(label) for _, label in images)
    (folder / "copies").mkdir(parents=True, exist_ok=True)
    for name in ("images", "glyphs.bin"):
        if not (folder / name).exists():
            (folder / name).symlink_to((good / name).resolve())
    trained = []
    for path, label in ((path, int(text)) for path, text in images):
        if int(Path(path).stem) < TESTED:
            tested.append((str(good / path), label))
        else:
            trained.append((path, label))
    for path, label in trained:
        if rng.random() < rate:
            label = int((label + rng.integers(1, classes)) % classes)
            bad.add(path)
        lines.append(f"{path} {label}\n")
    for number in rng.choice(len(trained), int(copies * len(trained)), replace=False).tolist():
        path, label = trained[number]
        copy = f"copies/{number}.jpg"
        if not (folder / copy).exists():
            shutil.copy(good / path, folder / copy)
        lines.append(f"{copy} {int((label + rng.integers(1, classes)) % classes)}\n")
        bad.add(copy)
    if not (folder / "label.txt").exists():
        (folder / "label.txt").write_text("".join(lines))
    return tested, bad


def names_in(path: Path) -> list[str]:
    """Returns the images that a list names."""
    return [line.split("\t")[0] for line in path.read_text().splitlines()]


def run_command(*words: object) -> None:
    """Runs a command of plsc."""
    subprocess.run([sys.executable, "-m", "plsc", *map(str, words)], check=True, stdout=sys.stderr)


def summary(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the mean, the smallest and the largest figure of the seeds, by share of wrong labels and trial."""
    groups: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["wrong_labels"], line["trial"]), []).append(line)
    rows = []
    for (rate, trial), of_seeds in sorted(groups.items(), key=lambda item: item[0][0]):
        row: dict[str, Any] = {"wrong_labels": rate, "trial": trial, "seeds": len(of_seeds)}
        for name in ("pairs", "auc", "classes", "listed", "precision", "recall", "recall_of_copies"):
            values = [line[name] for line in of_seeds if name in line]
            if values:
                row[name] = {"mean": round(float(np.mean(values)), 2), "least": min(values), "most": max(values)}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="keeps the data and the results")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--images", type=int, default=24, help="of each class, for training")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--side", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    folder = options.folder.absolute()  # a list of images is relative to its own folder
    good, kept = folder / "good", KeptResults(folder / "results.jsonl")
    size = {"images": options.images + TESTED, "size": 32, "held_out": 250}
    render_glyphs(str(good), options.classes, **size, pairs=options.pairs, seed=1)
    for seed in options.seeds:
        for rate in options.rates:
            trials = Trials(good, folder / f"{seed}-{rate}", rate, seed, options)
            for method in options.methods:
                if rate and method in OF_GOOD_DATA:
                    continue
                same = {"seed": seed, "wrong_labels": rate, "side": options.side, "epochs": options.epochs}
                if method in LISTS:
                    kind = LISTS[method]
                    kept.get({**same, "trial": kind}, partial(trials.find, kind))
                kept.get({**same, "trial": method}, partial(trials.train, method))
    print(json.dumps({"command": sys.argv, "summary": summary(kept.lines), "runs": kept.lines}, indent=2))


if __name__ == "__main__":
    main()
