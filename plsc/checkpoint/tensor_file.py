"""safetensors files, written and read in blocks with a checksum each, so that no whole file is ever held in memory.

The format is that of the safetensors library (8 bytes of length, a JSON header, the bytes). That library copies all
tensors before it writes them, and can check only whole files. Here a rank that needs a few rows of a large file checks
only their blocks.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import numpy as np

from plsc.errors import CheckpointError, reason_of
from plsc.machine.bfloat16 import BFLOAT16, bfloat16_of, floats_of_bfloat16
from plsc.machine.files import write_all
from plsc.machine.json_files import as_integers, parse_json

BLOCK_BYTES = 8 << 20
LARGEST_HEADER = 16 << 20  # bytes, for more than 100,000 tensors
_MOST_AXES, _MOST_VALUES = 16, 2**48  # of a tensor; more of them, if one is empty, would be refused by NumPy
_HASHING_THREADS, _READING_THREADS = 2, 2
_flush = getattr(os, "fdatasync", os.fsync)  # macOS has only fsync

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
    "BF16": BFLOAT16.str,
}  # fmt: skip
_CODES = {np.dtype(text): code for code, text in DTYPES.items()}


class DamagedError(CheckpointError):
    """A file of a checkpoint is missing, short, changed, or from another checkpoint."""


def missing(path: Path) -> DamagedError:
    """Returns the error for a missing file of a checkpoint."""
    return DamagedError(f"{path}: missing from the checkpoint; copy the whole checkpoint, or use another one")


@dataclass(frozen=True)
class FileSum:
    """The size and the checksums of a file.

    Attributes:
        size: The size in bytes.
        blocks: The SHA-256 of each block of `BLOCK_BYTES`, in hexadecimal.
    """

    size: int
    blocks: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """The SHA-256 of a file of one block, or of the joined digests of several blocks, in hexadecimal."""
        if len(self.blocks) == 1:
            return self.blocks[0]
        return hashlib.sha256(b"".join(map(bytes.fromhex, self.blocks))).hexdigest()


@dataclass
class Stream:
    """A tensor that is never held in memory as a whole.

    Attributes:
        dtype: Its type. Parts in float32 are rounded where it is `BFLOAT16`.
        shape: Its shape.
        parts: Its C-contiguous parts along the first axis, in order.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    parts: Iterable[np.ndarray]


def write_tensors(
    path: Path, tensors: Mapping[str, Union[np.ndarray, Stream]], metadata: Optional[dict[str, str]] = None
) -> FileSum:
    """Writes a safetensors file so that its bytes outlast a power cut.

    Args:
        path: The file.
        tensors: The tensors by their names.
        metadata: Texts for the header.

    Returns:
        Its size and checksums.

    Raises:
        OSError: It cannot be written.
    """
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    # Wider types come first, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.dtype.itemsize * math.prod(tensor.shape)
        code = _CODES[np.dtype(tensor.dtype).newbyteorder("<")]
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    size, digests = 0, list[Future[str]]()
    buffers = [bytearray(min(BLOCK_BYTES, 8 + len(text) + end)) for _ in range(_HASHING_THREADS + 2)]
    with open(path, "wb", buffering=0) as stream, ThreadPoolExecutor(_HASHING_THREADS + 1, "plsc-checksum") as pool:
        flushed = pool.submit(_flush, stream.fileno())
        pieces = _pieces(struct.pack("<Q", len(text)) + text, [tensors[name] for name in names])
        for block in _blocks(pieces, buffers, digests):
            digests.append(pool.submit(_digest, block))
            write_all(stream.fileno(), block)
            size += len(block)
            if flushed.done():  # the disk writes from the start, and not only once everything is in the cache
                flushed.result()
                flushed = pool.submit(_flush, stream.fileno())
        os.fsync(stream.fileno())
    return FileSum(size, tuple(digest.result() for digest in digests))


def _pieces(head: bytes, tensors: Iterable[Union[np.ndarray, Stream]]) -> Iterator[memoryview]:
    yield memoryview(head)
    for tensor in tensors:
        for part in tensor.parts if isinstance(tensor, Stream) else [tensor]:
            if part.dtype != tensor.dtype and tensor.dtype == BFLOAT16:
                part = bfloat16_of(part)
            if part.size:
                yield np.ascontiguousarray(part).reshape(-1).view(np.uint8).data


