"""The layers of the custom model of the documentation; test_scripts.py trains it."""

import json
import math

import pytest
from ranks import run_ranks


def test_its_layers():
    result = json.loads(run_ranks("build_custom_model.py", 1).stdout.splitlines()[-1])
    for layers, depth, convolutions in ((50, 24, 2), (101, 33, 3), (152, 50, 3)):
        made = result[str(layers)]
        assert made["conv2d"] == 1 + depth * convolutions + 4
        assert made["batch_norm"] == made["conv2d"] + depth + 2
        assert made["prelu"] == 1 + depth * (convolutions - 1)
        assert made["size"] == 8 and made["deviation"] == pytest.approx(math.sqrt(2 / 8), rel=0.1)
