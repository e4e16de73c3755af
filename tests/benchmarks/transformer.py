"""The layers of ViT against those of paddle.nn: CPU milliseconds forward and backward, and their ratio, as JSON.

Both take turns in one process, so that other work on the machine disturbs them alike.

OMP_NUM_THREADS=1 python tests/benchmarks/transformer.py [--rounds 30] [--batch 8]
"""

import argparse
import json

from convolutions import alternate  # isort: skip - before Paddle: it imports plsc

import paddle
from paddle import nn

from plsc.layers.transformer import GELU, LayerNorm, Linear
from plsc.machine import processor
from plsc.models import vit

WIDE = vit.EXPANSION * vit.WIDTH
CASES = {  # width of the input, layer of plsc, layer of Paddle
    "LayerNorm": (vit.WIDTH, lambda: LayerNorm(vit.WIDTH), lambda: nn.LayerNorm(vit.WIDTH)),
    "GELU": (WIDE, GELU, nn.GELU),
    "Linear to queries, keys, values": (
        vit.WIDTH,
        lambda: Linear(vit.WIDTH, 3 * vit.WIDTH),
        lambda: nn.Linear(vit.WIDTH, 3 * vit.WIDTH),
    ),
    "Linear after attention": (
        vit.WIDTH,
        lambda: Linear(vit.WIDTH, vit.WIDTH),
        lambda: nn.Linear(vit.WIDTH, vit.WIDTH),
    ),
    "Linear, wider": (vit.WIDTH, lambda: Linear(vit.WIDTH, WIDE), lambda: nn.Linear(vit.WIDTH, WIDE)),
    "Linear, narrower": (WIDE, lambda: Linear(WIDE, vit.WIDTH), lambda: nn.Linear(WIDE, vit.WIDTH)),
}


def compare(name, batch, rounds):
    """Returns the best CPU milliseconds of both layers in both directions."""
    width, *makers = CASES[name]
    x = paddle.randn([batch, vit.GRID**2, width])
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
