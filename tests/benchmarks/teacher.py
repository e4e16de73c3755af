"""What a teacher does for a small network, as JSON: on glyphs that none of them was trained on, with several seeds.

    python tests/benchmarks/teacher.py [--images 4] [--epochs 4] [--seeds 3] [--weight 30] [--relation-weight 300]

The teacher is zoo:glyphs. The student is the same network with a quarter of the channels. It is trained alone, with the
teacher in each step, with embeddings that `predict` wrote, and without the head. All students train on the same images
for the same number of steps; the images of the tests show characters that neither they nor the teacher have seen.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import checkout  # noqa: F401
import numpy as np
import paddle

from plsc import Callback, Entry
from plsc.data.glyphs import render_glyphs
from plsc.models.base_model import build
from plsc.models.glyphnet import GlyphNet

TEACHER, CLASSES, HELD_OUT, SEED = "zoo:glyphs", 1000, 250, 0  # and the characters that it was made with
FILTERS = (8, 16, 24)
SHAPE, EMB = (3, 32, 32), 128


class Watch(Callback):
    """Seconds of a step after the first, the median."""

    def on_train_begin(self, run):
        self.ends = []

    def on_step_end(self, run):
        self.ends.append(time.perf_counter())

    @property
    def seconds(self):
        return float(np.median(np.diff(self.ends)))


def entry_of(options, **settings):
    """An entry for the glyphs."""
    ins = Entry(
        settings={"num_classes": CLASSES, "image_shape": SHAPE, "emb_dim": EMB, "val_targets": "glyphs", **settings}
    )
    ins.set_dataset_dir(str(options.data))
    ins.set_model_name("GlyphNet")
    ins.set_augmentation(mirror=False)
    return ins


def train(options, output, seed, teacher):
    """Trains one student; returns its test after the last epoch, and the milliseconds of a step."""
    ins, watch = entry_of(options, scale=16.0, margin=0.2, lr=1.0, train_batch_size=64, seed=seed), Watch()
    paddle.seed(seed)
    ins.set_model(GlyphNet(EMB, SHAPE, FILTERS))
    ins.set_schedule("cosine")
    ins.set_train_epochs(options.epochs)
    ins.set_model_save_dir(str(output))
    ins.set_keep_checkpoints(1)
    ins.set_with_test(False)
    ins.add_callback(watch)
    if teacher is not None:
        ins.set_teacher(*teacher)
    ins.train()
    result = ins.test()["glyphs"]
    return {"accuracy": result["accuracy"], "tar@1e-3": result["tar@1e-3"], "milliseconds": 1000 * watch.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4, help="images of each character")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weight", type=float, default=30.0)
    parser.add_argument("--relation-weight", type=float, default=300.0)
    parser.add_argument("--only", nargs="*", help="train these kinds alone")
    parser.add_argument("--work", type=Path, help="folder that keeps data and runs; a temporary one by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        options.data, known = work / "glyphs", work / "known"
        render_glyphs(str(options.data), CLASSES, options.images, 32, HELD_OUT, pairs=4000, seed=SEED)
        ins = entry_of(options, checkpoint_dir=TEACHER)
        teacher = ins.test()["glyphs"]
        ins.predict(str(options.data / "label.txt"), str(known))
        kinds = {
            "alone": None,
            "cosine": (str(known), options.weight),
            "cosine, without the head": (str(known), options.weight, "cosine", False),
            "relation": (str(known), options.relation_weight, "relation"),
            "cosine, the teacher in each step": (TEACHER, options.weight),
        }
        found = {}
        for kind, arguments in kinds.items():
            if options.only and kind not in options.only:
                continue
            found[kind] = [
                train(options, work / f"{kind} {seed}", seed, arguments) for seed in range(1, options.seeds + 1)
            ]
            print(json.dumps({kind: found[kind]}), file=sys.stderr, flush=True)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "parameters": {"teacher": size_of(GlyphNet(EMB, SHAPE)), "student": size_of(GlyphNet(EMB, SHAPE, FILTERS))},
        "teacher": {name: teacher[name] for name in ("accuracy", "tar@1e-3")},
        "students": found,
        "means": {
            kind: {name: float(np.mean([one[name] for one in ones])) for name in ones[0]}
            for kind, ones in found.items()
        },
    }
    print(json.dumps(result, indent=1))


def size_of(model):
    """Returns the number of the parameters of a network."""
    build(model, SHAPE)
    return sum(int(np.prod(one.shape)) for one in model.parameters())


if __name__ == "__main__":
    main()
