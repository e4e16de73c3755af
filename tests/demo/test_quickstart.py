"""The parts of demo/quickstart.sh that need no training: its network, and its picture."""

import json
import sys

import numpy as np
import paddle
import pytest
from PIL import Image
from ranks import ROOT

from plsc.models.base_model import build


@pytest.fixture
def demo(monkeypatch):
    """The folder of the demo is on the path, and the modules that come from it are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "demo"))
    yield
    for name in ("settings", "plot"):
        sys.modules.pop(name, None)


def test_the_network_sees_no_colours(demo):
    import settings

    net = settings.GlyphNet()
    build(net, settings.IMAGE_SHAPE)
    net.eval()
    assert sum(name.startswith("conv2d") for name, _ in net.named_children()) == 9
    rng = np.random.default_rng(0)
    stroke = np.zeros((32, 32))
    stroke[4:28, 8:12] = stroke[8:11, 12:24] = 1
    grounds, inks = rng.uniform(0.4, 1, (2, 6, 3, 1, 1)) * np.array([[1], [-1]])[..., None, None, None]
    grounds[::2], inks[::2] = inks[::2].copy(), grounds[::2].copy()
    images = (grounds + (inks - grounds) * stroke).astype("float32")
    assert len(set(np.sign(inks - grounds).ravel().tolist())) == 2  # light on dark, and dark on light
    found = net(paddle.to_tensor(images)).numpy()
    assert found.shape == (6, settings.EMB_DIM)
    np.testing.assert_allclose(found, np.repeat(found[:1], 6, axis=0), atol=1e-3 * np.abs(found).max())
    other = net(paddle.to_tensor(np.ascontiguousarray(images[:1].transpose(0, 1, 3, 2)))).numpy()
    assert np.abs(other - found[:1]).max() > 0.1 * np.abs(found).max()


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
