"""Texts by the million, without a Python object for each: in one buffer, or where they stand in a file."""

from __future__ import annotations

import bisect
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Optional, Union, overload

import numpy as np

from plsc.errors import WrongDataError

_BLOCK = 1 << 20  # bytes of a file that are looked at together
_SMALL = 1 << 26  # bytes of a file that is held in memory
_NEWLINE, _RETURN, _QUOTE = b'\n\r"'  # their numbers
_LONG = 4096  # bytes of a text that are hashed together with those of others; no path has more
_MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xBF58476D1CE4E5B9], np.uint64)
_MASKS = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)  # of the first bytes of a word


class Texts(Sequence[str]):
    """Native texts, numbered from 0, that are decoded when they are asked for."""

    def raw(self, i: int) -> bytes:
        """Returns the bytes of a text."""
        raise NotImplementedError

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: Union[int, slice]) -> Union[str, list[str]]:
        """Returns a text, or a list of those of a slice."""
        if isinstance(i, slice):
            return [os.fsdecode(self.raw(k)) for k in range(*i.indices(len(self)))]
        count = len(self)
        if not -count <= i < count:
            raise IndexError(i)
        return os.fsdecode(self.raw(int(i) % count))

    def __eq__(self, other: object) -> bool:
        """Returns whether a sequence holds the same texts."""
        if not isinstance(other, Sequence) or len(other) != len(self):
            return NotImplemented
        return all(one == another for one, another in zip(self, other))

    __hash__ = None  # type: ignore[assignment]


class PackedTexts(Texts):
    """Texts that lie in one buffer, one after the other.

    Args:
        buffer: Their bytes.
        ends: Where each text ends, [N].

    Attributes:
        buffer: The argument.
        ends: The argument.
    """

    def __init__(self, buffer: Union[bytes, bytearray, memoryview], ends: np.ndarray) -> None:
        self.buffer, self.ends = buffer, ends
        self._view, self._ends = memoryview(buffer), ends.data  # single items are much faster than NumPy's

    def __reduce__(self) -> tuple[Any, ...]:  # A view cannot be pickled.
        return PackedTexts, (self._view.tobytes(), self.ends)

    def __len__(self) -> int:
        return len(self.ends)

    def raw(self, i: int) -> bytes:
        """Returns the bytes of a text."""
        return self.joined(i, i + 1)

    def joined(self, first: int, end: int) -> bytes:
        """Returns the bytes of the texts from `first` to before `end`, one after the other."""
        return self._view[self._ends[first - 1] if first else 0 : self._ends[end - 1]].tobytes()


