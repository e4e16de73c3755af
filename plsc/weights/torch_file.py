"""Reads the files of `torch.save`, in the form of a zip archive (since PyTorch 1.6) and in the one before it.

A file holds a pickle, in which each tensor is a view of a storage: a type, a number of elements, and a key under which
the bytes follow. Neither PyTorch is needed, nor does anything in the pickle run.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Optional

import numpy as np

from plsc.errors import ConfigError
from plsc.machine.bfloat16 import floats_of_bfloat16
from plsc.machine.pickles import DICT_STEPS, PLAIN_STEPS, Stateful, Unpickler, reason
from plsc.weights.source import Weights, damaged, leaves_of, open_file, reading_pickle

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_STEPS = (*PLAIN_STEPS, *DICT_STEPS, "BINPERSID")
_DTYPES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "<u2",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "?",
}  # fmt: skip
_MOST_AXES = 16
_ZIP = b"PK\x03\x04"


class _Kind(NamedTuple):
    """The type of the elements of a storage."""

    name: str


class _Storage(NamedTuple):
    """The bytes that tensors view."""

    kind: str
    key: str
    elements: int


class _Tensor(NamedTuple):
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Dict(dict[Any, Any], Stateful):
    """Stands for an OrderedDict, whose state says which versions of layers wrote it."""

    def __setstate__(self, state: Any) -> None:
        """Takes no state."""


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """Returns what stands for a tensor, after a check that it lies in its storage."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or not all(type(one) is int and one >= 0 for one in numbers):
        raise pickle.UnpicklingError("a tensor is not a view of a storage")
    if len(shape) != len(strides) or len(shape) > _MOST_AXES:
        raise pickle.UnpicklingError("a tensor has wrong strides")
    strides = [stride if size > 1 else 0 for size, stride in zip(shape, strides)]  # an axis of one value has no steps
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
    if math.prod(shape) > storage.elements or math.prod(shape) and last >= storage.elements:
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _size(sizes: Any = ()) -> tuple[Any, ...]:
    return tuple(sizes)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch", "Size"): _size,
    **{(module, name): _Kind(name) for name in _DTYPES for module in ("torch", "torch.cuda")},
}