def _blocks(
    pieces: Iterable[memoryview], buffers: Sequence[bytearray], digests: Sequence[Future[str]]
) -> Iterator[memoryview]:
    """Yields the pieces as blocks, in buffers that are reused once the digest of their block is known.

    The caller adds a digest to `digests` for each block.
    """
    number, filled = 0, 0
    for piece in pieces:
        while len(piece):
            if not filled and number >= len(buffers):
                digests[number - len(buffers)].result()
            buffer = memoryview(buffers[number % len(buffers)])
            part, piece = piece[: len(buffer) - filled], piece[len(buffer) - filled :]
            buffer[filled : filled + len(part)] = part
            filled += len(part)
            if filled == len(buffer):
                yield buffer
                number, filled = number + 1, 0
    if filled:
        yield memoryview(buffers[number % len(buffers)])[:filled]


def _floats(values: np.ndarray) -> np.ndarray:
    return floats_of_bfloat16(values) if values.dtype == BFLOAT16 else values


def _digest(block: Union[bytes, memoryview]) -> str:
    return hashlib.sha256(block).hexdigest()


def parse_header(
    text: bytes, size: int, dtypes: Mapping[str, str] = DTYPES
) -> dict[str, tuple[np.dtype, tuple[int, ...], int]]:
    """Parses the header of a safetensors file.

    Args:
        text: The JSON text, which follows 8 bytes of length.
        size: Size of the whole file in bytes.
        dtypes: NumPy's name of each type that tensors may have, by its name in the format.

    Returns:
        The type, the shape and the first byte in the file of each tensor, by its name.

    Raises:
        ValueError: The header is damaged. KeyError, TypeError and AttributeError are possible, too.
    """
    header = parse_json(text)
    header.pop("__metadata__", None)
    tensors = {name: _entry(entry, 8 + len(text), size, dtypes) for name, entry in header.items()}
    taken = 0
    for dtype, shape, begin in sorted(tensors.values(), key=lambda tensor: tensor[2]):
        length = dtype.itemsize * math.prod(shape)
        if length and begin < taken:
            raise ValueError("its tensors overlap")
        taken = max(taken, begin + length)
    return tensors


def _entry(entry: dict, data: int, size: int, dtypes: Mapping[str, str]) -> tuple[np.dtype, tuple[int, ...], int]:
    dtype, shape = np.dtype(dtypes[entry["dtype"]]), tuple(as_integers(entry["shape"]))
    if len(shape) > _MOST_AXES or math.prod(filter(None, shape)) > _MOST_VALUES:
        raise ValueError("a shape is too large")
    begin, end = as_integers(entry["data_offsets"], count=2)
    if end - begin != dtype.itemsize * math.prod(shape) or data + end > size:
        raise ValueError("its offsets do not fit")
    return dtype, shape, data + begin


