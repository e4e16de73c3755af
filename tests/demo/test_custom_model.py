"""The custom model of the documentation, through `python -m plsc run`."""

import json
import math

import pytest
from ranks import ROOT, run_ranks


def test_its_layers():
    result = json.loads(run_ranks("build_custom_model.py", 1).stdout.splitlines()[-1])
    for layers, depth, convolutions in ((50, 24, 2), (101, 33, 3), (152, 50, 3)):
        made = result[str(layers)]
        assert made["conv2d"] == 1 + depth * convolutions + 4
        assert made["batch_norm"] == made["conv2d"] + depth + 2
        assert made["prelu"] == 1 + depth * (convolutions - 1)
        assert made["size"] == 8 and made["deviation"] == pytest.approx(math.sqrt(2 / 8), rel=0.1)


def test_it_trains_on_two_ranks(glyphs, tmp_path):
    arguments = {"data_dir": glyphs, "class_num": 12, "image_size": 16, "targets": "glyphs", "batch_size": 48}
    arguments.update(epochs=1, save_dir=tmp_path)
    run_ranks(ROOT / "demo" / "custom_model.py", 2, *(f"--{name}={value}" for name, value in arguments.items()))
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "test" and 0 <= events[-1]["glyphs"]["accuracy"] <= 1
    assert events[0]["event"] == "train" and math.isfinite(events[0]["loss"])
    meta = json.loads((tmp_path / "0" / "meta.json").read_text())
    assert meta["model"] == "ResNet" and meta["num_classes"] == 12 and meta["step"] == 1
