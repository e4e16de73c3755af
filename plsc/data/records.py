"""What every kind of training data gives: encoded images, numbered from 0, with their labels and names."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import NamedTuple, Optional, Protocol, TypeVar

import numpy as np

from plsc.data.sampler import WINDOW_BLOCKS, block_indices, epoch_indices
from plsc.errors import DataError, PlscError, WrongDataError
from plsc.machine.logs import reword

T = TypeVar("T")

LARGEST_LABEL = 10**9 - 1


class Record(NamedTuple):
    """One image of a data set.

    Attributes:
        name: What the image is called in its data set: a path without `..`, with `/` between its parts.
        data: The encoded image.
        label: Number of its class.
    """

    name: str
    data: bytes
    label: int


class Opening(NamedTuple):
    """What a format needs to know to open a data set.

    Attributes:
        path: A folder, a file, or a pattern of files.
        num_classes: Number of classes, which labels must be below; None accepts every label.
        rank: Rank of this process.
        world_size: Number of ranks.
        shuffle: 'window', 'files' or 'full', as in `set_data_format`; None is the default of the format.
        accepts_missing: Whether images may be missing. Those that are raise an error when they are read.
        is_partial: Whether files with images may be missing until images of them are read. Only formats whose records
            have `files` can open such data.
        test_sets: Names of the test sets, which may lie in the same folder.
        keeps_index: Whether rank 0 may write an index that it has made next to the data.
    """

    path: str
    num_classes: Optional[int] = None
    rank: int = 0
    world_size: int = 1
    shuffle: Optional[str] = None
    accepts_missing: bool = False
    is_partial: bool = False
    test_sets: Sequence[str] = ()
    keeps_index: bool = True


class Records(abc.ABC):
    """A data set of encoded images, which several threads may read.

    Attributes:
        num_images: Number of images of all ranks together.
        class_names: Name of each class in the order of the numbers; empty if they are unknown.
        blocks: First image of each block, and the number of images, int64 [B + 1]. The images of a block lie side by
            side on the disk, and are read at about the same time. None means that any order is as fast.
        window: Number of blocks whose images are mixed.
        shuffle: How the order of an epoch is drawn, as in `set_data_format`; None for data that knows one way only.
        reads_ahead: Whether `read` may read the rest of a block ahead, because the images of a block are read at about
            the same time.
        slow_draws: Why images that are drawn from all over the data take much longer to read, for a warning; empty if
            they do not.
        files: Names of the files that hold the images, relative to the path of the data, for formats that can tell
            them without opening the files. Such data can be read from a store file by file.
        is_streamed: Whether the files are fetched from a store while they are read and removed after that. Such images
            are read in their order, by this process alone, after `will_read`.
        image_bytes: About how many bytes all encoded images have, for data that can tell without reading them.
        has_image_files: Whether each image is a file, whose path relative to that of the data is its name.
        on_close: Called by `close`, to release what whoever opened the data set holds for it.
    """

    num_images: int
    class_names: Sequence[str] = ()
    blocks: Optional[np.ndarray] = None
    window: int = WINDOW_BLOCKS
    shuffle: Optional[str] = None
    reads_ahead: bool = False
    slow_draws: str = ""
    files: Sequence[str] = ()
    is_streamed: bool = False
    image_bytes: Optional[int] = None
    has_image_files: bool = False
    on_close: Optional[Callable[[], object]] = None

    @abc.abstractmethod
    def name(self, i: int) -> str:
        """Returns the name of image `i`; see `Record.name`."""

    @abc.abstractmethod
    def where(self, i: int) -> str:
        """Returns where image `i` is stored or listed, for error messages."""

    @abc.abstractmethod
    def read(self, i: int) -> tuple[bytes, int]:
        """Returns the encoded bytes and the label of image `i`.

        Raises:
            DataError: The image cannot be read, or its record is damaged.
        """

    @abc.abstractmethod
    def labels(self) -> np.ndarray:
        """Returns the label of every image, int64 or int32 [num_images]."""

    @abc.abstractmethod
    def digests(self) -> dict[str, str]:
        """Returns a digest of each thing that must be the same on every rank, by its name."""

    @property
    def num_classes(self) -> int:
        """Number of classes: that of the names, or the largest label plus one."""
        return len(self.class_names) or int(self.labels().max(initial=-1)) + 1

    @property
    def epoch_images(self) -> int:
        """Number of images that an epoch draws, of all ranks together."""
        return self.num_images

    def epoch_order(self, seed: int, epoch: int, rank: int, world_size: int) -> np.ndarray:
        """Returns the images of a rank in the order of an epoch, int64 or int32 [ceil(epoch_images / world_size)]."""
        if self.blocks is None:
            return epoch_indices(self.num_images, seed, epoch, rank, world_size)
        self.will_read_blocks()
        return block_indices(self.blocks, seed, epoch, rank, world_size, self.window)

    def files_of(self, images: np.ndarray) -> np.ndarray:
        """Returns the number of the file, in `files`, of each image: int64 [n] for int64 [n]."""
        raise NotImplementedError(f"{type(self).__name__} does not know its files")

    def file_of(self, i: int) -> int:
        """Returns the number of the file, in `files`, of image `i`."""
        return int(self.files_of(np.array([i]))[0])

    def will_read(self, images: np.ndarray) -> None:  # noqa: B027 - most sources have nothing to do
        """Prepares for `images` to be read in this order. Data that is fetched is fetched in this order."""

    def will_read_blocks(self) -> None:
        """Prepares for an epoch in which the images of each block are read at about the same time."""
        self.reads_ahead = self.blocks is not None

    def end_waiting_if(self, is_stopping: Callable[[], bool]) -> None:  # noqa: B027 - most sources never wait
        """Has a read that waits for a file raise StoppedError as soon as `is_stopping` returns True."""

    def stretches(self) -> Optional[np.ndarray]:
        """Returns the first image of each stretch, and the number of images, int64 [S + 1].

        The images of a stretch are few megabytes that lie side by side in one file, where `span` tells. None means that
        each image has a place of its own.
        """
        return None

    def span(self, first: int, end: int) -> tuple[str, int, Optional[int]]:
        """Returns the file, where the bytes of images `first` to before `end` begin, and how many they are.

        They are images of one stretch. None means all bytes of the file.
        """
        raise NotImplementedError(f"{type(self).__name__} does not know where its images are")

    def labels_of_file(self, number: int) -> np.ndarray:
        """Returns what `labels_of_files` needs of a file, of which `files` has the name."""
        raise NotImplementedError(f"{type(self).__name__} does not know its files")

    def labels_of_files(self, found: Sequence[np.ndarray]) -> np.ndarray:
        """Returns what `labels` does, from the results of `labels_of_file` of all files."""
        raise NotImplementedError(f"{type(self).__name__} does not know its files")

    def close_files(self) -> None:  # noqa: B027 - most sources have nothing to do
        """Closes the files that are open, because one of them is about to be removed. `read` opens them again."""

    def close(self) -> None:
        """Releases what the data set holds. Nothing is read after that."""
        if self.on_close is not None:
            self.on_close()


class WrappedRecords(Records):
    """A data set that has the images of another one, and changes what its subclass overrides.

    Its attributes are those of any data set; a subclass sets the ones that it keeps.

    Args:
        source: The other data set, which is closed with this one.
    """

    def __init__(self, source: Records) -> None:
        self._source = source
        self.num_images, self.class_names = source.num_images, source.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes of the other data set."""
        return self._source.num_classes

    def name(self, i: int) -> str:
        """Returns the name of image `i`."""
        return self._source.name(i)

    def where(self, i: int) -> str:
        """Returns where image `i` is stored or listed."""
        return self._source.where(i)

    def read(self, i: int) -> tuple[bytes, int]:
        """Returns the encoded bytes and the label of image `i`; see `Records.read`."""
        return self._source.read(i)

    def will_read(self, images: np.ndarray) -> None:
        """Prepares for images to be read in this order."""
        self._source.will_read(images)

    def will_read_blocks(self) -> None:
        """Prepares for an epoch in which the images of each block are read at about the same time."""
        self._source.will_read_blocks()

    def end_waiting_if(self, is_stopping: Callable[[], bool]) -> None:
        """Has a read that waits for a file raise StoppedError as soon as `is_stopping` returns True."""
        self._source.end_waiting_if(is_stopping)

    def labels(self) -> np.ndarray:
        """Returns the label of every image."""
        return self._source.labels()

    def digests(self) -> dict[str, str]:
        """Returns a digest of each thing that must be the same on every rank, by its name."""
        return self._source.digests()

    def close(self) -> None:
        """Releases what the other data set holds, and what whoever opened this one holds for it."""
        self._source.close()
        super().close()


