"""Training images from the files that `tools/process_base64_files.py` writes."""

from __future__ import annotations

import bisect
import hashlib
import os
from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np

from plsc.data.base64_index import index_name, load_offsets
from plsc.data.base64_parts import (
    ADVICE,
    LONGEST_LABEL,
    MANIFEST_NAME,
    Manifest,
    check_line,
    decode_base64,
    load_manifest,
)
from plsc.data.class_names import names_of_numbers
from plsc.data.records import Opening, Records
from plsc.data.sampler import MIXED_FILES, WINDOW_BLOCKS, mixed_turns
from plsc.data.shard_files import SharedFiles
from plsc.errors import DataError, counted
from plsc.machine.files import advice_on
from plsc.machine.names import from_text

UNSPLIT_LIST = "file_list.txt"  # the files of base64 data that has not been split

_BLOCK_BYTES = 4_000_000  # neighbouring lines are read together, in blocks of about this size
_TAB, _ZERO = b"\t0"
_LAST = 1 << 62  # more than any number of a file


class _Lines(NamedTuple):
    """A file. Line i is the bytes [offsets[i], offsets[i + 1])."""

    path: str
    offsets: np.ndarray


def holds_split(path: str) -> bool:
    """Returns whether a path is a folder of split base64 data."""
    return os.path.isfile(os.path.join(path, MANIFEST_NAME))


def open_records(opening: Opening) -> Base64Files:
    """Opens the samples of a rank in a folder of split base64 data.

    Raises:
        DataError: The folder holds no such data; or as for `Base64Files`.
    """
    manifest = load_manifest(opening.path)
    if manifest is None:
        raise not_split(opening.path, opening.world_size)
    return Base64Files(
        opening.path,
        manifest,
        opening.num_classes,
        rank=opening.rank,
        world_size=opening.world_size,
        shuffle=opening.shuffle or "window",
        is_partial=opening.is_partial,
    )


def not_split(path: str, world_size: int) -> DataError:
    """Returns the error for a folder of base64 data that has not been split."""
    return DataError(
        f"{os.path.join(path, MANIFEST_NAME)}: missing, so the folder holds no split base64 data; run "
        f"python tools/process_base64_files.py --data_dir={path} --file_list={UNSPLIT_LIST} --nranks={world_size}, or "
        f"plsc data convert {path} NEW --to base64 --ranks {world_size}, which takes addresses too"
    )


