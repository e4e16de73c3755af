"""Adds 500 characters to a classifier that was trained on 800 others. Prints JSON, in about fifteen minutes.

    python tests/benchmarks/add_classes.py [--loss dist_arcface] [--images 16] [--epochs 5]

The small network of the demo is trained on 800 characters of the glyph set. The figures are the share of new images, 2
of each character, whose nearest class is the right one: of the 800 known characters, of the 500 others, and of all.
They are those of the trained network, of what plsc add-classes makes of it, of both after one more epoch on all
characters, and of a network that is trained on all characters from the beginning.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from checkout import ROOT

import plsc  # before NumPy and Paddle

# isort: split

import numpy as np

from plsc.data.glyphs import choose_characters, class_name, render_character
from plsc.machine.processor import describe

KNOWN, ADDED, SIZE = 800, 500, 32
TESTED, OTHER_SEED = 2, 1  # images of each character that no training sees


def write_set(folder, characters, first, images, seed):
    """Writes a data set with the names of its classes, in the order of their bytes."""
    (folder / "images").mkdir(parents=True)
    order = sorted(range(len(characters)), key=lambda k: class_name(characters[k]).encode())
    lines = []
    for label, k in enumerate(order):
        for number, data in enumerate(render_character(characters[k], first + k, images, SIZE, seed)):
            (folder / "images" / f"{label}_{number}.jpg").write_bytes(data)
            lines.append(f"images/{label}_{number}.jpg {label}\n")
    names = [class_name(characters[k]) for k in order]
    (folder / "label.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return names


def entry(options, data, output, epochs, rate):
    """Returns an entry with the settings of the demo for one process."""
    ins = plsc.Entry()
    ins.set_model_name("GlyphNet")
    ins.set_image_shape((3, SIZE, SIZE))
    ins.set_emb_size(128)
    ins.set_class_num("auto")
    ins.set_dataset_dir(str(data))
    ins.set_augmentation(mirror=False, rotate=8, translate=0.06)
    ins.set_train_batch_size(64)
    ins.set_train_epochs(epochs)
    ins.set_schedule("cosine")
    ins.set_loss_type(options.loss)
    if options.loss.endswith("arcface"):
        ins.set_margin(0.3)
        ins.set_scale(20.0)
    ins.set_lr(rate)
    ins.set_with_test(False)
    ins.set_model_save_dir(str(output))
    return ins


def accuracy(checkpoint, images, names, known):
    """Returns the share of right answers for characters that were known, for the others, and for all."""
    ins = plsc.Entry()
    for setter, value in (("model_name", "GlyphNet"), ("image_shape", (3, SIZE, SIZE)), ("emb_size", 128)):
        getattr(ins, f"set_{setter}")(value)
    ins.set_checkpoint_dir(str(checkpoint))
    answers = ins.classify(str(images), top=1)
    is_right = np.array([answer[0].name == name for answer, name in zip(answers, np.repeat(names, TESTED))])
    was_known = np.repeat([name in known for name in names], TESTED)
    shares = {"known": is_right[was_known], "added": is_right[~was_known], "all": is_right}
    return {name: round(float(one.mean()), 4) for name, one in shares.items()}


def measure(options, folder):
    """Returns the figures."""
    characters = choose_characters(KNOWN + ADDED, 0, 0)
    known = write_set(folder / "known", characters[:KNOWN], 0, options.images, 0)
    write_set(folder / "added", characters[KNOWN:], KNOWN, options.images, 0)
    write_set(folder / "every", characters, 0, options.images, 0)
    names = write_set(folder / "tested", characters, 0, TESTED, OTHER_SEED)
    seconds = {}

    def train(name, data, epochs, rate, begin=None, init=None):
        ins, began = entry(options, folder / data, folder / name, epochs, rate), time.perf_counter()
        if begin is not None:
            ins.set_checkpoint_dir(str(begin))
            ins.set_head_init(init)
        else:
            ins.set_warmup_epochs(1)
        ins.train()
        seconds[name] = round(time.perf_counter() - began, 1)
        return folder / name / str(epochs - 1)

    before = train("before", "known", options.epochs, options.lr)
    began = time.perf_counter()
    words = ["add-classes", before, folder / "added", folder / "extended"]
    subprocess.run([sys.executable, "-m", "plsc", *map(str, words)], check=True, cwd=ROOT, stdout=sys.stderr)
    seconds["add-classes"] = round(time.perf_counter() - began, 1)
    places = {
        "before": before,
        "add-classes": folder / "extended",
        "add-classes and one epoch": train("tuned", "every", 1, options.lr / 4, folder / "extended", "by-name"),
        "random centres and one epoch": train("random", "every", 1, options.lr / 4, before, "by-name"),
        f"{options.epochs} epochs from the beginning": train("scratch", "every", options.epochs, options.lr),
        "one epoch from the beginning": train("short", "every", 1, options.lr),
    }
    found = {name: accuracy(place, folder / "tested", names, set(known)) for name, place in places.items()}
    return {"accuracy": found, "seconds": seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", default="dist_arcface", help="loss type")
    parser.add_argument("--images", type=int, default=16, help="images of each character to train on")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of the trainings from the beginning")
    parser.add_argument("--lr", type=float, default=0.8, help="rate of these trainings; tuning takes a quarter")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(options, Path(temporary))
    print(json.dumps({"command": " ".join(sys.argv), "processor": describe(), **found}, indent=1))


if __name__ == "__main__":
    main()
