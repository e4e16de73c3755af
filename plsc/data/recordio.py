"""Training images from the RecordIO files of MXNet, as InsightFace publishes them: train.rec, train.idx, property."""

from __future__ import annotations

import bisect
import contextlib
import functools
import hashlib
import logging
import math
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union

import numpy as np

from plsc.data.class_names import CLASSES, name_of, read_classes
from plsc.data.recordio_file import EXACT, HEADER, BrokenError, RecordFile, frames_of, header_of
from plsc.data.recordio_index import Index, read_index, write_index
from plsc.data.recordio_layout import PROPERTY, classes_of, images_of
from plsc.data.recordio_parts import TRIED, number_images, pieces_of, pixels_of, read_part
from plsc.data.records import Opening, Record, Records, check_label
from plsc.errors import DataError, WrongDataError
from plsc.machine.files import replacing

logger = logging.getLogger("plsc")

_SUFFIX, _INDEX = ".rec", ".idx"
_USUAL, _USUAL_INDEX = f"train{_SUFFIX}", f"train{_INDEX}"
_BLOCK_BYTES = 4_000_000  # as for base64 data
_PROBED = 64  # records of an index that are looked at, to notice that it belongs to another file


def holds_records(path: str) -> bool:
    """Returns whether a path is a RecordIO file, or a folder with such files, or one that has lost its `train.rec`."""
    if path.endswith(_SUFFIX) and os.path.isfile(path):
        return True
    try:
        names = (name for name in os.listdir(path) if name.endswith(_SUFFIX) or name == _USUAL_INDEX)
        return any(not os.path.isdir(os.path.join(path, name)) for name in names)
    except OSError:
        return False


def open_records(opening: Opening) -> RecordIO:
    """Opens the RecordIO file that a path names, or that its folder holds.

    Raises:
        DataError: There is none, or several; or as for `RecordIO`.
    """
    keeps_index = opening.keeps_index and opening.rank == 0
    return RecordIO(_file_of(opening.path), opening.num_classes, opening.shuffle or "full", keeps_index=keeps_index)


def _file_of(path: str) -> str:
    """Returns the file of records that a path means. Raises DataError if there is none, or more than one."""
    if not os.path.isdir(path):
        return path
    try:
        names = sorted(os.listdir(path))
    except OSError as problem:
        raise DataError(f"{path}: cannot be listed ({problem.strerror}); check its permissions") from problem
    files = [_USUAL] if _USUAL in names else [name for name in names if name.endswith(_SUFFIX)]
    if len(files) == 1:
        return os.path.join(path, files[0])
    if files:
        raise DataError(
            f"{path}: holds {len(files)} files of records, {files[0]}, {files[1]}...; name the one to train on"
        )
    left = next((name for name in names if name.endswith(_INDEX)), None)
    if left is not None:
        missing = os.path.join(path, left.removesuffix(_INDEX) + _SUFFIX)
        raise DataError(f"{missing}: missing, but its index {left} is there; copy the file of records too")
    raise DataError(f"{path}: holds no file of records; name a folder with train.rec, or a .rec file")


