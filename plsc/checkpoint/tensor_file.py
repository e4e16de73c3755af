"""safetensors files, written and read in blocks with a checksum each: nothing of a file's size is ever held.

The format is that of the safetensors library (8 bytes of length, a JSON header, the bytes). Its own writer copies all
tensors first, and its reader can check only whole files; a rank that needs a few rows of a large one checks just their
blocks.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import numpy as np

from plsc.errors import CheckpointError

BLOCK_BYTES = 8 << 20
_LARGEST_HEADER = 100 << 20  # as the safetensors library allows

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_CODES = {np.dtype(text): code for code, text in _DTYPES.items()}


class DamagedError(CheckpointError):
    """A file of a checkpoint that is missing, short, changed, or of another checkpoint."""


@dataclass(frozen=True)
class FileSum:
    """What a file must be.

    Attributes:
        size: bytes.
        sha256: of the whole file, hex.
        blocks: sha256 of each `BLOCK_BYTES`, hex; empty where only the whole is known.
    """

    size: int
    sha256: str
    blocks: tuple[str, ...] = ()


@dataclass
class Stream:
    """A tensor that is never held whole: C-contiguous parts along its first axis, in order."""

    dtype: np.dtype
    shape: tuple[int, ...]
    parts: Iterable[np.ndarray]


class _Sums:
    """Checksums of what is written: the whole in one thread and the blocks in another, beside the writing itself."""

    def __init__(self) -> None:
        self._whole, self._block = hashlib.sha256(), hashlib.sha256()
        self._size, self._blocks = 0, list[str]()

    def add_whole(self, data: memoryview) -> None:
        self._whole.update(data)

    def add_blocks(self, data: memoryview) -> None:
        while len(data):
            room = BLOCK_BYTES - self._size % BLOCK_BYTES
            part, data = data[:room], data[room:]
            self._block.update(part)
            self._size += len(part)
            if len(part) == room:
                self._blocks.append(self._block.hexdigest())
                self._block = hashlib.sha256()

    def result(self) -> FileSum:
        if self._size % BLOCK_BYTES:
            self._blocks.append(self._block.hexdigest())
        return FileSum(self._size, self._whole.hexdigest(), tuple(self._blocks))


def write_tensors(
    path: Path, tensors: Mapping[str, Union[np.ndarray, Stream]], metadata: Optional[dict[str, str]] = None
) -> FileSum:
    """Writes one safetensors file and fsyncs it.

    Raises:
        OSError: it cannot be written.
    """
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    # Wider types first, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.dtype.itemsize * math.prod(tensor.shape)
        code = _CODES[np.dtype(tensor.dtype).newbyteorder("<")]
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    sums = _Sums()
    with open(path, "wb", buffering=0) as stream, ThreadPoolExecutor(2, "plsc-checksum") as pool:
        for data in _pieces(struct.pack("<Q", len(text)) + text, [tensors[name] for name in names]):
            tasks = [pool.submit(add, data) for add in (sums.add_whole, sums.add_blocks)]
            try:
                _write_all(stream.fileno(), data)
            finally:
                for task in tasks:
                    task.result()
        os.fsync(stream.fileno())
    return sums.result()


def _pieces(head: bytes, tensors: Iterable[Union[np.ndarray, Stream]]) -> Iterator[memoryview]:
    yield memoryview(head)
    for tensor in tensors:
        for part in tensor.parts if isinstance(tensor, Stream) else [tensor]:
            if part.size:
                data = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
                for first in range(0, len(data), BLOCK_BYTES):
                    yield data[first : first + BLOCK_BYTES]


def _write_all(descriptor: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(descriptor, data) :]


class TensorFile:
    """A safetensors file, read by rows, each block checked before its bytes are used.

    Args:
        expected: what the file must be.

    Attributes:
        bytes_read: so far.

    Raises:
        DamagedError: it is not what is expected; so do the methods.
    """

    def __init__(self, path: Path, expected: FileSum) -> None:
        self.path, self._expected = path, expected
        self.bytes_read = 0
        self._held: tuple[int, bytes] = (-1, b"")
        try:
            self._stream = open(path, "rb", buffering=0)  # noqa: SIM115 - closed in close()
            size = os.fstat(self._stream.fileno()).st_size
        except FileNotFoundError:
            raise DamagedError(f"{path}: missing from the checkpoint; copy it whole or use another one") from None
        except OSError as problem:
            raise DamagedError(f"{path}: cannot be read ({problem.strerror or problem})") from None
        try:
            if size != expected.size:
                raise DamagedError(
                    f"{path}: {size:,} bytes, meta.json says {expected.size:,}: the file is damaged; use another checkpoint"
                )
            if not expected.blocks:
                self._check_whole()
            self._read_header()
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._tensors[name][1]

    def dtype(self, name: str) -> np.dtype:
        """Type of a tensor."""
        return self._tensors[name][0]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def read(self, name: str) -> np.ndarray:
        """A whole tensor."""
        dtype, shape, begin = self._tensors[name]
        return self._bytes(begin, dtype.itemsize * math.prod(shape)).view(dtype).reshape(shape)

    def rows(self, name: str, first: int, last: int) -> Iterator[np.ndarray]:
        """The rows [first, last) of a tensor along its first axis, in parts of about a block."""
        dtype, shape, begin = self._tensors[name]
        a_row = dtype.itemsize * math.prod(shape[1:])
        step = max(1, BLOCK_BYTES // max(1, a_row))
        for start in range(first, last, step):
            end = min(last, start + step)
            part = self._bytes(begin + start * a_row, (end - start) * a_row)
            yield part.view(dtype).reshape(end - start, *shape[1:])

    def _read_header(self) -> None:
        try:
            (length,) = struct.unpack("<Q", self._bytes(0, 8).tobytes())
            if length > min(_LARGEST_HEADER, self._expected.size - 8):
                raise ValueError("its header is too long")
            header = json.loads(self._bytes(8, length).tobytes())
            header.pop("__metadata__", None)
            self._tensors = {name: self._entry(entry, 8 + length) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, struct.error) as problem:
            raise DamagedError(f"{self.path}: not a safetensors file ({problem}); use another checkpoint") from None

    def _entry(self, entry: dict, data: int) -> tuple[np.dtype, tuple[int, ...], int]:
        dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(int(side) for side in entry["shape"])
        begin, end = entry["data_offsets"]
        size = dtype.itemsize * math.prod(shape)
        if min(shape, default=0) < 0 or begin < 0 or end - begin != size or data + end > self._expected.size:
            raise ValueError("its offsets do not fit")
        return dtype, shape, data + begin

    def _bytes(self, begin: int, count: int) -> np.ndarray:
        """`count` bytes from `begin`, of blocks that were checked."""
        result = np.empty(count, np.uint8)
        done = 0
        while done < count:
            number, offset = divmod(begin + done, BLOCK_BYTES)
            block = self._block(number)
            part = block[offset : offset + count - done]
            if not part:
                raise ValueError("it ends too early")
            result[done : done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)
        return result

    def _block(self, number: int) -> bytes:
        if self._held[0] != number:
            size = max(0, min(BLOCK_BYTES, self._expected.size - number * BLOCK_BYTES))
            block = self._read_at(number * BLOCK_BYTES, size)
            blocks = self._expected.blocks
            if blocks and (number >= len(blocks) or hashlib.sha256(block).hexdigest() != blocks[number]):
                raise self._changed()
            self._held = (number, block)
        return self._held[1]

    def _read_at(self, begin: int, size: int) -> bytes:
        try:
            block = os.pread(self._stream.fileno(), size, begin)
        except OSError as problem:
            raise DamagedError(f"{self.path}: cannot be read ({problem.strerror or problem})") from None
        self.bytes_read += len(block)
        if len(block) != size:
            raise self._changed()
        return block

    def _check_whole(self) -> None:
        digest = hashlib.sha256()
        for begin in range(0, self._expected.size, BLOCK_BYTES):
            digest.update(self._read_at(begin, min(BLOCK_BYTES, self._expected.size - begin)))
        if digest.hexdigest() != self._expected.sha256:
            raise self._changed()

    def _changed(self) -> DamagedError:
        return DamagedError(
            f"{self.path}: its sha256 differs from meta.json: the file is damaged, or of another checkpoint; use another one"
        )