class TextPacker:
    """A collector of texts, which takes a few bytes for each in addition to the text."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._lengths: list[np.ndarray] = []
        self._few: list[int] = []

    def add(self, texts: Sequence[bytes]) -> None:
        """Adds texts."""
        self._buffer += b"".join(texts)
        self._few += map(len, texts)
        if len(self._few) > _BLOCK // 16:
            self._pack()

    def finish(self) -> PackedTexts:
        """Returns all texts that were added."""
        self._pack()
        lengths = np.concatenate(self._lengths)
        self._lengths.clear()
        kind = np.uint32 if len(self._buffer) < 1 << 32 else np.int64
        return PackedTexts(self._buffer, np.cumsum(lengths, dtype=kind))

    def _pack(self) -> None:
        longest = max(self._few, default=0)
        self._lengths.append(np.array(self._few, np.min_scalar_type(longest)))
        self._few.clear()


class NamesInFolders(Texts):
    """Names of files in folders, where the files of a folder share what is before their names.

    Args:
        names: Names of the N files in their folders.
        prefixes: What is before them, for each of R runs of files of a folder.
        firsts: First file of each run, and N, int64 [R + 1].

    Attributes:
        names: The argument.
        prefixes: The argument.
        firsts: The argument.
    """

    def __init__(self, names: PackedTexts, prefixes: PackedTexts, firsts: np.ndarray) -> None:
        self.names, self.prefixes, self.firsts = names, prefixes, firsts
        self._firsts = firsts.data

    def __reduce__(self) -> tuple[Any, ...]:  # A view cannot be pickled.
        return NamesInFolders, (self.names, self.prefixes, self.firsts)

    def __len__(self) -> int:
        return len(self.names)

    def run(self, i: int) -> int:
        """Returns the run that file `i` belongs to."""
        return bisect.bisect_right(self._firsts, i) - 1

    def raw(self, i: int) -> bytes:
        """Returns the bytes of the whole name."""
        return self.raw_in(self.run(i), i)

    def raw_in(self, run: int, i: int) -> bytes:
        """Returns the bytes of the whole name of a file of a run."""
        return self.prefixes.raw(run) + self.names.raw(i)


class FolderPacker:
    """A collector of `NamesInFolders`."""

    def __init__(self) -> None:
        self._names, self._prefixes, self._firsts = TextPacker(), TextPacker(), [0]

    def add(self, prefix: bytes, names: Sequence[bytes]) -> None:
        """Adds a run of files."""
        self._names.add(names)
        self._prefixes.add([prefix])
        self._firsts.append(self._firsts[-1] + len(names))

    def finish(self) -> NamesInFolders:
        """Returns all names that were added."""
        return NamesInFolders(self._names.finish(), self._prefixes.finish(), np.array(self._firsts))


class Distinct(Texts):
    """Texts of which many are equal: those that differ are kept once.

    Attributes:
        ids: Number of the text of each of N entries in `distinct`, int32 [N].
        distinct: The different texts.
    """

    def __init__(self, ids: np.ndarray, distinct: Sequence[str]) -> None:
        self.ids, self.distinct = ids, distinct

    def __len__(self) -> int:
        return len(self.ids)

    def number_of_empty(self) -> int:
        """Returns the number of the empty text, -1 if there is none."""
        return self.distinct.index("") if "" in self.distinct else -1

    def raw(self, i: int) -> bytes:
        """Returns the bytes of a text."""
        return os.fsencode(self.distinct[self.ids[i]])

    def __getitem__(self, i: Any) -> Any:
        """Returns a text, or a list of those of a slice."""
        if isinstance(i, slice):
            return [self.distinct[k] for k in self.ids[i].tolist()]
        return self.distinct[self.ids[i]]


class TextsOfFile(Texts):
    """Texts that stay in their file if that is large, and are read when they are asked for.

    The file must not change meanwhile, which is checked; that of a small file, which memory holds, may. A map of the
    file would end the process if the file became shorter.

    Args:
        path: Path of the file, for error messages.
        file: The file, open for reading. It is closed with the last reference to it.
        starts: Where each text begins in it, int64 [N].
        lengths: Its length in bytes, int32 [N].
        state: `state_of` the file when it was searched for the texts.
        quoted: Whether texts in double quotes stand for what is in the quotes, as in CSV.

    Raises:
        WrongDataError: The file has changed.
    """

    def __init__(
        self,
        path: Path,
        file: BinaryIO,
        starts: np.ndarray,
        lengths: np.ndarray,
        state: tuple[int, ...],
        quoted: bool = False,
    ) -> None:
        self._path, self._file, self._state, self._quoted = path, file, state, quoted
        self._starts, self._lengths = starts, lengths
        self._held: Optional[bytes] = None
        held = self._read(0, state[0] if state[0] <= _SMALL else 0)
        if state[0] <= _SMALL:
            self._held = held
            file.close()

    def __len__(self) -> int:
        return len(self._starts)

    def raw(self, i: int) -> bytes:
        """Returns the bytes of a text.

        Raises:
            WrongDataError: The file has changed, or cannot be read.
        """
        found = self._read(int(self._starts[i]), int(self._lengths[i]))
        return unquoted(found) if self._quoted else found

    def chunks(self, count: int = _BLOCK // 16) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Yields parts of the file.

        Args:
            count: Number of texts of a part.

        Yields:
            (number of the first text, bytes uint8, where each text begins in them, their lengths).
        """
        for first in range(0, len(self), count):
            starts, lengths = self._starts[first : first + count], self._lengths[first : first + count]
            begin = int(starts[0])
            data = self._read(begin, int(starts[-1] + lengths[-1]) - begin)
            yield first, np.frombuffer(data, np.uint8), starts - begin, lengths

    def lines(self) -> Iterator[bytes]:
        """Yields the texts, many at a time, each with a newline at its end."""
        for _, data, starts, lengths in self.chunks():
            ends, inside = starts + lengths, np.zeros(len(data) + 2, np.int8)
            inside[starts] += 1
            inside[ends + 1] -= 1
            text = np.append(data, np.uint8(0))
            text[ends] = _NEWLINE
            yield text[np.cumsum(inside[:-1], dtype=np.int8).view(bool)].tobytes()

    def _read(self, start: int, size: int) -> bytes:
        if self._held is not None:
            return self._held[start : start + size]
        try:
            found = os.pread(self._file.fileno(), size, start)
            if state_of(self._file.fileno()) == self._state and len(found) == size:
                return found
        except OSError as problem:
            raise WrongDataError(f"{self._path}: cannot be read ({problem.strerror or problem}); restore it") from None
        raise WrongDataError(f"{self._path}: has changed while it was in use; start again, and leave it alone then")


