"""Convolutions by oneDNN against Paddle's own: whole steps of networks, and single convolutions. Prints JSON.

Both take turns in one process, in CPU seconds, so that other work on the machine disturbs them alike.

OMP_NUM_THREADS=1 python tests/benchmarks/convolutions.py --networks GlyphNet MobileFaceNet
"""

import argparse
import contextlib
import json
import statistics
import sys
import time

import checkout  # noqa: F401

import plsc  # before Paddle, for its settings of the math library

# isort: split

import numpy as np
import paddle

from plsc.layers import convolution
from plsc.layers.convolution import fast_convolutions
from plsc.machine import processor, threads
from plsc.models import GlyphNet, build_model
from plsc.models.base_model import build

NETWORKS = {"GlyphNet": (64, 32), "MobileFaceNet": (32, 112), "ResNet50": (8, 112), "ViT": (16, 112)}  # batch, side
# Input, weight, stride, padding, groups.
SHAPES = [
    ([8, 64, 56, 56], [64, 64, 3, 3], 1, 1, 1),
    ([8, 256, 14, 14], [256, 256, 3, 3], 1, 1, 1),
    ([8, 512, 7, 7], [512, 512, 3, 3], 1, 1, 1),
    ([32, 128, 28, 28], [128, 1, 3, 3], 1, 1, 128),
    ([32, 64, 56, 56], [128, 64, 1, 1], 1, 0, 1),
    ([8, 3, 112, 112], [64, 3, 3, 3], 1, 1, 1),
    ([64, 32, 16, 16], [32, 32, 3, 3], 1, 1, 1),
    ([8, 256, 14, 14], [256, 64, 3, 3], 1, 1, 4),
    ([1, 64, 14, 14], [64, 64, 3, 3], 1, 1, 1),
    ([1, 128, 14, 14], [128, 1, 3, 3], 1, 1, 128),
]


def alternate(rounds, **functions):
    """Returns the CPU seconds of each function in each round; a first round that warms up is left out."""
    seconds = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            began = time.process_time()
            function()
            seconds[name].append(time.process_time() - began)
    return {name: values[1:] for name, values in seconds.items()}


def compare(rounds, function):
    """Returns the CPU seconds of a function with Paddle's convolutions and with oneDNN's, and their ratio."""

    def run(context):
        return lambda: function(context)

    seconds = alternate(rounds, paddle=run(contextlib.nullcontext), onednn=run(fast_convolutions))
    best = {name: min(values) for name, values in seconds.items()}
    ratios = [a / b for a, b in zip(*seconds.values())]
    return {**best, "ratio_of_best": best["paddle"] / best["onednn"], "median_ratio": statistics.median(ratios)}


def network(name, rounds):
    """Compares whole steps (forward, backward, update) and evaluation of a network, in images per CPU second."""
    batch, side = NETWORKS[name]
    shape = (3, side, side)
    model = GlyphNet(128, shape, (32, 64, 128)) if name == "GlyphNet" else build_model(name, 512, shape)
    build(model, shape)
    parameters = [p for p in model.parameters() if not p.stop_gradient]
    optimizer = paddle.optimizer.Momentum(0.01, 0.9, parameters=parameters)
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal([batch, *shape]).astype("float32"))

    def step(context):
        with context():
            embedding = model(images, None)
        (embedding * embedding).mean().backward()
        optimizer.step()
        optimizer.clear_grad()

    def evaluate(context):
        with context(), paddle.no_grad():
            model(images, None)

    model.train()
    training = compare(rounds, step)
    model.eval()
    found = {"network": name, "batch": batch, "training": training, "evaluation": compare(rounds, evaluate)}
    for part in (found["training"], found["evaluation"]):
        for kind in ("paddle", "onednn"):
            part[f"{kind}_images_per_cpu_second"] = batch / part.pop(kind)
    return found


def single(shape, rounds):
    """Compares one convolution with its gradients, whether or not plsc would let oneDNN compute it.

    The rates count the multiplications and additions of the convolution and of both gradients.
    """
    image, weight, stride, padding, groups = shape
    x, w = (paddle.randn(size) for size in (image, weight))
    x.stop_gradient = w.stop_gradient = False
    repeats = int(max(1, min(50, 1e9 / (np.prod(weight) * image[0] * image[2] * image[3]))))

    def step(context):
        for _ in range(repeats):
            with context():
                output = paddle.nn.functional.conv2d(x, w, stride=stride, padding=padding, groups=groups)
            output.backward(output.detach())
        return output.size

    operations = 6 * step(contextlib.nullcontext) * int(np.prod(weight[1:])) * repeats
    rule, convolution._pays = convolution._pays, lambda geometry: True
    convolution._convolution.cache_clear()
    found = compare(rounds, step)
    convolution._pays = rule
    convolution._convolution.cache_clear()
    rates = {f"{name}_gflops_per_cpu_second": operations / found[name] / 1e9 for name in ("paddle", "onednn")}
    return {"image": image, "weight": weight, "stride": stride, "groups": groups, **found, **rates}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", action="store_true", help="Compare single convolutions too.")
    options = parser.parse_args()
    found = {
        "command": " ".join(sys.argv),
        "processor": processor.describe(),
        "threads": threads.computing_threads(),
        "paddle": paddle.__version__,
        "plsc": plsc.__version__,
        "networks": [network(name, options.rounds) for name in options.networks],
        "convolutions": [single(shape, options.rounds) for shape in SHAPES] if options.shapes else [],
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
