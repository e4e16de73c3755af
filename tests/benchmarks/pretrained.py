"""Compares the networks of InsightFace's arcface_torch in PyTorch and in plsc, from the same file. Prints JSON.

    python tests/benchmarks/pretrained.py --torch-python PYTHON [--networks r18 r50 r100 mbf mbf_large]

PyTorch makes each network with random weights and statistics, saves it with torch.save, and embeds 4 images in test and
training mode. plsc loads the file and embeds the same images. With the package onnx next to PyTorch, it also loads an
ONNX export. The figures are the largest difference relative to the largest value, and one minus the lowest cosine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import checkout  # noqa: F401
import numpy as np

NETWORKS = ("r18", "r50", "r100", "mbf", "mbf_large")
DEPTHS = {"r18": (2, 2, 2, 2), "r50": (3, 4, 14, 3), "r100": (3, 13, 30, 3)}
MOBILE = {"mbf": ((1, 4, 6, 2), 2), "mbf_large": ((2, 8, 12, 4), 4)}


def torch_network(name):
    """Returns a network with the names of arcface_torch."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, before, channels, stride):
            super().__init__()
            self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(before), nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
            self.conv1 = nn.Conv2d(before, channels, 3, 1, 1, bias=False)
            self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
            self.prelu, self.downsample = nn.PReLU(channels), None
            if stride != 1:
                shortcut = nn.Conv2d(before, channels, 1, stride, bias=False)
                self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))

        def forward(self, x):
            y = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
            return y + (x if self.downsample is None else self.downsample(x))

    class IResNet(nn.Module):
        def __init__(self, depths):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
            self.prelu, before = nn.PReLU(64), 64
            for stage, (depth, channels) in enumerate(zip(depths, (64, 128, 256, 512)), 1):
                rest = [Block(channels, channels, 1) for _ in range(depth - 1)]
                self.add_module(f"layer{stage}", nn.Sequential(Block(before, channels, 2), *rest))
                before = channels
            self.bn2, self.fc, self.features = nn.BatchNorm2d(512), nn.Linear(512 * 49, 512), nn.BatchNorm1d(512)

        def forward(self, x):
            x = self.prelu(self.bn1(self.conv1(x)))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.features(self.fc(torch.flatten(self.bn2(x), 1)))

    class Layers(nn.Module):
        def __init__(self, *layers):
            super().__init__()
            self.layers = nn.Sequential(*layers)

        def forward(self, x):
            return self.layers(x)

    class Residual(Layers):
        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x)
            return x

    def conv(before, channels, size=1, stride=1, groups=1):
        layer = nn.Conv2d(before, channels, size, stride, size // 2, groups=groups, bias=False)
        return Layers(layer, nn.BatchNorm2d(channels), nn.PReLU(channels))

    def depthwise(before, channels, groups, stride=1):
        last = Layers(nn.Conv2d(groups, channels, 1, bias=False), nn.BatchNorm2d(channels))
        return Layers(conv(before, groups), conv(groups, groups, 3, stride, groups), last)

    def stage(channels, blocks, groups):
        return Residual(*(depthwise(channels, channels, groups) for _ in range(blocks)))

    class MobileFaceNet(nn.Module):
        def __init__(self, blocks, scale):
            super().__init__()
            narrow, wide = 64 * scale, 128 * scale
            first = conv(narrow, narrow, 3, groups=64) if blocks[0] == 1 else stage(narrow, blocks[0], 128)
            self.layers = nn.ModuleList([conv(3, narrow, 3, 2), first, depthwise(narrow, narrow, 128, 2)])
            self.layers.extend([stage(narrow, blocks[1], 128), depthwise(narrow, wide, 256, 2)])
            self.layers.extend(
                [stage(wide, blocks[2], 256), depthwise(wide, wide, 512, 2), stage(wide, blocks[3], 256)]
            )
            self.conv_sep = conv(wide, 512)
            weighting = Layers(nn.Conv2d(512, 512, 7, groups=512, bias=False), nn.BatchNorm2d(512))
            self.features = Layers(weighting, nn.Flatten(), nn.Linear(512, 512, bias=False), nn.BatchNorm1d(512))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return self.features(self.conv_sep(x))

    torch.manual_seed(1)
    model = IResNet(DEPTHS[name]) if name in DEPTHS else MobileFaceNet(*MOBILE[name])
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            layer.bias.data.normal_(0, 0.1)
            if layer is not getattr(model, "features", None):  # whose scale is fixed at 1
                layer.weight.data.uniform_(0.5, 1.5)
        elif isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.PReLU):
            layer.weight.data.uniform_(0, 0.5)
    return model


def be_torch(folder, name):
    """Saves a network, an export, and what the network computes for `images.npy`."""
    import torch

    model, images = torch_network(name), torch.from_numpy(np.load(folder / "images.npy"))
    torch.save(model.state_dict(), folder / "net.pth")
    with torch.no_grad():
        np.save(folder / "test.npy", model.eval()(images).numpy())
        try:
            torch.onnx.export(model, images[:1], str(folder / "net.onnx"), dynamo=False, opset_version=11)
        except Exception as problem:  # without the package onnx
            print(f"no ONNX export: {problem}", file=sys.stderr)
        np.save(folder / "training.npy", model.train()(images).numpy())


def measure(folder, name, python):
    """Returns the differences for one network."""
    import paddle

    from plsc.config import Pixels
    from plsc.models import build_model
    from plsc.weights.importing import import_weights, load_pretrained

    images = np.random.default_rng(0).normal(size=(4, 3, 112, 112)).astype("float32")
    np.save(folder / "images.npy", images)
    subprocess.run([python, __file__, "--torch", str(folder), "--networks", name], check=True)
    report = import_weights(folder / "net.pth", folder / "checkpoint")
    result = {"network": name, "recognised as": report.model}
    for kind, source in (("test", "net.pth"), ("training", "net.pth"), ("ONNX, test", "net.onnx")):
        if not (folder / source).exists():
            continue
        model = build_model(report.model, report.emb_dim, report.image_shape)
        load_pretrained(folder / source, model, Pixels(std=128))
        (model.train if kind == "training" else model.eval)()
        with paddle.no_grad():
            found = model(paddle.to_tensor(images)).numpy()
        wanted = np.load(folder / f"{kind.split()[-1]}.npy")
        cosines = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
        result[kind] = {
            "difference": float(np.abs(found - wanted).max() / np.abs(wanted).max()),
            "1 - cosine": float(1 - cosines.min()),
        }
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", default=sys.executable, help="Python of an environment with PyTorch")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--torch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.torch:
        be_torch(options.torch, options.networks[0])
        return
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(Path(folder), name, options.torch_python)), flush=True)


if __name__ == "__main__":
    main()
