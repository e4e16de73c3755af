"""Networks that stay as they are embed many images with a program of Paddle's inference library."""

import dataclasses
import os
import sys
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle import nn
from small_models import small_model

from plsc.config import Config
from plsc.evaluation.embedder import Embedder
from plsc.inference import networks, program
from plsc.inference.networks import TrainedNetwork, embed_batch
from plsc.inference.program import faster_run
from plsc.layers.gradients import HAS_GRADIENTS
from plsc.models import build

SHAPE = (3, 16, 16)
CONFIG = Config(image_shape=SHAPE, emb_dim=8)
IMAGES = np.random.default_rng(1).uniform(-1, 1, (5, *SHAPE)).astype("float32")

needs_paddle_3 = pytest.mark.skipif(not HAS_GRADIENTS, reason="networks embed by themselves with Paddle 2")


def network_of(name):
    """Returns a built-in network whose statistics are not those of a new one."""
    paddle.seed(3)
    network = small_model(name, 8, SHAPE)
    build(network, SHAPE)
    network.train()
    with paddle.no_grad():
        network(paddle.to_tensor(IMAGES))
    return network


@dataclasses.dataclass
class Pictures:
    """A collection of so many images."""

    num_images: int

    def pixels(self, number, image_shape, rule):
        return np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype="uint8")


@needs_paddle_3
@pytest.mark.parametrize("name", ["MobileFaceNet", "GlyphNet"])
def test_a_program_gives_the_embeddings_of_the_network(name, capfd):
    network = network_of(name)
    paddle.seed(5)
    expected_number, expected_name = paddle.rand([1]).item(), paddle.utils.unique_name.generate("layer")
    paddle.seed(5)
    run = faster_run(network, SHAPE)
    assert run is not None
    wanted = embed_batch(network, IMAGES)
    assert np.abs(run(IMAGES) - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert np.abs(run(IMAGES[:1]) - wanted[:1]).max() <= 1e-5 * np.abs(wanted).max()
    assert network.training, "the network itself stays in its mode"
    assert paddle.rand([1]).item() == expected_number, "the translation must not draw random numbers"
    after = paddle.utils.unique_name.generate("layer")
    assert int(after.rpartition("_")[2]) == int(expected_name.rpartition("_")[2]) + 1, "later parameters keep names"
    print("after", flush=True)
    print("after", file=sys.stderr, flush=True)
    assert capfd.readouterr() == ("after\n", "after\n"), "Paddle's remarks on the translation are not shown"


class Custom(nn.Layer):
    """A network of a user."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 16 * 16, 8)

    def forward(self, images):
        """Embeds a batch, [B, C, H, W] -> [B, 8]."""
        return self.linear(images.flatten(1))


@needs_paddle_3
def test_only_built_in_networks_that_stay_embed_many_images_with_a_program(monkeypatch):
    calls = []

    def faster(backbone, image_shape):
        calls.append(type(backbone).__name__)
        return lambda images: np.zeros((len(images), 8), "float32")

    monkeypatch.setattr(networks, "faster_run", faster)
    monkeypatch.setattr(networks, "_MANY", 6)
    glyphs = network_of("GlyphNet")
    for network, stays, flip, count, is_faster in (
        (glyphs, True, False, 6, True),
        (glyphs, True, True, 3, True),
        (glyphs, True, False, 5, False),
        (glyphs, False, False, 6, False),
        (Custom(), True, False, 6, False),
    ):
        calls.clear()
        embedder = Embedder(TrainedNetwork(network, CONFIG, stays=stays), CONFIG, flip)
        for number in (count, 1, count):  # The choice depends on the collection alone.
            found = embedder.embed(Pictures(number))
            assert (not found.any()) == (is_faster and number == count)
        reader = SimpleNamespace(splits=False, epoch=lambda number: iter([(IMAGES, np.zeros(5, int))]))
        assert embedder.embed_reader(reader)[0].any(), "readers are embedded by the network"
        assert calls == ["GlyphNet"] * is_faster, "the program is made once"


@needs_paddle_3
@pytest.mark.parametrize("why", ["it is switched off", "it differs", "it cannot be made"])
def test_a_network_embeds_by_itself_where_a_program_is_no_use(monkeypatch, why):
    if why == "it is switched off":
        monkeypatch.setenv("PLSC_ONEDNN", "0")
        monkeypatch.setattr(program, "save_program", None)
    elif why == "it differs":
        run = lambda images: np.full((len(images), 8), np.nan, "float32")  # noqa: E731
        monkeypatch.setattr(program, "save_program", lambda *_: [])
        monkeypatch.setattr(program.runtime, "load_paddle", lambda *_: run)
    else:
        monkeypatch.setattr(paddle.jit, "save", lambda *_, **__: os.stat("/no/such/file"))
    assert faster_run(network_of("GlyphNet"), SHAPE) is None