class RecordIO(Records):
    """The images of a RecordIO file, in the order of the file.

    Args:
        path: The file. Next to it may be an index of the same name that ends in `.idx`, `property`, which holds
            `classes,height,width`, and `classes.txt`, which holds the name of each class.
        num_classes: Number of classes; labels must be below it. None takes that of the names or of `property`, or
            accepts every label.
        shuffle: 'full' draws images from all over the file. 'window' reads the file in blocks of about 4 MB, in an
            order drawn for each epoch, and mixes the images of 16 blocks.
        keeps_index: Whether to write the index that is made for a file without one next to the file.

    Raises:
        DataError: The file, its index or `property` is damaged, or they do not belong together.
    """

    def __init__(
        self, path: str, num_classes: Optional[int] = None, shuffle: str = "full", keeps_index: bool = False
    ) -> None:
        self._file = RecordFile(path)
        self._name = os.path.basename(path)
        folder = os.path.dirname(path)
        self.class_names = tuple(name_of(name).strip() for name in read_classes(folder) or ())
        self._property = os.path.join(folder, PROPERTY)
        self._stated = classes_of(self._property)
        self._given = num_classes
        if num_classes is not None and self._stated is not None and self._stated > num_classes:
            raise DataError(
                f"{self._property}: says that there are {self._stated} classes, more than {num_classes}; call "
                f"set_class_num({self._stated}), or correct {PROPERTY} or remove it"
            )
        images, self._identities = images_of(self._file, self._index(keeps_index))
        self.num_images = len(images.keys)
        self._places = np.append(images.places, self._file.size)  # where they begin, and the end of the last one
        self._keys = _compact(images.keys)
        self._labels: Optional[np.ndarray] = None
        self.shuffle = shuffle
        self.blocks = self.stretches() if shuffle == "window" else None
        self._begun = bytearray()  # blocks of this epoch that are being read ahead
        if shuffle == "window" and self._identities:
            logger.warning(
                "%s: its images are sorted by identity, so that batches hold few identities with shuffle='window'; "
                "leave shuffle out",
                path,
            )

    def _index(self, keeps_index: bool) -> Index:
        """Returns where all records begin, from the index next to the file or by a scan."""
        path = os.path.splitext(self._file.path)[0] + _INDEX
        if os.path.lexists(path):
            index = read_index(path, self._name, self._file.size)
            self._probe(index, path)
            return index
        logger.info("%s: has no index %s; reading the whole file once", self._file.path, os.path.basename(path))
        numbers, places = self._file.scan()
        are_keys = numbers.max() < 1 << 63 and len(np.unique(numbers)) == len(numbers)
        index = Index(numbers.astype(np.int64) if are_keys else np.arange(len(places)), places)
        if keeps_index:
            try:
                write_index(Path(path), index)
            except OSError as problem:
                logger.info("%s: the index is not kept (%s)", path, problem.strerror or problem)
        return index

    def _probe(self, index: Index, path: str) -> None:
        """Looks at some of the records of an index.

        Raises:
            DataError: They do not begin where it says, or the last one does not end with the file.
        """
        last, end = len(index.places) - 1, 0
        for i in sorted({last * k // _PROBED for k in range(_PROBED + 1)}):
            where, place = f"{self._file.path}: record {index.keys[i]}, at byte {index.places[i]}", index.places[i]
            try:
                _, end = self._file.record(int(place))
            except BrokenError as problem:
                raise DataError(f"{where}: {problem}; or {path} is the index of another file") from None
            except OSError as problem:
                raise DataError(f"{where}: cannot be read ({problem.strerror}); check the disk") from problem
        if end < self._file.size:
            raise DataError(
                f"{path}: its last record ends at byte {end}, but {self._file.path} has {self._file.size} bytes; if "
                "the file of records was replaced, remove the index, since the records can be found without it"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes: that of the names or of `property`, or else the largest label plus one."""
        return len(self.class_names) or self._stated or int(self.labels().max(initial=-1)) + 1

    def name(self, i: int) -> str:
        """Returns `file:key`."""
        return f"{self._name}:{self._keys[i]}"

    def where(self, i: int) -> str:
        """Returns the file, the key of the record and the byte where it begins."""
        return f"{self._file.path}: record {self._keys[i]}, at byte {self._places[i]}"

    def read(self, i: int) -> tuple[bytes, int]:
        """Returns the encoded bytes and the label of image `i`; see `Records.read`."""
        place = int(self._places[i])
        try:
            if self.reads_ahead:
                self._read_ahead(i)
            data, _ = self._file.record(place, int(self._places[i + 1]) - place)
            header = header_of(data)
        except BrokenError as problem:
            raise DataError(f"{self.where(i)}: {problem}") from None
        except OSError as problem:
            raise DataError(f"{self.where(i)}: cannot be read ({problem.strerror}); check the disk") from problem
        label = self._class_of(header.labels[0], i)
        image = bytes(data[header.begin :])
        if not image:
            raise DataError(f"{self.where(i)}: holds no image; write the file again without this record")
        return image, label

    def _class_of(self, label: float, i: int) -> int:
        """Returns the class that a label means. Raises DataError if it means none."""
        if not (math.isfinite(label) and label == int(label)):
            raise DataError(f"{self.where(i)}: label {label} is not an integer; correct it: labels are class numbers")
        if label >= EXACT:
            raise DataError(
                f"{self.where(i)}: label {label:.0f} is too large for float32, in which RecordIO stores labels: above "
                f"{EXACT - 1} several classes share a number; take another format"
            )
        self._check(int(label), i)
        return int(label)

    def _check(self, label: int, i: int) -> None:
        limit = self._given or len(self.class_names) or self._stated
        if label >= 0 and (limit is None or label < limit):
            return
        if limit is not None and label >= limit and not self._given:
            source = CLASSES if self.class_names else PROPERTY
            raise WrongDataError(
                f"{self.where(i)}: label {label} is outside [0, {limit}), the classes that {source} next to the file "
                f"names; correct {source} or remove it"
            )
        check_label(label, self.where(i), limit, max(label, self._largest_label))

    @functools.cached_property
    def _largest_label(self) -> int:
        labels = self._raw_labels()
        return int(labels[labels < EXACT].max(initial=-1))

    def labels(self) -> np.ndarray:
        """Returns the label of each image, int32 [num_images]. The first call reads the beginning of every record.

        Raises:
            DataError: A record is broken, or a label is no class.
        """
        if self._labels is None:
            labels = self._raw_labels()
            with np.errstate(invalid="ignore"):
                whole = labels.astype(np.int32)
            limit = min(self._given or len(self.class_names) or self._stated or EXACT, EXACT)
            wrong = np.flatnonzero(~((labels == whole) & (labels >= 0) & (labels < limit)))
            if len(wrong):
                self._class_of(float(labels[wrong[0]]), int(wrong[0]))
            self._labels = whole
        return self._labels

    def _raw_labels(self) -> np.ndarray:
        return self._file.first_labels(self._places[:-1])

    def stretches(self) -> np.ndarray:
        """Returns blocks of about 4 MB; see `Records.stretches`."""
        return _blocks_of(self._places)

    def span(self, first: int, end: int) -> tuple[str, int, int]:
        """Returns the file and the bytes of its records; see `Records.span`."""
        begin = int(self._places[first])
        return self._file.path, begin, int(self._places[end]) - begin

    def digests(self) -> dict[str, str]:
        """Returns the number of images, and digests of where they are and of how many classes there are."""
        return {
            f"the number of images in {self._name}": str(self.num_images),
            f"the size of {self._name}, or where its records begin": hashlib.sha256(self._places.tobytes()).hexdigest(),
            f"the classes that {PROPERTY} or {CLASSES} names": str((self._stated, len(self.class_names))),
        }

    def will_read_blocks(self) -> None:
        """Prepares for an epoch in which the images of each block are read at about the same time."""
        if self.blocks is not None:
            self._begun = bytearray(len(self.blocks))
        super().will_read_blocks()

    def _read_ahead(self, i: int) -> None:
        """Asks the system to read a whole block ahead, at the first of its images that an epoch reads."""
        assert self.blocks is not None
        block = bisect.bisect_right(self.blocks, i) - 1
        if not self._begun[block]:
            self._begun[block] = 1
            first, end = self._places[self.blocks[block : block + 2]].tolist()
            self._file.read_ahead(first, end - first)


def _compact(keys: np.ndarray) -> Union[range, np.ndarray]:
    """Returns the keys in little memory: as a range if they count up, or in 4 bytes each if that is enough."""
    if np.all(np.diff(keys) == 1):
        return range(int(keys[0]), int(keys[-1]) + 1)
    return keys.astype(np.int32) if keys.max() < 1 << 31 else keys


def _blocks_of(places: np.ndarray) -> np.ndarray:
    """Returns the first image of each block of about 4 MB, and the number of images, int64 [B + 1]."""
    _, firsts = np.unique(places[:-1] // _BLOCK_BYTES, return_index=True)
    return np.append(firsts, len(places) - 1)


class RecordIOWriter:
    """Writes a RecordIO file with its index, as InsightFace does, for a `RecordWriter`.

    The file appears under its name when it is closed. One that is called train.rec gets a `property` as well.

    Args:
        path: The file to write, whose name ends in `.rec`.
        class_names: Name of each class, for `classes.txt` in the same folder.
        is_shared: Whether the file has this name from the start, because parts are written into it; those that an
            earlier writer has taken stay.

    Raises:
        OSError: The disk refuses it.
    """

    def __init__(self, path: Path, class_names: Sequence[str] = (), is_shared: bool = False) -> None:
        self._path, self._class_names = path, class_names
        self._ending = contextlib.ExitStack()
        if is_shared:
            path.touch()
        part = path if is_shared else self._ending.enter_context(replacing(path))
        self._stream = self._ending.enter_context(part.open("r+b" if is_shared else "wb", 1 << 20))
        self._place = 0
        self._places = array("q")
        self._runs = array("q")  # the first image of each run of equal labels, as long as each class is one run
        self._seen = bytearray()  # whether there is an image of a class
        self._last = -1
        self._is_sorted = True
        self._size: Optional[tuple[int, int]] = None  # height and width of the first image that can be opened

    def add(self, record: Record) -> None:
        """Writes one image. Raises OSError if the disk refuses it, and DataError if RecordIO cannot hold it."""
        pieces = pieces_of(record, len(self._places) + 1)
        if record.label != self._last:
            self._note_run(record.label, len(self._places) + 1)
        if self._size is None and len(self._places) < TRIED:
            self._size = pixels_of(record.data)
        self._append(pieces)

    def add_part(self, path: Path) -> None:
        """Adds the images of a `RecordIOPart`. Copies them into the file, unless the part was written into it.

        Args:
            path: The file of the part.

        Raises:
            OSError: The disk refuses it, or the part cannot be read.
            DataError: The part is damaged, or lies elsewhere in the file.
        """
        part = read_part(path)
        if part.place < 0:
            data = bytearray(path.read_bytes())
            number_images(data, part.places, len(self._places))
            self._stream.seek(self._place)
            self._stream.write(data)
            self._stream.flush()
            os.fsync(self._stream.fileno())  # so that little is left to write to the disk at the end
        elif part.place != self._place or part.place + part.size > self._path.stat().st_size:
            raise DataError(
                f"{self._path}: does not hold the images of {path.parent} where they should be; remove the unfinished "
                "conversion, and run it again"
            )
        self._size = self._size or part.pixels
        starts = np.flatnonzero(np.diff(part.labels, prepend=self._last))  # of runs of equal labels
        for label, start in zip(part.labels[starts].tolist(), starts.tolist()):
            self._note_run(label, len(self._places) + start + 1)
        self._places.frombytes((part.places + self._place).tobytes())
        self._place += part.size

    def _note_run(self, label: int, first: int) -> None:
        """Notes the label of a run of images, and the number of its first image."""
        self._last = label
        if label >= len(self._seen):
            self._seen.extend(bytes(label + 1 - len(self._seen)))
        self._is_sorted = self._is_sorted and not self._seen[label]
        self._seen[label] = 1
        if self._is_sorted:
            self._runs.append(first)

    def _append(self, pieces: Sequence[bytes]) -> None:
        self._places.append(self._place)
        for piece in pieces:
            self._stream.write(piece)
            self._place += len(piece)

    def close(self) -> None:
        """Writes the records that hold ranges, the index and `property`, and gives the file its name."""
        self._stream.seek(self._place)
        self._stream.truncate()  # what a writer that was killed has written behind the images
        images = len(self._places)
        bounds = [*self._runs, images + 1] if self._is_sorted else [images + 1]
        end = images + len(bounds)  # of the records, with those of the identities
        # Beyond 2^24 records float32 cannot hold the ranges, and InsightFace takes all records as images without them.
        has_ranges = end <= EXACT
        if has_ranges:
            self._append(frames_of(_range_record(0, images + 1, end)))
            for number, (first, after) in enumerate(zip(bounds, bounds[1:])):
                self._append(frames_of(_range_record(images + 1 + number, first, after)))
        keys = np.arange(len(self._places), dtype=np.int64)
        if has_ranges:
            keys[: images + 1] = (keys[: images + 1] + 1) % (images + 1)  # the images from 1 on, then 0
        write_index(self._path.with_suffix(_INDEX), Index(keys, np.frombuffer(self._places, np.int64)))
        if self._path.name == _USUAL:
            height, width = self._size or (0, 0)
            classes = len(self._class_names) or len(self._seen)
            self._write_next(PROPERTY, f"{classes},{height},{width}\n")
        if self._class_names:
            self._write_next(CLASSES, "".join(f"{name}\n" for name in self._class_names))
        self._ending.close()

    def _write_next(self, name: str, text: str) -> None:
        """Writes a small file next to that of the records."""
        with replacing(self._path.with_name(name)) as part:
            part.write_bytes(text.encode())


def _range_record(number: int, first: int, end: int) -> bytes:
    """Returns the data of a record without an image, which says that the records [first, end) belong to it."""
    return HEADER.pack(2, 0.0, number, 0) + np.array([first, end], "<f4").tobytes()
