"""Weights of other programs in networks of plsc, in checkpoints, and at the beginning of a training.

Parity with PyTorch itself is measured by `tests/benchmarks/pretrained.py`, which needs PyTorch.
"""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from torch_files import named_as_arcface, write_legacy, write_zip

from plsc import Entry, Predictor, cli
from plsc.config import Pixels
from plsc.errors import CheckpointError, ConfigError
from plsc.models import build_model
from plsc.weights.importing import import_weights, load_pretrained, open_weights
from plsc.weights.names import Network, network_of

SIDE, EMB = 16, 8
SHAPE = (3, SIDE, SIDE)


@pytest.fixture(scope="module")
def network():
    """Returns an IResNet18 with weights and statistics that are all different."""
    model = build_model("IResNet18", EMB, SHAPE)
    rng = np.random.default_rng(0)
    for name, tensor in model.state_dict().items():
        spread = rng.uniform(0.5, 1.5, tensor.shape) if "variance" in name else rng.normal(0, 0.05, tensor.shape)
        tensor.set_value((tensor.numpy() * (0 if "_mean" in name or "_variance" in name else 1) + spread).astype("f4"))
    model.eval()
    return model


@pytest.fixture(scope="module")
def arcface(network):
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return named_as_arcface(state, (2, 2, 2, 2))


def embed(model, images):
    with paddle.no_grad():
        return model(paddle.to_tensor(images)).numpy()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(3, *SHAPE)).astype("f4")


@pytest.mark.parametrize("prefix", ["", "module.", "state_dict_backbone.module."])
def test_a_resnet_of_arcface_torch_computes_the_same(tmp_path, network, arcface, images, prefix):
    path, model = tmp_path / "backbone.pth", build_model("IResNet18", EMB, SHAPE)
    state = {prefix + name: values for name, values in arcface.items()}
    if prefix.startswith("state"):
        state["state_optimizer.state.0.momentum_buffer"] = np.zeros(3, "f4")
    (write_legacy if prefix == "module." else write_zip)(path, state)
    with open_weights(path) as weights:
        assert network_of(weights) == Network("IResNet18", EMB, SIDE)
    matching = load_pretrained(path, model, Pixels(std=128))
    assert not matching.missing and not matching.unused
    model.eval()
    assert np.array_equal(embed(model, images), embed(network, images))


def test_files_of_plsc_2_and_of_plsc_itself(tmp_path, network, arcface, images):
    renamed = {"running_mean": "_mean", "running_var": "_variance"}
    state = {}
    for name, values in arcface.items():
        layer, _, kind = name.rpartition(".")
        kind = "_weight" if layer.endswith("prelu") else renamed.get(kind, kind)
        state[f"{layer}.{kind}"] = paddle.to_tensor(values.T if name == "fc.weight" else values)
    state["head.weight"] = paddle.ones([EMB, 5])
    paddle.save(state, str(tmp_path / "net.pdparams"))
    save_file({name: tensor.numpy() for name, tensor in network.state_dict().items()}, tmp_path / "own.safetensors")
    for name in ("net.pdparams", "own.safetensors"):
        model = build_model("IResNet18", EMB, SHAPE)
        load_pretrained(tmp_path / name, model, Pixels(std=128))
        model.eval()
        assert np.array_equal(embed(model, images), embed(network, images)), name


def test_pixels_of_another_scale_and_order_are_made_up_for(tmp_path, network, arcface, images):
    write_zip(tmp_path / "net.pth", arcface)
    model = build_model("IResNet18", EMB, SHAPE)
    load_pretrained(tmp_path / "net.pth", model, Pixels(std=127.5, order="bgr"))
    model.eval()
    theirs = images[:, ::-1] * np.float32(128 / 127.5)
    np.testing.assert_allclose(embed(model, images), embed(network, theirs), rtol=1e-3, atol=1e-3)


