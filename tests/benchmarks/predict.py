"""`predict` into a folder against the loader alone and the bare network on ready arrays, as JSON.

python tests/benchmarks/predict.py [--model MobileFaceNet] [--side 112] [--images 512] [--batch 64] \\
        [--workers 4] [--rounds 5]

`--model small` is a network of next to no work, which leaves the decoding. Rounds alternate between all ways; the best
of each counts. Time over the longer of the two baselines is 1.0 when they overlap perfectly; over their sum it is 1.0
when they do not.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import checkout  # noqa: F401
import numpy as np
import paddle

from plsc import Entry
from plsc.data.augmentation import Augmentation
from plsc.data.glyphs import render_glyphs
from plsc.data.label_file import read_label_file
from plsc.data.loader import ImageLoader

EMB_DIM = 512


def entry_of(options, shape):
    """An entry that was trained for one step."""
    ins = Entry()
    ins.set_image_shape(shape)
    ins.set_emb_size(EMB_DIM)
    ins.set_class_num(10)
    ins.set_train_epochs(1)
    ins.set_train_batch_size(10)
    ins.set_test_batch_size(options.batch)
    ins.set_num_workers(options.workers)
    ins.set_with_test(False)
    ins.set_model_save_dir(None)
    if options.model == "small":
        pool = paddle.nn.AvgPool2D(options.side // 4)
        ins.set_model(paddle.nn.Sequential(pool, paddle.nn.Flatten(), paddle.nn.Linear(48, EMB_DIM)))
    else:
        ins.set_model_name(options.model)
    images = np.random.default_rng(0).normal(size=(10, *shape)).astype("float32")
    ins.train_reader = [(images, np.arange(10))]
    ins.train()
    return ins


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="MobileFaceNet")
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    shape = (3, options.side, options.side)
    with tempfile.TemporaryDirectory() as temporary:
        data, output = Path(temporary, "data"), Path(temporary, "embeddings")
        classes = -(-options.images // 16)
        render_glyphs(str(data), classes=classes, images=16, size=options.side, held_out=2)
        source = read_label_file(str(data), classes)
        loader = ImageLoader(source, shape, options.batch, Augmentation(mirror=False), num_workers=options.workers)
        arrays = [images for images, _ in loader.epoch(0)]
        ins = entry_of(options, shape)
        ins.set_model_save_dir(f"{temporary}/net")
        exported = Entry()
        exported.set_export_dir(str(ins.convert_for_prediction()))
        exported.set_test_batch_size(options.batch)
        exported.set_num_workers(options.workers)
        backbone = ins._backbone
        backbone.eval()

        def bare():
            with paddle.no_grad():
                return [backbone(paddle.to_tensor(images)).numpy() for images in arrays]

        def predict(ins):
            assert len(ins.predict(data, output)) == source.num_images

        ways = {
            "loader": lambda: [None for _ in loader.epoch(0)],
            "network": bare,
            "predict, no files": lambda: ins.predict(data),
            "predict": lambda: predict(ins),
            "predict with an export": lambda: predict(exported),
        }
        best = dict.fromkeys(ways, float("inf"))
        for number in range(options.rounds + 1):
            for name, way in ways.items():
                shutil.rmtree(output, ignore_errors=True)
                began = time.perf_counter()
                way()
                if number:  # the first one is warm-up
                    best[name] = min(best[name], time.perf_counter() - began)
    result = {
        "command": " ".join(sys.argv),
        **vars(options),
        "count": source.num_images,
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "paddle": paddle.__version__,
        "images_per_second": {name: round(source.num_images / seconds, 1) for name, seconds in best.items()},
        "time_over": {
            "the longer of loader and network": round(best["predict"] / max(best["loader"], best["network"]), 3),
            "loader + network": round(best["predict"] / (best["loader"] + best["network"]), 3),
            "predict without files": round(best["predict"] / best["predict, no files"], 3),
            "predict with an export": round(best["predict"] / best["predict with an export"], 3),
        },
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
