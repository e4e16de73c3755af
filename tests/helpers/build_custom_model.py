"""Builds the model of demo/custom_model.py with each supported number of layers; prints its structure as JSON."""

import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))

import paddle  # noqa: E402
from custom_model import ResNet  # noqa: E402

result = {}
for layers in (50, 101, 152):
    paddle.seed(0)
    model = ResNet(layers, emb_dim=8)
    size = model.build((3, 16, 16))
    kinds = Counter(name.rsplit("_", 1)[0] for name, _ in model.named_children())
    result[layers] = {"size": size, "deviation": float(model.fc_0.weight.std()), **kinds}
print(json.dumps(result))
