"""Networks whose activations are computed again train to the bit as they do without."""

import contextlib
import json

import numpy as np
import paddle
import pytest
from paddle import nn
from safetensors.numpy import load_file

from plsc import Entry, amp
from plsc.config import MixedPrecision
from plsc.engine.forecast import backbone_size
from plsc.errors import ConfigError
from plsc.layers.convolution import fast_convolutions
from plsc.models import GlyphNet, ViT, build_model
from plsc.models.base_model import BaseModel, build
from plsc.models.mobilefacenet import ArcFaceMobileFaceNet
from plsc.models.recompute import Recompute

SHAPE = (3, 16, 16)


class Drawing(nn.Layer):
    """A layer that draws from NumPy, and whose buffer counts the forward passes and scales the output."""

    def __init__(self):
        super().__init__()
        self.register_buffer("passes", paddle.zeros([1]))

    def forward(self, x):
        self.passes.add_(paddle.ones([1]))
        return x * self.passes * float(np.random.rand())


def simple_layers():
    convolution = nn.Conv2D(3, 16, 3)
    convolution.weight.stop_gradient = True
    return nn.Sequential(
        convolution, nn.BatchNorm2D(16), nn.ReLU(), nn.Dropout(0.3), nn.Conv2D(16, 32, 3, stride=2), nn.BatchNorm2D(32),
        Drawing(), nn.PReLU(), nn.Dropout2D(0.2), nn.AdaptiveAvgPool2D(2), nn.Flatten(), nn.Linear(128, 8),
    )  # fmt: skip


def nested():
    return nn.Sequential(nn.Sequential(simple_layers()[:7], nn.Sequential(nn.Flatten(), nn.Linear(1152, 8))), nn.ReLU())


def glyph_net():
    return GlyphNet(8, SHAPE, filters=(4, 8, 8))


def resnet():
    return build_model("ResNet18", 8, SHAPE)


def mobile():
    return build_model("MobileFaceNet", 8, SHAPE)


def mobile_of_arcface():
    return ArcFaceMobileFaceNet(8, SHAPE, (2, 1, 2, 1))


def vit():
    return ViT(8, SHAPE, blocks=2)


NETWORKS = {
    glyph_net: "float32", resnet: "float16", mobile: "float32", mobile_of_arcface: "bfloat16", vit: "float32",
    simple_layers: "float32", nested: "float16",
}  # fmt: skip


def trained(model, active, computing):
    """Returns the output, the gradients of two accumulated batches, and all weights and statistics, as bytes."""
    paddle.seed(7), np.random.seed(3)
    images = paddle.to_tensor(np.random.default_rng(0).normal(size=(4, *SHAPE)).astype("float32"))
    for _ in range(2):
        with active(), computing():
            output = model(images)
        output.backward(paddle.sin(paddle.arange(output.size, dtype="float32")).reshape(output.shape))
    gradients = {f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = {**model.state_dict(), **gradients, "output": output, "next": paddle.rand([2])}
    return {name: tensor.numpy().tobytes() for name, tensor in found.items()}


@pytest.mark.core
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_gradients_statistics_and_random_numbers_are_the_same_to_the_bit(network):
    settings = MixedPrecision(
        NETWORKS[network] != "float32", dtype=NETWORKS[network].replace("32", "16"), simulate=True
    )

    @contextlib.contextmanager
    def computing():
        with fast_convolutions(), amp.autocast(settings):
            yield

    results = []
    for recompute in (False, True):
        paddle.seed(0)
        model = network()
        build(model, SHAPE)
        active = Recompute(model, computing).active if recompute else contextlib.nullcontext
        results.append(trained(model, active, computing))
        assert "forward" not in vars(model)
    assert results[0].keys() == results[1].keys()
    assert not [name for name, value in results[0].items() if results[1][name] != value]


@pytest.mark.core
def test_a_second_backward_pass_is_an_error_rather_than_a_crash():
    model = glyph_net()
    with Recompute(model, contextlib.nullcontext).active():
        output = model(paddle.randn([4, *SHAPE]))
    output.backward(retain_graph=True)
    with pytest.raises(Exception, match="backward has already run"):
        output.backward()


def test_two_ranks_train_to_the_bit_as_without(ranks, glyphs, tmp_path):
    """One network is built in, and has steps that overflow; the other is custom, with accumulation and dropout."""
    ranks("train_recomputed.py", 2, glyphs, tmp_path)
    for network in ("GlyphNet", "custom"):
        losses, tensors = [], []
        for recompute in (False, True):
            output = tmp_path / f"{network} {recompute}"
            records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
            losses.append([record.get("loss") for record in records])
            files = [load_file(path) for path in sorted((output / "3").glob("*.safetensors"))]
            tensors.append([(name, value.tobytes()) for file in files for name, value in sorted(file.items())])
        assert losses[0] == losses[1] and isinstance(losses[0][-1], float) and len(losses[0]) > 4
        assert tensors[0] == tensors[1] and len(tensors[0]) > 10


class Plain(BaseModel):
    """A custom model without a Sequential."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, 4)

    def build_network(self, input, label, is_train):
        return self.fc(input.flatten(1))


class OneByOne(Plain):
    """A custom model that calls the layers of its Sequential itself."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), nn.ReLU())

    def build_network(self, input, label, is_train):
        for layer in self.layers:
            input = layer(input)
        return super().build_network(input, label, is_train)


class InPlace(OneByOne):
    """A custom model with a part that changes its input."""

    def build_network(self, input, label, is_train):
        self.layers[0].forward = lambda x: x.add_(paddle.ones([1]))
        return self.fc(self.layers(input.flatten(1)))


@pytest.mark.parametrize(
    "model, message",
    [
        (Plain, "Plain has no paddle.nn.Sequential.*put the blocks of the model into an nn.Sequential"),
        (OneByOne, "OneByOne holds an nn.Sequential, but its forward calls the layers in it one by one"),
        (
            InPlace,
            "a part of an nn.Sequential of InPlace does not turn one tensor into another, or changes it in place",
        ),
    ],
)
def test_a_network_that_cannot_is_refused(model, message):
    ins = Entry(settings={"num_classes": 3, "image_shape": list(SHAPE), "emb_dim": 4, "with_test": False})
    ins.set_model(model())
    ins.set_model_save_dir(None)
    ins.set_train_epochs(1)
    ins.set_recompute(True)
    ins.train_reader = [[(np.zeros(SHAPE, "float32"), 0)]]
    with pytest.raises(ConfigError, match=rf"set_recompute\(True\): .*{message}".replace(".*a part", "a part")):
        ins.train()


def test_the_forecast_counts_inputs_of_parts_and_the_largest_part():
    layers = [[nn.Conv2D(3, 3, 3, padding=1), nn.BatchNorm2D(3), nn.Sigmoid(), nn.Sigmoid()] for _ in range(4)]
    model = nn.Sequential(*(nn.Sequential(*block) for block in layers))
    image = 4 * 3 * 16 * 16
    kept, less = (backbone_size(model, SHAPE, recompute).activations for recompute in (False, True))
    assert (kept, less) == (13 * image, 10 * image)  # 4 inputs; 3 values of a block, and their gradients


def test_the_forecast_of_a_model_that_has_not_run_is_the_same():
    sizes = [backbone_size(glyph_net(), SHAPE, recompute=True).activations for _ in range(2)]
    model = glyph_net()
    build(model, SHAPE)
    assert sizes == 2 * [backbone_size(model, SHAPE, recompute=True).activations] and sizes[0] > 0
