"""Base64 data that is not split for the ranks yet: parts of `base64<TAB>label` lines, and the list that names them."""

from __future__ import annotations

import bisect
import hashlib
import os

import numpy as np

from plsc.data.base64_parts import (
    ADVICE,
    FILE_LIST_NAME,
    Part,
    changed,
    check_line,
    decode_base64,
    find_lines,
    open_part,
    read_file_list,
)
from plsc.data.records import Records
from plsc.data.shard_files import SharedFiles
from plsc.errors import DataError
from plsc.machine.files import advice_on
from plsc.machine.names import from_text

LIST_NAMES = ("file_list.txt", FILE_LIST_NAME)
_CHUNK = 1 << 22  # bytes that are searched for lines at a time
_NO_LABEL = -1


class UnsplitLines(Records):
    """The lines of base64 parts, in the order of their list.

    Opening reads all parts once, to find the lines and their labels.

    Args:
        file_list: Path of the file that lists the parts.

    Raises:
        DataError: The list has a mistake, or a part cannot be read. Damaged lines are errors only when they are read.
    """

    def __init__(self, file_list: str) -> None:
        self._parts = read_file_list(os.path.dirname(file_list) or ".", os.path.basename(file_list))
        found = [_scan(part) for part in self._parts]
        self._offsets = [offsets for offsets, _ in found]
        self._labels = np.concatenate([labels for _, labels in found])
        self._firsts = np.cumsum([0, *(len(labels) for _, labels in found)]).tolist()
        self.num_images = self._firsts[-1]
        by_path = {part.path: part for part in self._parts}
        self._files = SharedFiles(lambda path: open_part(by_path[path]))

    def name(self, i: int) -> str:
        """Returns `part:line`, with lines counted from 1."""
        part, line = self._place(i)
        return f"{from_text(self._parts[part].name)}:{line + 1}"

    def where(self, i: int) -> str:
        """Returns the path of the part and the line."""
        part, line = self._place(i)
        return f"{self._parts[part].path}:{line + 1}"

    def read(self, i: int) -> tuple[bytes, int]:
        """Returns the encoded image and the label of a line. Raises DataError if the line is damaged."""
        part, number = self._place(i)
        first, end = self._offsets[part][number : number + 2].tolist()
        try:
            file = self._files.open(self._parts[part].path)  # whose name here keeps it open
            line = file.pread(end - first, first)
        except OSError as error:
            advice = advice_on(error, "check the disk")
            raise DataError(f"{self.where(i)}: cannot read the line ({error.strerror}); {advice}") from error
        if len(line) < end - first:
            raise changed(self._parts[part])
        label = int(self._labels[i])
        if label < 0:
            line = line.removesuffix(b"\n")
            fault = check_line(line, len(line))
            raise DataError(f"{self.where(i)}: {ADVICE[fault] if fault else 'the line has changed; run again'}")
        data = decode_base64(line[: line.rindex(b"\t")])
        if data is None:
            raise changed(self._parts[part])
        return data, label

    def labels(self) -> np.ndarray:
        """Returns the label of each line, int64 [num_images]; -1 for a damaged line."""
        return self._labels

    def digests(self) -> dict[str, str]:
        """Returns a digest of the names, sizes and times of modification of the parts."""
        parts = [(part.name, part.size, part.modified) for part in self._parts]
        return {"the base64 parts": hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()}

    def _place(self, i: int) -> tuple[int, int]:
        part = bisect.bisect_right(self._firsts, i) - 1
        return part, i - self._firsts[part]


def _scan(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the lines of a part begin and where the last one ends, [n + 1], and their labels, [n]."""
    starts, labels = [], []
    position, rest = 0, b""
    with open_part(part) as file:
        while True:
            chunk = file.read(_CHUNK)
            if not chunk and rest:
                chunk = b"\n"  # the last line may lack its newline
            if not chunk:
                break
            end = chunk.rfind(b"\n") + 1
            if not end:
                rest += chunk
                continue
            block, rest = rest + chunk[:end], chunk[end:]
            lines = find_lines(block, len(block))
            starts.append(lines.starts + position)
            labels.append(np.where(lines.faults == 0, lines.labels, _NO_LABEL))
            position += len(block)
    return np.concatenate([*starts, [min(position, part.size)]]), np.concatenate(labels)
