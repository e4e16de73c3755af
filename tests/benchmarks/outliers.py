"""How well `plsc data outliers` finds planted faults, and what cleaning the data is worth, as JSON.

    python tests/benchmarks/outliers.py --classes 400 --epochs 6 --seeds 0 1 2

Wrong labels (10 and 30 % of the images) and copies in other classes (5 %) are planted in glyphs. A network is trained
on the spoilt data, the command lists what it finds with that network, and another one is trained without those images.
Each is tested on pairs of characters that no training has seen, as is a network that was trained on the good data.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from plsc.data.glyphs import render_glyphs

TRAIN = """
import json, sys
from plsc import Entry
ins = Entry()
data, output, epochs, seed, exclude, loss = sys.argv[1:]
ins.set_dataset_dir(data, exclude=exclude or None)
ins.set_model_save_dir(output)
ins.set_class_num("auto")
ins.set_image_shape((3, 32, 32))
ins.set_model_name("GlyphNet")
ins.set_emb_size(128)
ins.set_loss_type(loss)
ins.set_augmentation(mirror=False, rotate=8, translate=0.06)
ins.set_train_batch_size(128)
ins.set_train_epochs(int(epochs))
ins.set_schedule("cosine")
ins.set_lr(0.05)
ins.set_scale(20)
ins.set_warmup_epochs(1)
ins.set_seed(int(seed))
ins.set_val_targets("glyphs")
ins.set_log_period(50)
print(json.dumps(ins.train()["test"]["glyphs"]))
"""


def train(data: Path, output: Path, epochs: int, seed: int, loss: str, exclude: str = "") -> float:
    """Trains a network and returns its accuracy on pairs of unseen characters."""
    words = [sys.executable, "-c", TRAIN, data, output, epochs, seed, exclude, loss]
    done = subprocess.run(list(map(str, words)), stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["accuracy"])


def spoil(good: Path, folder: Path, rate: float, copies: float, seed: int) -> set[str]:
    """Plants wrong labels and copies in other classes; returns the names of these images."""
    rng, bad, lines = np.random.default_rng(seed), set(), []
    images = [line.rsplit(" ", 1) for line in (good / "label.txt").read_text().splitlines()]
    classes = 1 + max(int(label) for _, label in images)
    folder.mkdir()
    for name in ("images", "glyphs.bin"):
        (folder / name).symlink_to((good / name).resolve())
    (folder / "copies").mkdir()
    for path, text in images:
        label = int(text)
        if rng.random() < rate:
            label = int((label + rng.integers(1, classes)) % classes)
            bad.add(path)
        lines.append(f"{path} {label}\n")
    for number in rng.choice(len(images), int(copies * len(images)), replace=False).tolist():
        path, text = images[number]
        copy = f"copies/{number}.jpg"
        shutil.copy(good / path, folder / copy)
        lines.append(f"{copy} {int((int(text) + rng.integers(1, classes)) % classes)}\n")
        bad.add(copy)
    (folder / "label.txt").write_text("".join(lines))
    return bad


def try_one(good: Path, folder: Path, rate: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of one share of wrong labels."""
    bad = spoil(good, folder / "data", rate, options.copies, seed)
    spoilt = train(folder / "data", folder / "spoilt", options.epochs, seed, options.loss)
    words = [
        "data",
        "outliers",
        folder / "spoilt" / str(options.epochs - 1),
        folder / "data",
        "--output",
        folder / "found",
    ]
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "plsc", *map(str, words)], check=True, stdout=sys.stderr)
    seconds, left_out = time.monotonic() - began, folder / "found/leave_out.txt"
    listed = {line.split("\t")[0] for line in left_out.read_text().splitlines()}
    cleaned = train(folder / "data", folder / "cleaned", options.epochs, seed, options.loss, str(left_out))
    return {
        "seed": seed,
        "wrong_labels": rate,
        "listed": len(listed),
        "precision": round(len(listed & bad) / max(1, len(listed)), 4),
        "recall": round(len(listed & bad) / max(1, len(bad)), 4),
        "seconds_of_command": round(seconds, 1),
        "accuracy_spoilt": round(spoilt, 4),
        "accuracy_cleaned": round(cleaned, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=400)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--copies", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--loss", default="dist_cosface")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        good = Path(name, "good")
        render_glyphs(
            str(good), classes=options.classes, images=options.images, size=32, held_out=250, pairs=6000, seed=1
        )
        for seed in options.seeds:
            accuracy = train(good, Path(name, f"good-{seed}"), options.epochs, seed, options.loss)
            for rate in options.rates:
                folder = Path(name, f"{seed}-{rate}")
                folder.mkdir()
                results.append({**try_one(good, folder, rate, seed, options), "accuracy_good": round(accuracy, 4)})
                print(results[-1], file=sys.stderr)
    print(json.dumps({"loss": options.loss, "classes": options.classes, "runs": results}, indent=2))


if __name__ == "__main__":
    main()
