"""Files of weights: those of PyTorch 2.13 in `data/`, others, and hostile ones.

`data/zip.pt` and `data/legacy.pt` hold the tensors of `REFERENCE`; torch.save wrote them, the second one with
`_use_new_zipfile_serialization=False`.
"""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save_file
from torch_files import Call, Global, Named, dump, write_archive, write_legacy, write_zip

from plsc.errors import ConfigError
from plsc.weights.importing import open_weights
from plsc.weights.paddle_file import PaddleFile
from plsc.weights.safetensors_file import SafetensorsFile
from plsc.weights.torch_file import TorchFile

DATA = Path(__file__).parent / "data"


def contents(weights):
    with weights:
        return {name: weights.read(name) for name in weights}


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pt"])
def test_the_files_of_pytorch_hold_what_it_wrote(name):
    found = contents(TorchFile(DATA / name))
    with np.load(DATA / "reference.npz") as reference:
        assert set(found) == set(reference)
        for key, values in reference.items():
            assert found[key].dtype == values.dtype and found[key].shape == values.shape, key
            assert np.array_equal(found[key], values), key
    assert found["b"].dtype == np.float32  # saved as bfloat16


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0\n"), min_size=1, max_size=8),
        st.sampled_from(["<f4", "<f2", "<i8"]).flatmap(
            lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0, max_dims=3, max_side=4))
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([write_zip, write_legacy]),
)
def test_what_is_written_is_read(tmp_path_factory, state, write):
    path = tmp_path_factory.mktemp("weights") / "net.pt"
    write(path, state)
    found = contents(TorchFile(path))
    assert list(found) == list(state)
    for name, values in state.items():
        assert np.array_equal(found[name], values, equal_nan=True) and found[name].shape == values.shape


def test_the_dicts_of_a_training_are_joined_by_dots(tmp_path):
    training = {"epoch": 3, "net": {"w": paddle.ones([2, 3])}, "list": [paddle.zeros([1])], "rate": 0.1, "name": None}
    paddle.save(training, str(tmp_path / "a.pdparams"))
    assert PaddleFile(tmp_path / "a.pdparams").shapes == {"net.w": (2, 3), "list.0": (1,)}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_the_files_of_paddle_hold_what_it_wrote(tmp_path, protocol):
    network = paddle.nn.Sequential(paddle.nn.Linear(3, 2), paddle.nn.BatchNorm1D(2))
    path = tmp_path / "net.pdparams"
    paddle.save(network.state_dict(), str(path), protocol=protocol)
    found = contents(PaddleFile(path))
    assert set(found) == set(network.state_dict())
    assert all(np.array_equal(found[name], tensor.numpy()) for name, tensor in network.state_dict().items())


def test_safetensors_of_any_program(tmp_path):
    state = {"a": np.arange(6, dtype="float32").reshape(2, 3), "half": np.ones(3, "float16")}
    save_file(state, tmp_path / "net.safetensors")
    found = contents(SafetensorsFile(tmp_path / "net.safetensors"))
    assert all(np.array_equal(found[name], values) for name, values in state.items())
    assert SafetensorsFile(tmp_path / "net.safetensors").of_torch
    save_file({"bn._mean": np.ones(3, "float32")}, tmp_path / "paddle.safetensors")
    assert not SafetensorsFile(tmp_path / "paddle.safetensors").of_torch
    header = b'{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    bits = np.array([0x3F80, 0xC000], "<u2").tobytes()
    (tmp_path / "b.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bits)
    assert contents(SafetensorsFile(tmp_path / "b.safetensors"))["x"].tolist() == [1.0, -2.0]


FLOATS = ("storage", Global("torch", "FloatStorage"), "0", "cpu", 4)


def tensor(storage=FLOATS, offset=0, shape=(4,), strides=(1,)):
    """A pickle with one tensor, whose storage has 4 elements unless it says otherwise."""

    arguments = (Named(storage), offset, shape, strides, False, None)
    return dump({"w": Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)})