class _TorchUnpickler(Unpickler):
    """Reads a pickle of PyTorch, and notes the storages in it."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, size, _ALLOWED, _STEPS, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def persistent_load(self, name: Any) -> _Storage:
        """Returns what stands for the storage of a name; raises UnpicklingError for other names."""
        words = name if isinstance(name, tuple) else ()
        if len(words) not in (5, 6) or words[0] != "storage" or not isinstance(words[1], _Kind):
            raise pickle.UnpicklingError("it names something that is not a storage")
        if words[5:] not in ((), (None,)):
            raise pickle.UnpicklingError("a storage is a view of another one, as only PyTorch before 0.4 wrote")
        _, kind, key, _, count = words[:5]
        if not isinstance(key, str) or type(count) is not int or count < 0:
            raise pickle.UnpicklingError("a storage has no key or no size")
        found = _Storage(kind.name, key, count)
        if self.storages.setdefault(key, found) != found:
            raise pickle.UnpicklingError(f"the storage {key!r} has two types or sizes")
        return found


def _reason(problem: Exception) -> str:
    told = isinstance(problem, (zipfile.BadZipFile, KeyError)) and str(problem)
    return told or reason(problem)


class TorchFile(Weights):
    """The tensors of a file of `torch.save`: a state dict, or dicts of them, whose names are joined by dots.

    Args:
        path: The file.

    Raises:
        ConfigError: It is no such file, or holds more than tensors and plain values.
    """

    of_torch = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_file(path)
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise
        self._last: tuple[Optional[str], np.ndarray] = (None, np.empty(0))

    def _open(self) -> None:
        with reading_pickle(self.path, "torch.save", _reason):
            begin = self._file.read(len(_ZIP))
            self._file.seek(0)
            self._zip = zipfile.ZipFile(self._file) if begin == _ZIP else None
            content = self._read_zip() if self._zip is not None else self._read_legacy()
            self._tensors = dict(leaves_of(content, lambda thing: thing if isinstance(thing, _Tensor) else None))
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.check_not_empty()

    def _read_zip(self) -> Any:
        archive = self._zip
        assert archive is not None
        pickles = [one for one in archive.namelist() if one.endswith("/data.pkl") and one.count("/") == 1]
        if len(pickles) != 1:
            raise ConfigError(
                f"{self.path}: is a zip archive that torch.save has not written; unpack it, and name the file of "
                "weights that it holds"
            )
        self._root = pickles[0].rpartition("/")[0]
        if f"{self._root}/constants.pkl" in archive.namelist():
            raise ConfigError(
                f"{self.path}: holds a program of TorchScript, which is not run; save the state_dict of the network "
                "with torch.save"
            )
        order = f"{self._root}/byteorder"
        if order in archive.namelist() and self._entry(order) != b"little":
            raise zipfile.BadZipFile("written on a big-endian machine")
        info = archive.getinfo(pickles[0])
        unpickler = _TorchUnpickler(io.BytesIO(self._entry(pickles[0])), info.file_size)
        content = unpickler.load()
        for key, storage in unpickler.storages.items():
            size = archive.getinfo(f"{self._root}/data/{key}").file_size
            if size != storage.elements * np.dtype(_DTYPES[storage.kind]).itemsize:
                raise pickle.UnpicklingError("a storage has another size than its tensors")
        return content

    def _entry(self, name: str) -> bytes:
        """Returns the bytes of an entry of the archive, which cannot be more than the file has."""
        assert self._zip is not None
        info = self._zip.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > os.fstat(self._file.fileno()).st_size:
            raise zipfile.BadZipFile(f"{name} is compressed, which torch.save never does")
        return self._zip.read(info)

    def _read_legacy(self) -> Any:
        size = os.fstat(self._file.fileno()).st_size

        def load() -> tuple[Any, dict[str, _Storage]]:
            unpickler = _TorchUnpickler(self._file, size)  # type: ignore[arg-type]
            return unpickler.load(), unpickler.storages

        magic, protocol, machine = load()[0], load()[0], load()[0]
        if magic != _MAGIC or protocol != _PROTOCOL:
            raise pickle.UnpicklingError("torch.save has not written it")
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise pickle.UnpicklingError("written on a big-endian machine")
        content, storages = load()
        keys = load()[0]
        self._places: dict[str, int] = {}
        for key in keys:
            storage = storages[key]
            (count,) = struct.unpack("<q", self._file.read(8))
            if count != storage.elements:
                raise pickle.UnpicklingError("a storage has another size than its tensors")
            self._places[key] = self._file.tell()
            end = self._file.tell() + count * np.dtype(_DTYPES[storage.kind]).itemsize
            if end > size:
                raise EOFError
            self._file.seek(end)
        if set(storages) - set(self._places):
            raise EOFError
        return content

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor; see `Weights.read`."""
        tensor = self._tensors[name]
        elements = self._elements(tensor.storage)
        strides = tuple(stride * elements.itemsize for stride in tensor.strides)
        view = np.lib.stride_tricks.as_strided(elements[tensor.offset :], tensor.shape, strides, writeable=False)
        view = np.ascontiguousarray(view).reshape(tensor.shape)
        return floats_of_bfloat16(view) if tensor.storage.kind == "BFloat16Storage" else view

    def _elements(self, storage: _Storage) -> np.ndarray:
        """Returns the elements of a storage, of which the last one is kept, because tensors may share it."""
        if self._last[0] != storage.key:
            dtype = np.dtype(_DTYPES[storage.kind])
            try:
                if self._zip is not None:
                    data = self._entry(f"{self._root}/data/{storage.key}")
                else:
                    self._file.seek(self._places[storage.key])
                    data = self._file.read(storage.elements * dtype.itemsize)
                if len(data) < storage.elements * dtype.itemsize:
                    raise EOFError
            except (zipfile.BadZipFile, KeyError, OSError, EOFError, NotImplementedError, RuntimeError) as problem:
                raise damaged(self.path, str(problem) or "it ends too early") from None
            self._last = storage.key, np.frombuffer(data, dtype, storage.elements)
        return self._last[1]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