class TensorFile:
    """A safetensors file that is read by rows. Each block is checked before its bytes are used.

    Tensors in bfloat16, which NumPy does not have, are read as float32.

    Args:
        path: The file.
        expected: The size and the checksums that it must have.

    Attributes:
        path: The file.
        bytes_read: The number of bytes read so far.

    Raises:
        DamagedError: The file is not as expected. All methods raise it too.
    """

    def __init__(self, path: Path, expected: FileSum) -> None:
        self.path, self._expected = path, expected
        self.bytes_read = 0
        # Blocks are read into memory that is reused, since to allocate it costs as much as to read.
        self._free: list[bytearray] = []
        self._held: tuple[int, memoryview] = (-1, memoryview(bytearray()))
        self._ahead: dict[int, Future[memoryview]] = {}
        self._last_wanted = -1
        try:
            self._stream = open(path, "rb", buffering=0)  # noqa: SIM115 - closed in close()
            size = os.fstat(self._stream.fileno()).st_size
        except FileNotFoundError:
            raise missing(path) from None
        except OSError as problem:
            raise DamagedError(f"{path}: cannot be read ({problem.strerror or problem})") from None
        try:
            if size != expected.size:
                raise DamagedError(
                    f"{path}: has {size:,} bytes, but meta.json says {expected.size:,}; the file is damaged, "
                    "use another checkpoint"
                )
            if len(expected.blocks) != -(-size // BLOCK_BYTES):
                raise DamagedError(f"{path}: meta.json lacks checksums for some of its blocks; use another checkpoint")
            self._pool = ThreadPoolExecutor(_READING_THREADS, "plsc-checksum")
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
        self._pool.shutdown(cancel_futures=True)
        self._stream.close()

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor."""
        return self._tensors[name][1]

    def dtype(self, name: str) -> np.dtype:
        """Returns the type of a tensor in the file; `BFLOAT16` for one that is read as float32."""
        return self._tensors[name][0]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def read(self, name: str) -> np.ndarray:
        """Returns a whole tensor."""
        dtype, shape, begin = self._tensors[name]
        return _floats(self._bytes(begin, dtype.itemsize * math.prod(shape)).view(dtype)).reshape(shape)

    def rows(self, name: str, first: int, last: int) -> Iterator[np.ndarray]:
        """Yields the rows [first, last) of a tensor in parts of about a block. Each is valid until the next one."""
        dtype, shape, begin = self._tensors[name]
        a_row = dtype.itemsize * math.prod(shape[1:])
        self._last_wanted = (begin + last * a_row - 1) // BLOCK_BYTES
        step = max(1, BLOCK_BYTES // max(1, a_row))
        memory = np.empty(min(step, last - first) * a_row, np.uint8)
        for start in range(first, last, step):
            end = min(last, start + step)
            part = self._bytes(begin + start * a_row, (end - start) * a_row, memory)
            yield _floats(part.view(dtype)).reshape(end - start, *shape[1:])

    def _read_header(self) -> None:
        try:
            (length,) = struct.unpack("<Q", self._bytes(0, 8).tobytes())
            if length > min(LARGEST_HEADER, self._expected.size - 8):
                raise ValueError("its header is too long")
            self._tensors = parse_header(self._bytes(8, length).tobytes(), self._expected.size)
        except (ValueError, KeyError, TypeError, AttributeError, struct.error) as problem:
            raise DamagedError(
                f"{self.path}: not a safetensors file ({reason_of(problem)}); use another checkpoint"
            ) from None

    def _bytes(self, begin: int, count: int, memory: Optional[np.ndarray] = None) -> np.ndarray:
        """Returns `count` bytes from `begin` on, out of blocks that were checked."""
        result = np.empty(count, np.uint8) if memory is None else memory[:count]
        done = 0
        while done < count:
            number, offset = divmod(begin + done, BLOCK_BYTES)
            block = self._block(number)
            part = block[offset : offset + count - done]
            if not len(part):
                raise ValueError("it ends too early")
            result[done : done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)
        return result

    def _block(self, number: int) -> memoryview:
        if self._held[0] != number:
            if self._held[0] >= 0:
                self._free.append(self._held[1].obj)  # type: ignore[arg-type]
            for wanted in range(number, min(number + _READING_THREADS, self._last_wanted) + 1):
                if wanted not in self._ahead:
                    self._ahead[wanted] = self._pool.submit(self._checked, wanted, self._memory())
            ahead = self._ahead.pop(number, None)
            block = self._checked(number, self._memory()) if ahead is None else ahead.result()
            self.bytes_read += len(block)
            self._held = (number, block)
        return self._held[1]

    def _memory(self) -> memoryview:
        return memoryview(self._free.pop() if self._free else bytearray(min(BLOCK_BYTES, self._expected.size)))

    def _checked(self, number: int, memory: memoryview) -> memoryview:
        size = max(0, min(BLOCK_BYTES, self._expected.size - number * BLOCK_BYTES))
        block = memory[:size]
        try:
            count = os.preadv(self._stream.fileno(), [block], number * BLOCK_BYTES)
        except OSError as problem:
            raise DamagedError(f"{self.path}: cannot be read ({problem.strerror or problem})") from None
        if size and (count != size or _digest(block) != self._expected.blocks[number]):
            raise self._changed()
        return block

    def _changed(self) -> DamagedError:
        return DamagedError(
            f"{self.path}: its sha256 differs from meta.json; the file is damaged, or from another checkpoint; "
            "use another one"
        )
