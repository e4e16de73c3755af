"""Measures what the functions of plsc.layers cost against the same network made of paddle.nn layers, as JSON.

The unit is percent of a training step, in CPU time, which other programs disturb least.

python tests/benchmarks/fluid.py --model ResNet50 --side 112 --batch 32 --steps 6
python tests/benchmarks/fluid.py --model glyphs --side 32 --batch 64 --steps 60
"""

import argparse
import json
import statistics
import sys
import time

import checkout  # noqa: F401
import paddle

from plsc import layers
from plsc.models import GlyphNet
from plsc.models.base_model import BaseModel
from plsc.models.resnet import DEPTHS, EPSILON, WIDTHS


class ResNet(BaseModel):
    """ArcFace's residual network of 50 layers, define-by-run."""

    def build_network(self, input, label, is_train):
        x = layers.prelu(self.norm(self.conv(input, 64, 3), is_train))
        for depth, filters in zip(DEPTHS[50], WIDTHS):
            for index in range(depth):
                stride = 2 if index == 0 else 1
                y = layers.prelu(self.norm(self.conv(self.norm(x, is_train), filters, 3), is_train))
                y = self.norm(self.conv(y, filters, 3, stride), is_train)
                if stride != 1 or x.shape[1] != filters:
                    x = self.norm(self.conv(x, filters, 1, stride), is_train)
                x = layers.elementwise_add(x, y)
        x = layers.fc(self.norm(x, is_train), 512)
        return self.norm(x, is_train)

    def conv(self, x, filters, size, stride=1):
        return layers.conv2d(x, filters, size, stride, padding=size // 2, bias_attr=False)

    def norm(self, x, is_train):
        return layers.batch_norm(x, epsilon=EPSILON, is_test=not is_train)


class Plain(paddle.nn.Layer):
    """The layers of a define-by-run model, held in lists."""

    def __init__(self, made):
        super().__init__()
        self.convs = paddle.nn.LayerList(kind(made, "conv2d"))
        self.norms = paddle.nn.LayerList(kind(made, "batch_norm"))
        self.prelus = paddle.nn.LayerList(kind(made, "prelu"))
        self.fc = made.fc_0


class PlainResNet(Plain):
    """`ResNet`, one layer after the other."""

    def forward(self, input):
        convs, norms, prelus = iter(self.convs), iter(self.norms), iter(self.prelus)
        x = next(prelus)(next(norms)(next(convs)(input)))
        for depth, filters in zip(DEPTHS[50], WIDTHS):
            for index in range(depth):
                y = next(norms)(x)
                y = next(prelus)(next(norms)(next(convs)(y)))
                y = next(norms)(next(convs)(y))
                if index == 0 or x.shape[1] != filters:
                    x = next(norms)(next(convs)(x))
                x = x + y
        x = next(norms)(x)
        return next(norms)(self.fc(x.flatten(1)))


class PlainGlyphNet(Plain):
    """`GlyphNet`, the same way."""

    def forward(self, input):
        convs, norms, relu = iter(self.convs), iter(self.norms), paddle.nn.functional.relu
        x = paddle.nn.functional.instance_norm(paddle.mean(input, axis=1, keepdim=True))
        x = x * paddle.sign(paddle.mean(x**3, axis=[2, 3], keepdim=True))
        for _ in range(3):
            x = relu(next(norms)(next(convs)(x)))
            y = relu(next(norms)(next(convs)(x)))
            x = x + relu(next(norms)(next(convs)(y)))
        return next(norms)(self.fc(x.flatten(1)))


def kind(made, name):
    """The layers of that kind, in order."""
    return [layer for own, layer in made.named_children() if own.rsplit("_", 1)[0] == name]


def step_of(model, images):
    """One training step without a head."""
    optimizer = paddle.optimizer.Momentum(1e-3, 0.9, parameters=[p for p in model.parameters() if not p.stop_gradient])

    def step():
        began = time.process_time()
        embedding = model(images)
        embedding.backward(paddle.ones_like(embedding))
        optimizer.step()
        optimizer.clear_grad()
        return time.process_time() - began

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("ResNet50", "glyphs"), default="glyphs")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60, help="of each, alternating")
    options = parser.parse_args()
    shape = (3, options.side, options.side)
    made = ResNet() if options.model == "ResNet50" else GlyphNet(128, shape, (32, 64, 128))
    made.build(shape)
    plain = (PlainResNet if options.model == "ResNet50" else PlainGlyphNet)(made)
    images = paddle.rand([options.batch, *shape])
    made.train()
    paddle.seed(0)
    expected = made(images).numpy()
    paddle.seed(0)
    assert (plain(images).numpy() == expected).all(), "the two are not the same network"
    steps = {"plsc.layers": step_of(made, images), "paddle.nn": step_of(plain, images)}
    seconds = {name: [] for name in steps}
    for number in range(options.steps + 1):
        for name in sorted(steps, reverse=bool(number % 2)):
            seconds[name].append(steps[name]())
    times = {name: statistics.median(each[1:]) for name, each in seconds.items()}  # the first is warm-up
    pairs = [a / b - 1 for a, b in zip(*(seconds[name][1:] for name in ("plsc.layers", "paddle.nn")))]
    tiny = paddle.rand([1, *shape])
    made.eval()
    plain.eval()
    forward = {name: [] for name in steps}
    with paddle.no_grad():
        for _ in range(30):
            for name, model in (("plsc.layers", made), ("paddle.nn", plain)):
                began = time.process_time()
                model(tiny)
                forward[name].append(time.process_time() - began)
    calls = {name: statistics.median(each) for name, each in forward.items()}
    result = {
        "command": " ".join(sys.argv),
        **vars(options),
        "paddle": paddle.__version__,
        "cpu_seconds_per_step": {name: round(value, 5) for name, value in times.items()},
        "overhead_percent": round(100 * statistics.median(pairs), 2),
        "forward_of_one_image_milliseconds": {name: round(1000 * value, 3) for name, value in calls.items()},
        "layers": len(list(made.children())),
        "microseconds_per_layer": round(
            1e6 * (calls["plsc.layers"] - calls["paddle.nn"]) / len(list(made.children())), 1
        ),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