class RenamedRecords(WrappedRecords):
    """A data set whose files stand for those of another place, which messages name instead.

    Args:
        source: The data set.
        named: Returns a text with the other place in it.
    """

    def __init__(self, source: Records, named: Callable[[str], str]) -> None:
        super().__init__(source)
        self._named = named
        self.blocks, self.window, self.shuffle = source.blocks, source.window, source.shuffle
        self.slow_draws, self.image_bytes = source.slow_draws, source.image_bytes
        self.has_image_files = source.has_image_files

    @property
    def num_classes(self) -> int:
        """Number of classes of the other data set."""
        return self._renaming(lambda: self._source.num_classes)

    def where(self, i: int) -> str:
        """Returns where image `i` is in the other place."""
        return self._named(self._source.where(i))

    def read(self, i: int) -> tuple[bytes, int]:
        """Returns the encoded bytes and the label of image `i`; see `Records.read`."""
        return self._renaming(lambda: self._source.read(i))

    def labels(self) -> np.ndarray:
        """Returns the label of every image."""
        return self._renaming(self._source.labels)

    def _renaming(self, action: Callable[[], T]) -> T:
        """Returns what `action` returns. An error of it names the other place."""
        try:
            return action()
        except PlscError as problem:
            reword(problem, self._named)
            raise

    def epoch_order(self, seed: int, epoch: int, rank: int, world_size: int) -> np.ndarray:
        """Returns the images of a rank in the order of an epoch."""
        return self._source.epoch_order(seed, epoch, rank, world_size)


def check_label(label: int, where: str, num_classes: Optional[int], largest: int) -> None:
    """Checks a label.

    Args:
        label: The label.
        where: Where it stands.
        num_classes: Number of classes; None accepts every label from 0 on.
        largest: Largest label of the data set.

    Raises:
        DataError: The label is negative or too large for any data.
        WrongDataError: It is not below `num_classes`.
    """
    if label < 0:
        raise DataError(f"{where}: label {label} is negative; correct it: labels count from 0")
    if label > LARGEST_LABEL and (num_classes is None or label < num_classes):
        raise DataError(f"{where}: label {label} is larger than {LARGEST_LABEL}; correct it")
    if num_classes is not None and label >= num_classes:
        raise WrongDataError(
            f"{where}: label {label} is outside [0, {num_classes}), and the largest label of the data is {largest}; "
            f"call set_class_num({largest + 1}), or correct the labels, which count from 0"
        )


class RecordWriter(Protocol):
    """Writes the images of one file, or of one folder, in the order in which they are added."""

    def add(self, record: Record) -> None:
        """Writes one image. Raises OSError if the disk refuses it."""

    def close(self) -> None:
        """Finishes the file, so that a reader finds all that was added, and closes it."""