def test_what_does_not_fit_is_named(tmp_path, arcface):
    path = tmp_path / "net.pth"
    write_zip(path, arcface)
    with pytest.raises(ConfigError, match=r"none of its .* tensors fits.*seems to hold a IResNet18"):
        load_pretrained(path, build_model("ViT", EMB, SHAPE), Pixels())
    with pytest.raises(ConfigError, match=r"do not fit the network: blocks.*a IResNet18 of embedding size 8; choose"):
        load_pretrained(path, build_model("IResNet34", EMB, SHAPE), Pixels())
    with pytest.raises(ConfigError, match=r"fc.weight \(the file has \[512, 8\] instead of \[512, 9\]\)"):
        load_pretrained(path, build_model("IResNet18", 9, SHAPE), Pixels())
    write_zip(path, {**arcface, "extra.weight": np.ones(3, "f4")})
    with pytest.raises(ConfigError, match=r"extra.weight \(the network does not have it\)"):
        load_pretrained(path, build_model("IResNet18", EMB, SHAPE), Pixels())
    assert load_pretrained(path, build_model("IResNet18", EMB, SHAPE), Pixels(), strict=False).unused == [
        "extra.weight"
    ]
    write_zip(path, {**arcface, "fc.bias": np.full(EMB, np.nan, "f4")})
    with pytest.raises(ConfigError, match="fc.bias are not finite"):
        load_pretrained(path, build_model("IResNet18", EMB, SHAPE), Pixels())