def doubled(times):
    """A pickle of lists that hold the list before them twice."""
    return b"]" + b"".join(b"q%c0](h%ch%ce" % (n, n, n) for n in range(times)) + b"."


def copies(times):
    """Instructions that make copies of what place 1 of the memo holds."""
    return b"".join(b"ctorch\nSize\nh\x01\x85R0" for _ in range(times))


HOSTILE = {
    "runs a command": (dump(Call(Global("os", "system"), ("touch ran",))), "asks for os.system"),
    "evaluates": (dump({"w": Call(Global("builtins", "eval"), ("1",))}), "asks for builtins.eval"),
    "loads a library": (dump(Call(Global("torch.ops", "load_library"), ("x.so",))), "torch.ops.load_library"),
    "an object of a class": (dump(Global("torch.nn.modules.linear", "Linear")), "save the state_dict"),
    "larger than its storage": (tensor(shape=(5,)), "larger than its storage"),
    "beyond its storage": (tensor(offset=1), "larger than its storage"),
    "before its storage": (tensor(offset=-1), "not a view"),
    "a stride of zero": (tensor(shape=(100, 4), strides=(0, 1)), "larger than its storage"),
    "a negative stride": (tensor(strides=(-1,)), "not a view"),
    "a huge shape": (tensor(shape=(1 << 62, 1 << 62)), "cannot be read as weights"),
    "shapes that are no numbers": (tensor(shape=("4",)), "not a view"),
    "a storage of a class": (tensor(storage=("storage", Global("os", "system"), "0", "cpu", 4)), "os.system"),
    "no storage": (tensor(storage=("module", 1)), "not a storage"),
    "a storage that is missing": (tensor(storage=("storage", Global("torch", "FloatStorage"), "9", "cpu", 4)), "9"),
    "a storage elsewhere": (
        tensor(storage=("storage", Global("torch", "FloatStorage"), "../../data.pkl", "cpu", 4)), "data.pkl",
    ),
    "no tensors": (dump({"epoch": 1}), "holds no tensors"),
    "cut": (dump({"w": 1})[:-3], "ends too early"),
    "a persistent name as text": (b"Pstorage\n.", "instruction"),
    "an instance of a class": (b"(ios\nsystem\n.", "instruction"),
    "nested deeply": (b"(" * 5000 + b".", "nested"),
    "tuples in each other": (b")" + b"\x85" * 100_000 + b".", "in each other"),
    "a list that holds itself": (b"]q\x00h\x00a.", "in each other"),
    "a list that holds a list twice, forty times": (
        doubled(40), "in each other",
    ),
    "copies of a long list": (b"]q\x00(" + b"N" * 100_000 + b"eq\x01" + copies(2_000) + b".", "larger than the file"),
    "a long step of an axis of one value": (tensor(shape=(1, 4), strides=(1 << 62, 1)), None),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line_or_read_as_far_as_they_are_sound(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    text, words = HOSTILE[name]
    write_archive(tmp_path / "net.pt", text, {"0": bytes(16)})
    if words is None:
        assert list(contents(TorchFile(tmp_path / "net.pt"))) == ["w"]
        return
    with pytest.raises(ConfigError, match=words) as caught:
        contents(TorchFile(tmp_path / "net.pt"))
    assert "\n" not in str(caught.value) and str(tmp_path / "net.pt") in str(caught.value)
    assert not os.path.exists("ran")


def test_the_storages_of_a_short_file_are_refused(tmp_path):
    write_archive(tmp_path / "net.pt", tensor(), {"0": bytes(15)})
    with pytest.raises(ConfigError, match="another size than its tensors"):
        TorchFile(tmp_path / "net.pt")
    write_legacy(tmp_path / "old.pt", {"w": np.ones(4, "f4")})
    whole = (tmp_path / "old.pt").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "old.pt").write_bytes(whole[:length])
        with pytest.raises(ConfigError, match="cannot be read as weights|holds no tensors"):
            contents(TorchFile(tmp_path / "old.pt"))


def test_other_archives_are_refused(tmp_path):
    path = tmp_path / "net.pt"
    write_archive(path, tensor(), {"0": bytes(16)}, **{"constants.pkl": b"x"})
    with pytest.raises(ConfigError, match="TorchScript"):
        TorchFile(path)
    write_archive(path, tensor(), {"0": bytes(16)}, byteorder=b"big")
    with pytest.raises(ConfigError, match="big-endian"):
        TorchFile(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", tensor())
        archive.writestr("archive/data/0", bytes(1 << 24))
    with pytest.raises(ConfigError, match="compressed"):
        contents(TorchFile(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("else", b"")
    with pytest.raises(ConfigError, match="torch.save has not written"):
        TorchFile(path)


@pytest.mark.parametrize("suffix", [".pt", ".pdparams", ".safetensors", ".onnx"])
def test_files_that_are_none_of_these_are_refused(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    for content in (b"", b"\0", b"not weights at all", pickle.dumps(3), os.urandom(2000)):
        path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            contents(open_weights(path))
            raise ConfigError(f"{path}: an empty ONNX graph has no weights")
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        open_weights(path)
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="not an ordinary file"):
        open_weights(path)
    with pytest.raises(ConfigError, match="expected a file that ends in"):
        (tmp_path / "net.other").write_bytes(b"\0")
        open_weights(tmp_path / "net.other")


def test_without_onnx_the_message_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    (tmp_path / "net.onnx").write_bytes(b"\0")
    with pytest.raises(
        ConfigError, match=r"net.onnx: ONNX files need onnx; run pip install '.\[onnx\]' in the plsc clone"
    ):
        open_weights(tmp_path / "net.onnx")


_JPEG, _ARCHIVE = b"\xff\xd8\xff\xe0" + bytes(90), b"PK\x03\x04" + bytes(90)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("net.pth", b"", "is an empty file; get the file again"),
        ("net.onnx", b"", "is an empty file"),
        ("net.pth", b"these are notes\n", "is a text file and no file of weights"),
        ("net.onnx", "这是说明\n".encode() * 900, "is a text file"),
        ("net.pdparams", b"<!DOCTYPE html><html>", "is a web page .*download the file itself"),
        ("net.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS.*git lfs pull"),
        ("net.pth", _JPEG, "is a JPEG image"),
        ("photo.jpg", _JPEG, "is a JPEG image"),
        ("net.pth.gz", b"\x1f\x8b\x08", "is a gzip archive .*unpack it, and name the file of weights"),
        ("net.zip", _ARCHIVE, r"is a zip archive .*if torch.save wrote it, let its name end in .pt"),
        ("net.pdparams", _ARCHIVE, "is a zip archive"),
        ("net.pdopt", b"\x80\x02.", "holds the state of an optimizer; name the .pdparams file"),
        ("net.pdiparams", b"\0", "holds weights without names"),
        ("net.weights", b"\0", "expected a file that ends in one of .pt"),
    ],
)
def test_files_of_other_kinds_are_named_as_such(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        open_weights(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(caught.value)


def test_folders_and_missing_files_say_what_to_name(tmp_path):
    (tmp_path / "net.pth").write_bytes(b"")
    for path, words in (
        (tmp_path, "is a folder; name the file in it that holds the weights, such as net.pth"),
        (tmp_path / "nett.pth", "No such file or directory.; did you mean '.*/net.pth'.; check the path"),
        (tmp_path / "0", "is a checkpoint of plsc, which need not be imported"),
    ):
        if path.name == "0":
            path.mkdir()
            for name in ("meta.json", "backbone.safetensors"):
                (path / name).write_text("{}")
        with pytest.raises(ConfigError, match=words):
            open_weights(path)
