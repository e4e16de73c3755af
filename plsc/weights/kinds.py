"""What a path is that was named as a file of weights and is something else, so that a message can say so."""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import Optional

from plsc.checkpoint.folder import BACKBONE, META
from plsc.errors import ConfigError
from plsc.machine.names import near_names

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar")
SUFFIXES = (*TORCH_SUFFIXES, ".pdparams", ".safetensors", ".onnx")
_ZIP = b"PK\x03\x04"
_HEAD_BYTES = 4096
_UNPACK = "unpack it, and name the file of weights that it holds"
# How a file begins, what it is, and what to do.
_BEGINNINGS = (
    (b"version https://git-lfs", "a pointer of Git LFS to the file", "run git lfs pull to get the file itself"),
    (b"<!DOCTYPE", "a web page", "download the file itself"),
    (b"<!doctype", "a web page", "download the file itself"),
    (b"<html", "a web page", "download the file itself"),
    (b"\xff\xd8\xff", "a JPEG image", "name a file of weights"),
    (b"\x89PNG\r\n", "a PNG image", "name a file of weights"),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"\x89HDF\r\n", "an HDF5 file, as Keras writes it", "export the network as ONNX"),
)
_ADVICE_OF_SUFFIX = {
    ".pdopt": "holds the state of an optimizer; name the .pdparams file next to it",
    ".pdmodel": "holds a program of Paddle without weights; name a .pdparams file",
    ".pdiparams": "holds weights without names, for Paddle's inference; name a .pdparams file",
}


def check_kind(path: Path) -> None:
    """Checks that a path is a file that can hold weights, as far as its name and its first bytes tell.

    Raises:
        ConfigError: It is missing, a folder, empty, or a file of another kind.
    """
    if path.is_dir():
        raise ConfigError(_of_folder(path))
    suffix = path.suffix.lower()
    if suffix in _ADVICE_OF_SUFFIX:
        raise ConfigError(f"{path}: {_ADVICE_OF_SUFFIX[suffix]}")
    if path.is_file():  # `open_file` words what is wrong with a device or a pipe
        head = _head(path)
        if not head:
            raise ConfigError(f"{path}: is an empty file; get the file again")
        kind = _kind_of(head, path.stat().st_size, suffix)
        if kind is not None:
            raise ConfigError(f"{path}: is {kind[0]} and no file of weights; {kind[1]}")
    elif not os.path.lexists(path):
        raise ConfigError(f"{path}: cannot be read (No such file or directory){near_names(path)}; check the path")
    if suffix not in SUFFIXES:
        raise ConfigError(f"{path}: expected a file that ends in one of {', '.join(SUFFIXES)}")


def _of_folder(path: Path) -> str:
    if (path / META).is_file() and (path / BACKBONE).is_file():
        return (
            f"{path}: is a checkpoint of plsc, which need not be imported; name it with --checkpoint, or train from it "
            "with set_checkpoint_dir"
        )
    try:
        inside = sorted(name for name in os.listdir(path) if name.lower().endswith(SUFFIXES))
    except OSError:
        inside = []
    return f"{path}: is a folder; name the file in it that holds the weights{f', such as {inside[0]}' * bool(inside)}"


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as problem:
        raise ConfigError(f"{path}: cannot be read ({problem.strerror}); check the path") from None


def _kind_of(head: bytes, size: int, suffix: str) -> Optional[tuple[str, str]]:
    """Returns what a file is and what to do; None if it may hold weights."""
    for beginning, kind, advice in _BEGINNINGS:
        if head.startswith(beginning):
            return kind, advice
    if head.startswith(_ZIP) and suffix not in TORCH_SUFFIXES:
        return "a zip archive", f"if torch.save wrote it, let its name end in .pt, and otherwise {_UNPACK}"
    if size < _HEAD_BYTES and head.endswith(b"."):  # perhaps a pickle of protocol 0, which is a text
        return None
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut off
    except UnicodeDecodeError:
        return None
    is_text = len(text) > 1 and all(one.isprintable() or one in "\t\r\n" for one in text)
    return ("a text file", "name a file of weights") if is_text else None
