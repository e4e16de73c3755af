"""Training images out of the files that `tools/process_base64_files.py` writes."""

from __future__ import annotations

import binascii
import contextlib
import os
import weakref
from typing import NamedTuple, Optional

import numpy as np

from plsc.data.base64_index import index_name, load_offsets
from plsc.data.base64_parts import ADVICE, LONGEST_LABEL, MANIFEST_NAME, Manifest, check_line
from plsc.errors import ConfigError, DataError

SHUFFLES = ("window", "full")
_BLOCK_BYTES = 4_000_000  # lines that are neighbours in a file are read together, about so many bytes
_WINDOW_BLOCKS = 16  # and come among the lines of so many blocks
_SLOTS = 4096  # many more than blocks in use, so that hardly two of those share one


class _Lines(NamedTuple):
    """One open file; line i is the bytes [offsets[i], offsets[i + 1])."""

    path: str
    descriptor: int
    offsets: np.ndarray


class Base64Files:
    """The samples of one rank in a split folder: an `ImageSource`.

    A rank takes whole files: of F files and W ranks, those numbered rank, rank + W, ... The copies that made the files
    equal are left out but for the one that a rank needs to be as long as the others. Sample i is line
    `i % samples_per_file` of file `i // samples_per_file`.

    Args:
        folder: holds the files and their manifest.
        manifest: what it says.
        num_classes: labels must be below it.
        rank, world_size: which files to open; `world_size` must divide their number.
        shuffle: 'window' reads the files in blocks of about 4 MB, in an order drawn for each epoch, and mixes the lines
            of 16 of them; 'full' draws lines from all over the files, at the price of one small read for each.

    Raises:
        ConfigError: no such shuffle.
        DataError: the number of ranks does not fit, a label is too large, or a file is not as the manifest says.
    """

    def __init__(
        self, folder: str, manifest: Manifest, num_classes: int, rank: int, world_size: int, shuffle: str = "window"
    ) -> None:
        self.num_images = manifest.samples
        self._folder = folder
        self._manifest = manifest
        self._num_classes = num_classes
        self._shuffle = shuffle
        if shuffle not in SHUFFLES:
            raise ConfigError(f"shuffle={shuffle!r}: expected one of {', '.join(SHUFFLES)}")
        where = os.path.join(folder, MANIFEST_NAME)
        if manifest.nranks % world_size:
            raise DataError(
                f"{where}: the data is split for {manifest.nranks} ranks and cannot be shared by {world_size}; run "
                f"{self._command(world_size)}"
            )
        if manifest.largest_label >= num_classes:
            raise DataError(
                f"{where}: the largest label is {manifest.largest_label}, outside [0, {num_classes}); "
                "check set_class_num, or correct the label and split the data again"
            )
        total = sum(file.bytes for file in manifest.files)
        self._block_lines = max(1, _BLOCK_BYTES * manifest.nranks * manifest.samples_per_file // total)
        self._files = {number: self._open(number) for number in range(rank, manifest.nranks, world_size)}
        self._begun = [-1] * _SLOTS

    def epoch_order(self, seed: int, epoch: int, rank: int, world_size: int) -> np.ndarray:
        """This rank's samples in the order of an epoch: int64 [ceil(num_images / world_size)]."""
        samples = self._share(world_size)
        rng = np.random.default_rng((seed, epoch, rank))
        if self._shuffle == "full":
            return rng.permutation(samples)
        # A line comes after its block, by up to a window: the blocks are begun one after another, at an even pace.
        _, block = np.unique(self._blocks(samples), return_inverse=True)
        turn = rng.permutation(int(block.max()) + 1)[block]
        return samples[np.argsort(turn + _WINDOW_BLOCKS * rng.random(len(samples)), kind="stable")]

    def where(self, i: int) -> str:
        """The file and line of a sample."""
        number, line = divmod(i, self._manifest.samples_per_file)
        return f"{self._files[number].path}:{line + 1}"

    def read(self, i: int) -> tuple[bytes, int]:
        """The encoded image and the label of a sample. Raises DataError, with file and line, for one that is damaged."""
        number, line = divmod(i, self._manifest.samples_per_file)
        file = self._files[number]
        first, end = int(file.offsets[line]), int(file.offsets[line + 1])
        if self._shuffle == "window":
            self._read_ahead(file, number, line // self._block_lines)
        try:
            text = os.pread(file.descriptor, end - first, first)
        except OSError as error:
            raise DataError(f"{self.where(i)}: cannot read the line ({error.strerror}); check the disk") from error
        image, _, digits = text.rpartition(b"\t")
        data = _decoded(image)
        if data is None or not (digits[:-1].isdigit() and digits.endswith(b"\n") and len(digits) <= LONGEST_LABEL + 1):
            raise self._damaged(i, text)
        label = int(digits)
        if label >= self._num_classes:
            raise DataError(
                f"{self.where(i)}: label {label} is outside [0, {self._num_classes}); the file does not belong to "
                "its manifest, copy the folder again"
            )
        return data, label

    def _damaged(self, i: int, text: bytes) -> DataError:
        """The error for a line that is not as it was made."""
        fault = check_line(text[:-1], len(text))
        reason = ADVICE[fault].split(";")[0] if fault else "the line does not end where it did"
        return DataError(
            f"{self.where(i)}: {reason}; the file was damaged after it was made, copy it again or run "
            f"{self._command(self._manifest.nranks)}"
        )

    def _share(self, world_size: int) -> np.ndarray:
        """The samples of the rank in the order of its files."""
        each = self._manifest.samples_per_file
        lines, copies = [], []
        for number in self._files:
            own = each - self._manifest.files[number].padding
            lines.append(np.arange(number * each, number * each + own))
            copies.append(np.arange(number * each + own, (number + 1) * each))
        samples = np.concatenate([*lines, *copies])
        return samples[: -(-self.num_images // world_size)]

    def _blocks(self, samples: np.ndarray) -> np.ndarray:
        each = self._manifest.samples_per_file
        return samples // each * each + samples % each // self._block_lines

    def _read_ahead(self, file: _Lines, number: int, block: int) -> None:
        """Has the system read a whole block at the first of its lines, unless that was done not long ago."""
        name = number * self._manifest.samples_per_file + block
        if self._begun[name % _SLOTS] == name or not hasattr(os, "posix_fadvise"):
            return
        self._begun[name % _SLOTS] = name
        first = int(file.offsets[block * self._block_lines])
        end = int(file.offsets[min((block + 1) * self._block_lines, len(file.offsets) - 1)])
        with contextlib.suppress(OSError):  # not every file system takes advice
            os.posix_fadvise(file.descriptor, first, end - first, os.POSIX_FADV_WILLNEED)

    def _open(self, number: int) -> _Lines:
        made = self._manifest.files[number]
        path = os.path.join(self._folder, made.name)
        try:
            descriptor = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, descriptor)
            size = os.fstat(descriptor).st_size
        except OSError as error:
            raise DataError(f"{path}: cannot read ({error.strerror}); copy it from where the data was split") from error
        if size != made.bytes:
            raise DataError(
                f"{path}: {size} bytes, and the manifest says {made.bytes}; copy it again or run "
                f"{self._command(self._manifest.nranks)}"
            )
        index_path = os.path.join(self._folder, index_name(number))
        return _Lines(path, descriptor, load_offsets(path, index_path, made.samples, made.bytes))

    def _command(self, nranks: int) -> str:
        """What splits the data again."""
        source, output = self._folder, ""
        if not os.path.exists(os.path.join(source, self._manifest.source_list)):
            source, output = f"<folder of {self._manifest.source_list}>", f" --output_dir={source}"
        return (
            f"python tools/process_base64_files.py --data_dir={source} --file_list={self._manifest.source_list}"
            f"{output} --nranks={nranks}"
        )


def _decoded(image: bytes) -> Optional[bytes]:
    """The image; None for what `check_line` finds no good base64. It would take a pass of its own."""
    try:
        data = binascii.a2b_base64(image)
    except binascii.Error:
        return None
    # Characters that are not base64 are passed over, and then the image is too short.
    padding = 2 if image.endswith(b"==") else int(image.endswith(b"="))
    return data if image and len(image) % 4 == 0 and len(data) == len(image) // 4 * 3 - padding else None
