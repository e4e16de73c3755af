"""PReLU and the layers of ViT against those of paddle.nn: CPU milliseconds forward and backward, and ratios, as JSON.

Both take turns in one process, so that other work on the machine disturbs them alike.

OMP_NUM_THREADS=1 python tests/benchmarks/layers.py [--rounds 30] [--batch 8]
"""

import argparse
import json

from convolutions import alternate  # isort: skip - before Paddle: it imports plsc

import paddle
from paddle import nn

from plsc.layers.slopes import PReLU
from plsc.layers.transformer import GELU, LayerNorm, Linear
from plsc.machine import processor
from plsc.models import vit

WIDE = vit.EXPANSION * vit.WIDTH
PATCHES = vit.GRID**2
CASES = {  # shape of an input, layer of plsc, layer of Paddle
    "PReLU of 64 channels": ((64, 56, 56), lambda: PReLU(64), lambda: nn.PReLU(64)),
    "PReLU of 128 channels": ((128, 28, 28), lambda: PReLU(128), lambda: nn.PReLU(128)),
    "PReLU of 256 channels": ((256, 14, 14), lambda: PReLU(256), lambda: nn.PReLU(256)),
    "LayerNorm": ((PATCHES, vit.WIDTH), lambda: LayerNorm(vit.WIDTH), lambda: nn.LayerNorm(vit.WIDTH)),
    "GELU": ((PATCHES, WIDE), GELU, nn.GELU),
    "Linear to queries, keys, values": (
        (PATCHES, vit.WIDTH),
        lambda: Linear(vit.WIDTH, 3 * vit.WIDTH),
        lambda: nn.Linear(vit.WIDTH, 3 * vit.WIDTH),
    ),
    "Linear after attention": (
        (PATCHES, vit.WIDTH),
        lambda: Linear(vit.WIDTH, vit.WIDTH),
        lambda: nn.Linear(vit.WIDTH, vit.WIDTH),
    ),
    "Linear, wider": ((PATCHES, vit.WIDTH), lambda: Linear(vit.WIDTH, WIDE), lambda: nn.Linear(vit.WIDTH, WIDE)),
    "Linear, narrower": ((PATCHES, WIDE), lambda: Linear(WIDE, vit.WIDTH), lambda: nn.Linear(WIDE, vit.WIDTH)),
}


def compare(name, batch, rounds):
    """Returns the best CPU milliseconds of both layers in both directions."""
    shape, *makers = CASES[name]
    x = paddle.randn([batch, *shape])
    x.stop_gradient = False
    functions = {}
    for who, make in zip(("plsc", "paddle"), makers):
        layer = make()
        y = layer(x)
        gradient, asked = paddle.randn(y.shape), [x, *layer.parameters()]
        functions[f"{who}_forward"] = lambda layer=layer: layer(x)
        functions[f"{who}_backward"] = lambda y=y, asked=asked, gradient=gradient: paddle.grad(
            y, asked, gradient, retain_graph=True
        )
    best = {key: min(values) * 1000 for key, values in alternate(rounds, **functions).items()}
    ratio = sum(best[f"paddle_{way}"] for way in ("forward", "backward"))
    ratio /= sum(best[f"plsc_{way}"] for way in ("forward", "backward"))
    return {"layer": name, **{key: round(value, 2) for key, value in best.items()}, "ratio": round(ratio, 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    print(json.dumps({"processor": processor.describe(), "paddle": paddle.__version__, "batch": options.batch}))
    for name in CASES:
        print(json.dumps(compare(name, options.batch, options.rounds)), flush=True)


if __name__ == "__main__":
    main()
