"""The part of demo/quickstart.sh that needs no training: its picture."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from ranks import ROOT


@pytest.fixture
def demo(monkeypatch):
    """The folder of the demo is on the path, and the modules that come from it are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "demo"))
    yield
    for name in ("settings", "plot"):
        sys.modules.pop(name, None)


def test_the_picture_shows_the_rates_over_all_pairs_once_there_is_a_test(demo, glyphs, tmp_path, capsys):
    import plot

    records = [{"event": "train", "step": step, "lr": 0.1, "loss": 9.0 / step} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    words = ["--run", str(tmp_path), "--dataset", str(glyphs), "--output", str(tmp_path / "result.png")]
    assert plot.main(words) == 0 and "only the loss is drawn" in capsys.readouterr().err
    issame = np.array([label == 1 for label in plot.load_verification(str(glyphs / "glyphs.bin"), (3, 32, 32)).issame])
    np.savez(tmp_path / "glyphs_pairs.npz", similarity=np.linspace(-1, 1, len(issame)), issame=issame)
    rates = {far: {"tar": 0.5, "low": 0.4, "high": 0.6, "threshold": 0.3} for far in ("1e-1", "1e-3", "1e-2")}
    test = {"glyphs": {"accuracy": 0.9, "std": 0.01}, "held_out": {"at_far": rates}}
    (tmp_path / "test.json").write_text(json.dumps(test))
    assert plot.rates_of(test)[0].tolist() == [1e-3, 1e-2, 1e-1]
    assert plot.main(words) == 0 and not capsys.readouterr().err
    assert Image.open(tmp_path / "result.png").size == (1800, 600)