def state_of(file: int) -> tuple[int, ...]:
    """Returns the size of an open file and when it was changed."""
    status = os.fstat(file)
    return status.st_size, status.st_mtime_ns


def unquoted(field: bytes) -> bytes:
    """Returns what a field of CSV stands for."""
    return field[1:-1].replace(b'""', b'"') if field.startswith(b'"') else field


class Block(NamedTuple):
    """Some lines of a file.

    Attributes:
        data: Their bytes, uint8.
        position: Where they begin in the file.
        starts: Where each line begins in `data`, int64 [n].
        ends: Where it ends, without its line end, int64 [n].
        quoted: The argument of `blocks_of_lines`.
    """

    data: np.ndarray
    position: int
    starts: np.ndarray
    ends: np.ndarray
    quoted: bool = False

    def places(self, byte: bytes) -> np.ndarray:
        """Returns where a byte stands, except in double quotes if these may hold texts."""
        found = np.flatnonzero(self.data == ord(byte))
        return found[~_in_quotes(self.data)[found]] if self.quoted and (self.data == _QUOTE).any() else found

    def line(self, k: int) -> bytes:
        """Returns the bytes of a line."""
        return self.data[self.starts[k] : self.ends[k]].tobytes()


def most_lines(file: int) -> int:
    """Returns a number of lines that a file, open at its beginning, does not exceed."""
    found = 1
    while block := os.read(file, _BLOCK):
        found += block.count(b"\n") + block.count(b"\r")
    os.lseek(file, 0, os.SEEK_SET)
    return found


def blocks_of_lines(file: int, quoted: bool = False) -> Iterator[Block]:
    r"""Yields the lines of a file, which may end as on Unix, on Windows or on an old Mac.

    Args:
        file: The file, open for reading, at its beginning.
        quoted: Whether texts may stand in double quotes, as in CSV. Then lines end in \n alone, and a line end in
            quotes is part of a text.

    Raises:
        OSError: The file cannot be read.
    """
    rest, position = b"", 0
    while True:
        read = os.read(file, max(_BLOCK, len(rest)))
        text = rest + read
        if not text:
            return
        data = np.frombuffer(text, np.uint8)
        returns = b"\r" in text and not quoted
        ends = np.flatnonzero((data == _NEWLINE) | (data == _RETURN) if returns else data == _NEWLINE)
        if quoted and b'"' in text:
            ends = ends[~_in_quotes(data)[ends]]
        nexts = ends + 1
        if returns:
            pairs = (data[ends[:-1]] == _RETURN) & (data[ends[1:]] == _NEWLINE) & (np.diff(ends) == 1)
            nexts[:-1] += pairs
            kept = np.concatenate([[True], ~pairs])[: len(ends)]
            ends, nexts = ends[kept], nexts[kept]
            if read and len(ends) and nexts[-1] == len(data) and data[-1] == _RETURN:
                ends, nexts = ends[:-1], nexts[:-1]  # its newline may follow
        used = int(nexts[-1]) if len(nexts) else 0
        if not read and used < len(data):
            ends, nexts, used = np.append(ends, len(data)), np.append(nexts, len(data)), len(data)
        if used:
            yield Block(data[:used], position, np.concatenate([[0], nexts[:-1]]), ends, quoted)
        if not read:
            return
        rest, position = text[used:], position + used