class Base64Files(Records):
    """The samples of one rank in a split folder.

    A rank takes whole files: those numbered rank, rank + world_size, and so on. The copies that make all files equally
    long are left out, except for the one that a rank may need to have as many samples as the others. Samples are
    numbered from 0 in the order of the rank's files, copies last.

    Args:
        folder: The folder with the files and their manifest.
        manifest: The manifest.
        num_classes: The number of classes; labels must be below it. None accepts every label.
        rank: The rank whose files to open.
        world_size: The number of ranks, which must divide the number of files.
        shuffle: 'window' reads the files in blocks of about 4 MB, in an order drawn for each epoch, and mixes the lines
            of 16 blocks. 'files' does so within 4 files at a time: it reads the files in turn, in an order drawn for
            each epoch. 'full' draws lines from all over the files, at the price of a small read for each.
        is_partial: Whether the files may be missing until they are read; see `Opening`.

    Raises:
        DataError: The number of ranks does not fit, a label is too large, or a file differs from the manifest.
    """

    def __init__(
        self,
        folder: str,
        manifest: Manifest,
        num_classes: Optional[int],
        rank: int,
        world_size: int,
        shuffle: str = "window",
        is_partial: bool = False,
    ) -> None:
        self.num_images = manifest.samples
        self._folder = folder
        self._manifest = manifest
        self._num_classes = num_classes
        self.shuffle = shuffle
        where = os.path.join(folder, MANIFEST_NAME)
        if manifest.nranks % world_size:
            raise DataError(
                f"{where}: the data is split for {manifest.nranks} ranks and cannot be shared by {world_size}; run "
                f"{self._command(world_size)}"
            )
        if num_classes is not None and manifest.largest_label >= num_classes:
            raise DataError(
                f"{where}: the largest label is {manifest.largest_label}, outside [0, {num_classes}); "
                f"call set_class_num({manifest.largest_label + 1}), or correct the label and split the data again"
            )
        self.class_names = names_of_numbers(folder, manifest.largest_label + 1, num_classes)
        total = sum(file.bytes for file in manifest.files)
        self._block_lines = max(1, _BLOCK_BYTES * manifest.nranks * manifest.samples_per_file // total)
        self._shared = SharedFiles()
        self._is_partial = is_partial
        self._files = {number: self._find_lines(number) for number in range(rank, manifest.nranks, world_size)}
        self.files = [manifest.files[number].name for number in self._files]
        self._first, self._step = rank, world_size
        # The lines of each file that are not copies, then the copies of each file, as runs of (file, line, count).
        each = manifest.samples_per_file
        own = {number: each - manifest.files[number].padding for number in self._files}
        runs = [(number, 0, count) for number, count in own.items()]
        runs += [(number, count, each - count) for number, count in own.items() if count < each]
        self._runs = np.array(runs, np.int64)
        self._ends = np.cumsum(self._runs[:, 2])
        self._listed = list(zip(self._ends.tolist(), *self._runs.T.tolist()))  # numbers that Python finds quickly
        self._share = -(-self.num_images // world_size)
        if world_size == 1 and shuffle == "window":
            self.blocks = self._find_blocks()

    def epoch_order(self, seed: int, epoch: int, rank: int, world_size: int) -> np.ndarray:
        """Returns the samples of this rank in the order of an epoch: int64 [ceil(num_images / world_size)]."""
        rng = np.random.default_rng((seed, epoch, rank))
        self.reads_ahead = self.shuffle != "full"
        if self.shuffle == "full":
            return rng.permutation(self._share)
        # Blocks begin one after another, at an even pace, and a line comes up to a window after the start of its block.
        numbers, lines = self._places(np.arange(self._share))
        _, first, block = np.unique(
            numbers * self._manifest.samples_per_file + lines // self._block_lines,
            return_index=True,
            return_inverse=True,
        )
        if self.shuffle == "files":
            turn = mixed_turns((numbers[first] - self._first) // self._step, MIXED_FILES, rng)[block]
        else:
            turn = rng.permutation(int(block.max()) + 1)[block]
        return np.argsort(turn + WINDOW_BLOCKS * rng.random(self._share), kind="stable")

    def name(self, i: int) -> str:
        """Returns `file:line`, with lines counted from 1."""
        number, line = self._place(i)
        return f"{self._manifest.files[number].name}:{line + 1}"

    @property
    def num_classes(self) -> int:
        """Number of classes: that of the names, or the largest label that the manifest names plus one."""
        return len(self.class_names) or self._manifest.largest_label + 1

    def labels(self) -> np.ndarray:
        """Returns the label of each sample of the rank, int64 [ceil(num_images / world_size)].

        Damaged lines, which `read` refuses, have the label of any class.
        """
        return self.labels_of_files([self.labels_of_file(number) for number in range(len(self._files))])

    def labels_of_file(self, number: int) -> np.ndarray:
        """Returns the labels of all lines of a file, int64."""
        return _labels_of(self._files[self._first + number * self._step])

    def labels_of_files(self, found: Sequence[np.ndarray]) -> np.ndarray:
        """Returns what `labels` does, from the results of `labels_of_file` of all files."""
        of_files = dict(zip(self._files, found))
        parts = [of_files[number][line : line + count] for number, line, count in self._runs.tolist()]
        return np.clip(np.concatenate(parts)[: self._share], 0, self._manifest.largest_label)

    def digests(self) -> dict[str, str]:
        """Returns the number of images, and a digest of what the manifest says about the files of all ranks."""
        return {
            "the number of images in the manifest": str(self.num_images),
            f"the files that {MANIFEST_NAME} lists": hashlib.sha256(repr(self._manifest).encode()).hexdigest(),
        }

    def where(self, i: int) -> str:
        """Returns the file and the line of a sample, for messages."""
        number, line = self._place(i)
        return f"{self._files[number].path}:{line + 1}"

    def read(self, i: int) -> tuple[bytes, int]:
        """Returns the encoded image and the label of a sample. Raises DataError if its line is damaged."""
        number, line = self._place(i)
        file = self._files[number]
        first, end = int(file.offsets[line]), int(file.offsets[line + 1])
        try:
            if self.reads_ahead:
                self._read_ahead(file, line // self._block_lines)
            text = self._shared.read(file.path, first, end - first)
        except OSError as error:
            advice = advice_on(error, "check the disk")
            raise DataError(f"{self.where(i)}: cannot read the line ({error.strerror}); {advice}") from error
        image, _, digits = text.rpartition(b"\t")
        data = decode_base64(image)
        if data is None or not (digits[:-1].isdigit() and digits.endswith(b"\n") and len(digits) <= LONGEST_LABEL + 1):
            raise self._damaged(i, text)
        label = int(digits)
        if self._num_classes is not None and label >= self._num_classes:
            raise DataError(
                f"{self.where(i)}: label {label} is outside [0, {self._num_classes}); the file does not belong to "
                "its manifest; copy the folder again"
            )
        return data, label

    def files_of(self, images: np.ndarray) -> np.ndarray:
        """Returns the number of the file of each sample."""
        return (self._places(images)[0] - self._first) // self._step

    def file_of(self, i: int) -> int:
        """Returns the number of the file of a sample."""
        return (self._place(i)[0] - self._first) // self._step

    def close_files(self) -> None:
        """Closes the files that no thread reads at the moment."""
        self._shared.close()

    def _damaged(self, i: int, text: bytes) -> DataError:
        """Returns the error for a line that has changed since it was written."""
        fault = check_line(text[:-1], len(text))
        reason = ADVICE[fault].split(";")[0] if fault else "the line no longer ends where it did"
        return DataError(
            f"{self.where(i)}: {reason}; the file was damaged after it was written; copy it again, or run "
            f"{self._command(self._manifest.nranks)}"
        )

    def _place(self, i: int) -> tuple[int, int]:
        """Returns the file and the line of a sample, both counted from 0."""
        end, number, line, count = self._listed[bisect.bisect_right(self._listed, (i, _LAST))]
        return number, line + i - end + count

    def _places(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns what `_place` does for many samples, int64 [n] and int64 [n]."""
        runs = np.searchsorted(self._ends, samples, side="right")
        numbers, lines, counts = self._runs[runs].T
        return numbers, lines + samples - self._ends[runs] + counts

    def _read_ahead(self, file: _Lines, block: int) -> None:
        """Asks the system to read a whole block ahead, at the first of its lines to be read."""
        first = int(file.offsets[block * self._block_lines])
        end = int(file.offsets[min((block + 1) * self._block_lines, len(file.offsets) - 1)])
        self._shared.read_ahead(file.path, first, end - first)

    def _find_lines(self, number: int) -> _Lines:
        made = self._manifest.files[number]
        path = os.path.join(self._folder, made.name)
        index_path = os.path.join(self._folder, index_name(number))
        if self._is_partial:
            return _Lines(path, load_offsets(path, index_path, made.samples, made.bytes))
        try:
            size = self._shared.open(path).size
        except OSError as error:
            advice = advice_on(error, "copy it again from where the data was split")
            raise DataError(f"{path}: cannot read ({error.strerror}); {advice}") from error
        if size != made.bytes:
            raise DataError(
                f"{path}: has {counted(size, 'byte')}, but the manifest says {made.bytes}; copy it again, or run "
                f"{self._command(self._manifest.nranks)}"
            )
        return _Lines(path, load_offsets(path, index_path, made.samples, made.bytes))

    def _find_blocks(self) -> np.ndarray:
        """Returns the `blocks` of a source that has all files."""
        firsts = [
            np.arange(end - count, end, self._block_lines)
            for end, (_, _, count) in zip(self._ends, self._runs.tolist())
        ]
        found = np.concatenate(firsts)
        return np.append(found[found < self.num_images], self.num_images)

    def _command(self, nranks: int) -> str:
        """Returns the command that splits the data again."""
        source, output, source_list = self._folder, "", from_text(self._manifest.source_list)
        if not os.path.exists(os.path.join(source, source_list)):
            source, output = f"<folder of {source_list}>", f" --output_dir={source}"
        return (
            f"python tools/process_base64_files.py --data_dir={source} --file_list={source_list}"
            f"{output} --nranks={nranks}"
        )


def _labels_of(file: _Lines) -> np.ndarray:
    """Returns the labels at the ends of the lines of a file, int64 [lines]; damaged lines have any number."""
    text = np.memmap(file.path, np.uint8, "r")
    labels, ends = np.zeros(len(file.offsets) - 1, np.int64), file.offsets[1:] - 1
    goes_on = np.ones(len(labels), bool)
    for place in range(LONGEST_LABEL):
        byte = text[np.maximum(ends - 1 - place, 0)]
        goes_on &= byte != _TAB
        if not goes_on.any():
            break
        labels += np.where(goes_on, byte.astype(np.int64) - _ZERO, 0) * 10**place
    return labels