def test_an_import_is_a_checkpoint_that_commands_take(tmp_path, network, arcface, images, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_zip(tmp_path / "net.pth", arcface)
    centres = np.random.default_rng(2).normal(size=(7, EMB)).astype("f4")
    write_zip(tmp_path / "fc_0.pt", {"weight": centres[:4]})
    write_zip(tmp_path / "fc_1.pt", {"weight": centres[4:]})
    command = ["import-weights", "net.pth", "net", "--std", "128"]
    assert cli.main([*command, "--head", "fc_0.pt", "fc_1.pt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["emb_dim"], found["classes"]) == ("IResNet18", EMB, 7)
    saved = load_file(tmp_path / "net" / "dist@head@rank@00000.safetensors")
    assert np.array_equal(saved["weight"], centres)
    assert cli.main(command) == 1 and "already exists; name a new folder" in capsys.readouterr().err
    assert cli.main([*command[:2], "alone", "--std", "128"]) == 0
    assert cli.main(["export", "--checkpoint", "alone", "--output", "exported"]) == 0
    exported = Predictor("exported")
    pixels = np.random.default_rng(3).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    own = embed(network, (pixels.transpose(0, 3, 1, 2).astype("f4") - 127.5) / 128)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    found = exported.embed(list(pixels))
    np.testing.assert_allclose(found / np.linalg.norm(found, axis=1, keepdims=True), own, atol=1e-5)


class Inside(paddle.nn.Layer):
    """A network of the user's own, whose layers have names that other programs use as prefixes."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = paddle.nn.Linear(12, 5), paddle.nn.Linear(5, EMB)


def test_a_network_of_the_users_own_is_matched_by_its_names(tmp_path):
    saved, made = Inside(), Inside()
    paddle.save(saved.state_dict(), str(tmp_path / "own.pdparams"))
    assert not load_pretrained(tmp_path / "own.pdparams", made, Pixels()).missing
    assert all(np.array_equal(saved.state_dict()[name].numpy(), one.numpy()) for name, one in made.state_dict().items())


def test_networks_made_by_function_calls_and_of_another_size(tmp_path, capsys):
    model = build_model("GlyphNet", 16, (3, 32, 32))
    model.build((3, 32, 32))
    paddle.save(model.state_dict(), str(tmp_path / "net.pdparams"))
    command = ["import-weights", str(tmp_path / "net.pdparams"), str(tmp_path / "net"), "--model", "GlyphNet"]
    assert cli.main([*command, "--emb", "16", "--image-shape", "3,32,32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["emb_dim"] == 16


def test_what_cannot_be_imported_ends_in_one_line(tmp_path, arcface, capsys):
    write_zip(tmp_path / "net.pth", arcface)
    write_zip(tmp_path / "nan.pt", {"weight": np.full((3, EMB), np.nan, "f4")})
    write_zip(tmp_path / "none.pt", {"weight": np.zeros((0, EMB), "f4")})
    command = ["import-weights", str(tmp_path / "net.pth"), str(tmp_path / "net")]
    for options, words in (
        (["--head", str(tmp_path / "nan.pt")], "class centres are not finite"),
        (["--head", str(tmp_path / "none.pt")], "holds no class centres"),
        (["--std", "0"], "std"), (["--std", "nan"], "std"), (["--emb", "9"], "instead of"),
    ):  # fmt: skip
        assert cli.main([*command, *options]) == 1 and words in capsys.readouterr().err, options
        assert not (tmp_path / "net").exists()
    import_weights(tmp_path / "net.pth", tmp_path / "alone")
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "a.png")
    for other in (["classify", "--checkpoint", str(tmp_path / "alone"), str(tmp_path / "a.png")],
                  ["export", "--checkpoint", str(tmp_path / "alone"), "--output", str(tmp_path / "e"),
                   "--with-classes"]):  # fmt: skip
        assert cli.main(other) == 1 and "without class centres" in capsys.readouterr().err


def test_training_begins_with_the_weights(tmp_path, arcface, glyphs, caplog):
    write_zip(tmp_path / "net.pth", arcface)

    def entry():
        ins = Entry()
        ins.set_dataset_dir(str(glyphs))
        ins.set_class_num(12)
        ins.set_image_shape(SHAPE)
        ins.set_emb_size(EMB)
        ins.set_model_name("IResNet18")
        ins.set_train_epochs(1)
        ins.set_lr(1e-30)
        ins.set_with_test(False)
        ins.set_model_save_dir(str(tmp_path / "output"))
        return ins

    ins = entry()
    ins.set_pretrained(tmp_path / "net.pht", std=128)
    ins.set_dataset_dir(str(tmp_path / "no data yet"))  # what is missing is found before the data is opened
    with pytest.raises(ConfigError, match=r"net.pht: cannot be read.*did you mean '.*/net.pth'\?"):
        ins.train()
    ins = entry()
    ins.set_pretrained(tmp_path / "net.pth", std=128)
    ins.train()
    assert "weights from" in caplog.text and "the head is fresh" in caplog.text
    saved = load_file(tmp_path / "output" / "0" / "backbone.safetensors")
    assert np.array_equal(saved["fc.weight"], arcface["fc.weight"].T)  # the rate is next to nothing
    ins.set_checkpoint_dir(str(tmp_path / "output" / "0"))
    with pytest.raises(ConfigError, match="both say which weights to begin with"):
        ins.train()
    import_weights(tmp_path / "net.pth", tmp_path / "alone")
    ins = entry()
    ins.set_checkpoint_dir(str(tmp_path / "alone"))
    with pytest.raises(CheckpointError, match=r"without class centres; call set_head_init\('fresh'\)"):
        ins.train()
    ins.set_head_init("fresh")
    ins.train()


def test_onnx_files_whose_names_are_gone_are_read_by_the_order_of_their_layers(tmp_path, network, images):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    nodes, weights = [], []

    def add(kind, *values, **attributes):
        names = [f"w{len(weights) + number}" for number in range(len(values))]
        weights.extend(numpy_helper.from_array(np.ascontiguousarray(one), name) for one, name in zip(values, names))
        nodes.append(helper.make_node(kind, ["x", *names], ["x"], **attributes))

    def folded(conv, norm):
        factor = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}._variance"] + 1e-5)
        shift = state[f"{norm}.bias"] - state[f"{norm}._mean"] * factor
        add("Conv", state[f"{conv}.weight"] * factor[:, None, None, None], shift)

    def norm(name, bias="bias"):
        values = (state[f"{name}.weight"], state.get(f"{name}.{bias}", state["features_bias"]))
        add("BatchNormalization", *values, state[f"{name}._mean"], state[f"{name}._variance"])

    folded("stem.0", "stem.1")
    add("PRelu", state["stem.2._weight"][:, None, None])
    for block in range(8):
        norm(f"blocks.{block}.residual.0")
        folded(f"blocks.{block}.residual.1", f"blocks.{block}.residual.2")
        add("PRelu", state[f"blocks.{block}.residual.3._weight"][:, None, None])
        folded(f"blocks.{block}.residual.4", f"blocks.{block}.residual.5")
        if block % 2 == 0:
            folded(f"blocks.{block}.shortcut.0", f"blocks.{block}.shortcut.1")
        nodes.append(helper.make_node("Add", ["x", "x"], ["x"]))
    norm("norm")
    add("Gemm", state["fc.weight"].T, state["fc.bias"], transB=1)
    norm("features")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [value], [value], weights)), str(path))
    report = import_weights(path, tmp_path / "net", pixels=Pixels(std=128))
    assert (report.model, report.emb_dim, report.image_shape) == ("IResNet18", EMB, SHAPE)
    model = build_model("IResNet18", EMB, SHAPE)
    load_pretrained(path, model, Pixels(std=128))
    model.eval()
    np.testing.assert_allclose(embed(model, images), embed(network, images), rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match="has .* where the network has|more layers than"):
        load_pretrained(path, build_model("IResNet34", EMB, SHAPE), Pixels())
