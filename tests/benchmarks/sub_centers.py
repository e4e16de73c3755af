"""What sub-centres are worth with wrong labels, and how well the angle from the dominant one finds these, as JSON.

    python tests/benchmarks/sub_centers.py --classes 400 --epochs 6 --seeds 0 1 2

Wrong labels (0 and 30 % of the images) are planted in glyphs. Networks are trained with one row and with three rows for
each class, and one without the images that `plsc merge-sub-centers --drop-beyond` lists. Each is tested on pairs of
characters that no training has seen.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from outliers import spoil

from plsc.data.glyphs import render_glyphs

TRAIN = """
import json, sys
from plsc import Entry
settings = json.loads(sys.argv[1])
data, exclude = settings.pop("dataset_dir"), settings.pop("exclude")
ins = Entry(settings=settings)
ins.set_dataset_dir(data, exclude=exclude)
ins.train()
print(json.dumps(ins.test()["glyphs"]))
"""
SETTINGS = {
    "num_classes": "auto",
    "model_name": "GlyphNet",
    "emb_dim": 128,
    "loss_type": "dist_arcface",
    "augmentation": {"mirror": False, "rotate": 8, "translate": 0.06},
    "schedule": "cosine",
    "scale": 20,
    "warmup_epochs": 1,
    "val_targets": "glyphs",
    "with_test": False,
    "log_period": 50,
}


def train(data: Path, output: Path, exclude: Path | None = None, **settings: Any) -> float:
    """Trains a network and returns its accuracy on pairs of unseen characters."""
    places = {"dataset_dir": str(data), "model_save_dir": str(output), "exclude": exclude and str(exclude)}
    words = [sys.executable, "-c", TRAIN, json.dumps({**SETTINGS, **settings, **places})]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return round(float(json.loads(done.stdout.splitlines()[-1])["accuracy"]), 4)


def found_at(listed: dict[str, float], bad: set[str], angle: float) -> dict[str, float]:
    """Returns how many images are farther than an angle, and how many of them have wrong labels."""
    far = {name for name, degrees in listed.items() if degrees > angle}
    hits = len(far & bad)
    return {
        "angle": angle,
        "listed": len(far),
        "precision": round(hits / max(1, len(far)), 4),
        "recall": round(hits / max(1, len(bad)), 4),
    }


def try_one(good: Path, folder: Path, rate: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of one share of wrong labels."""
    bad, data = spoil(good, folder / "data", rate, 0.0, seed), folder / "data"
    same = {"train_epochs": options.epochs, "seed": seed, "margin": options.margin, "lr": options.lr}
    same |= {"train_batch_size": options.batch, "image_shape": [3, options.side, options.side]}
    one = train(data, folder / "one", **same)
    several = train(data, folder / "several", sub_centers=options.sub_centers, **same)
    last = folder / "several" / str(options.epochs - 1)
    words = ["merge-sub-centers", last, data, folder / "merged", "--drop-beyond", "1", "--list", folder / "all.txt"]
    subprocess.run([sys.executable, "-m", "plsc", *map(str, [*words, "--json"])], check=True, stdout=sys.stderr)
    lines = [line.split("\t") for line in (folder / "all.txt").read_text().splitlines()]
    listed = {name: float(why.split()[0]) for name, why in lines}
    (folder / "far.txt").write_text("".join(f"{name}\n" for name, angle in listed.items() if angle > options.angle))
    cleaned = train(data, folder / "cleaned", folder / "far.txt", **same)
    return {
        "seed": seed,
        "wrong_labels": rate,
        "accuracy": one,
        "accuracy_sub_centers": several,
        "accuracy_dropped": cleaned,
        "found": [found_at(listed, bad, angle) for angle in (60, 65, 70, 75, 80, 85)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=400)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--pairs", type=int, default=6000)
    parser.add_argument("--sub-centers", type=int, default=3)
    parser.add_argument("--margin", type=float, default=0.3)
    parser.add_argument("--angle", type=float, default=75.0)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        good = Path(name, "good")
        size = {"classes": options.classes, "images": options.images, "size": 32}
        render_glyphs(str(good), **size, held_out=250, pairs=options.pairs, seed=1)
        for seed in options.seeds:
            for rate in options.rates:
                folder = Path(name, f"{seed}-{rate}")
                folder.mkdir()
                results.append(try_one(good, folder, rate, seed, options))
                print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(json.dumps({**vars(options), "runs": results}, indent=2))


if __name__ == "__main__":
    main()