def _in_quotes(data: np.ndarray) -> np.ndarray:
    """Returns of each byte whether it lies in double quotes, if the first does not."""
    return np.logical_xor.accumulate(data == _QUOTE)


def hashes_of(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns a hash of each of n texts, uint64 [n], by which one may take equal ones to be the same text.

    Args:
        data: Bytes that hold the texts, uint8.
        starts: Where each text begins, int64 [n].
        lengths: Their lengths.
    """
    padded = np.concatenate([data, np.zeros(8, np.uint8)])
    words = np.ndarray((len(data) + 1,), "<u8", padded, strides=(1,))  # the eight bytes from each place on
    found = lengths.astype(np.uint64) * _MULTIPLIERS[0]
    for first in range(0, min(int(lengths.max(initial=0)), _LONG), 8):
        longer = np.flatnonzero(lengths > first) if first else slice(None)
        word = words[starts[longer] + first] & _MASKS[np.minimum(lengths[longer] - first, 8)]
        mixed = (found[longer] ^ word) * _MULTIPLIERS[1]
        mixed ^= mixed >> np.uint64(32)
        mixed *= _MULTIPLIERS[2]
        found[longer] = mixed ^ (mixed >> np.uint64(29))
    for k in np.flatnonzero(lengths > _LONG).tolist():
        rest = hashlib.blake2b(data[starts[k] + _LONG : starts[k] + lengths[k]].tobytes(), digest_size=8).digest()
        found[k] ^= np.uint64(int.from_bytes(rest, "little"))
    return found


class Numbering:
    """Numbers for the different texts among many, in the order in which they appear.

    Attributes:
        numbers: The number of each text.
    """

    def __init__(self) -> None:
        self.numbers: dict[bytes, int] = {}
        self._hashes = np.empty(0, np.uint64)  # sorted, of texts that `of` has numbered
        self._numbers = np.empty(0, np.int32)

    def number(self, text: bytes) -> int:
        """Returns the number of a text."""
        return self.numbers.setdefault(text, len(self.numbers))

    def of(self, data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Returns the number of each of n texts in `data`, int32 [n]; see `hashes_of`."""
        hashes = hashes_of(data, starts, lengths)
        begins = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]])[: len(hashes)])  # of equal ones
        own = hashes[begins]
        at = np.searchsorted(self._hashes, own)
        known = at < len(self._hashes)
        known[known] = self._hashes[at[known]] == own[known]
        if not known.all():
            new, firsts = np.unique(own[~known], return_index=True)
            rows = begins[~known][firsts]
            numbers = np.empty(len(new), np.int32)
            for k in np.argsort(firsts).tolist():
                numbers[k] = self.number(data[starts[rows[k]] : starts[rows[k]] + lengths[rows[k]]].tobytes())
            places = np.searchsorted(self._hashes, new)
            self._hashes = np.insert(self._hashes, places, new)
            self._numbers = np.insert(self._numbers, places, numbers)
            at = np.searchsorted(self._hashes, own)
        return np.repeat(self._numbers[at], np.diff(begins, append=len(hashes)))
