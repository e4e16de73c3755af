"""Training speed with the whole loop, against the bare forward and backward of the same backbone in the same run.

python -m plsc run --ranks 1 tests/benchmarks/throughput.py
python -m plsc run --ranks 2 tests/benchmarks/throughput.py
"""

import argparse
import json
import sys
import time

import checkout  # noqa: F401
import numpy as np
import paddle

from plsc import Entry, parallel
from plsc.layers.convolution import fast_convolutions
from plsc.models import MODEL_NAMES, build_model


def bare(name, image_shape, batch, steps):
    """Images per second of one rank's forward and backward by the same kernels, without anything else of a step."""
    model = build_model(name, 512, image_shape)
    images = paddle.rand([batch, *image_shape])
    for step in range(steps + 1):
        if step == 1:  # the first one is warm-up
            began = time.perf_counter()
        with fast_convolutions():
            embedding = model(images)
        embedding.backward(paddle.ones_like(embedding))
        model.clear_gradients()
    return batch * steps / (time.perf_counter() - began)


def entry_of(options):
    """An entry that trains one epoch and neither tests nor saves."""
    ins = Entry()
    ins.set_model_name(options.model)
    ins.set_image_shape((3, options.side, options.side))
    ins.set_class_num(options.classes)
    ins.set_train_batch_size(options.batch)
    ins.set_train_epochs(1)
    ins.set_with_test(False)
    ins.set_model_save_dir(None)
    ins.set_lr(1e-4)
    return ins


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODEL_NAMES, default="ResNet50")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    shape = (3, options.side, options.side)
    parallel.initialise()
    baseline = bare(options.model, shape, options.batch, options.steps) * parallel.world_size()

    rng = np.random.default_rng(0)
    images = rng.normal(size=(options.batch, *shape)).astype("float32")
    labels = rng.integers(0, options.classes, options.batch)
    ins = entry_of(options)
    ins.train_reader = lambda: (list(zip(images, labels)) for _ in range(options.steps))
    speed = ins.train()["images_per_second"]
    if parallel.rank() == 0:
        result = {
            "command": " ".join(sys.argv),
            **vars(options),
            "ranks": parallel.world_size(),
            "device": paddle.get_device(),
            "paddle": paddle.__version__,
            "images_per_second": round(speed, 2),
            "bare_images_per_second": round(baseline, 2),
            "ratio": round(speed / baseline, 3),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
