"""What training reads: the `ImageSource` protocol, and the function that opens the data of any format."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Callable, NamedTuple, Optional, Protocol

import numpy as np

from plsc.data import base64_source, folder_tree, label_file, parquet_files, recordio, tar_shards
from plsc.data.distant import DistantFolder, DistantRecords
from plsc.data.records import Opening, Records
from plsc.data.united import UnitedRecords, check_count, merge_classes, separate_classes, titles_of
from plsc.data.unknown import not_data
from plsc.errors import ConfigError, DataError
from plsc.machine.mounts import mount_of
from plsc.storage.address import split_address
from plsc.storage.data_cache import is_copy

SHUFFLES = ("window", "files", "full")


class ImageSource(Protocol):
    """Encoded images with labels, each identified by a number."""

    @property
    def epoch_images(self) -> int:
        """Number of images that an epoch draws, of all ranks together."""

    def epoch_order(self, seed: int, epoch: int, rank: int, world_size: int) -> np.ndarray:
        """Returns the samples of a rank in the order of an epoch, int64 or int32 [ceil(epoch_images / world_size)]."""

    def digests(self) -> dict[str, str]:
        """Returns a digest of each thing that must be the same on every rank, by its name."""

    def name(self, i: int) -> str:
        """Returns what image `i` is called in its data set."""

    def will_read(self, images: np.ndarray) -> None:
        """Prepares for samples to be read in this order."""

    def where(self, i: int) -> str:
        """Returns where sample `i` is listed, for error messages."""

    def read(self, i: int) -> tuple[bytes, int]:
        """Returns the encoded bytes and the label of image `i`."""


class Format(NamedTuple):
    """A way to keep a data set.

    Attributes:
        holds: Whether a path is data of this format, as far as names of files show.
        open: Opens the data; raises DataError if it is not of this format.
        about: What the path is, for error messages.
        shuffles: The ways to shuffle it, the default first; none where each image has its own file.
    """

    holds: Callable[[str], bool]
    open: Callable[[Opening], Records]
    about: str
    shuffles: Sequence[str] = ()


# The first that recognises a path opens it for the format 'auto'.
FORMATS = {
    "base64": Format(
        base64_source.holds_split, base64_source.open_records, "base64 data split for the ranks", SHUFFLES
    ),
    "jpeg": Format(label_file.holds_list, label_file.open_records, "a folder with label.txt and images"),
    "recordio": Format(
        recordio.holds_records, recordio.open_records, "a folder with train.rec, or a .rec file", ("full", "window")
    ),
    "tar": Format(tar_shards.holds_tars, tar_shards.open_records, "tars as WebDataset writes them", ("window", "full")),
    "parquet": Format(
        parquet_files.holds_tables, parquet_files.open_records, "Parquet files with images and labels", ("window",)
    ),
    # The last one, because folders may hold data of any other format too.
    "folder": Format(folder_tree.holds_tree, folder_tree.open_records, "a folder of images for each class"),
}
DATA_FORMATS = ("auto", *FORMATS)


def open_images(
    path: str,
    num_classes: Optional[int],
    rank: int,
    world_size: int,
    data_format: str = "auto",
    shuffle: Optional[str] = None,
    accepts_missing: bool = False,
    test_sets: Sequence[str] = (),
    keeps_index: bool = True,
) -> Records:
    """Opens the samples of one rank.

    Args:
        path: Data of one of `FORMATS`.
        num_classes: Number of classes; labels must be in [0, num_classes). None accepts every label.
        rank: Rank of this process.
        world_size: Number of ranks.
        data_format: A name of `FORMATS`, or 'auto'.
        shuffle: For data whose files hold many images, 'window', 'files' or 'full'; see `set_data_format`.
        accepts_missing: Whether image files may be missing, for callers that deal with images that cannot be read.
        test_sets: Names of test sets in the same folder, which are not trained on.
        keeps_index: Whether rank 0 may write an index that it has made next to the data, unless that is a copy in a
            data cache.

    Raises:
        ConfigError: The data cannot be shuffled like that.
        DataError: The path does not hold such data, or the data has a mistake.
    """
    name = format_of(path) if data_format == "auto" else data_format
    if name is None:
        raise _unknown(path, world_size)
    _check_shuffle(path, name, shuffle)
    opening = Opening(
        path,
        num_classes,
        rank,
        world_size,
        shuffle=shuffle,
        accepts_missing=accepts_missing,
        test_sets=test_sets,
        keeps_index=keeps_index and not is_copy(path),
    )
    records = FORMATS[name].open(opening)
    source = mount_of(path)
    return DistantRecords(records, source) if isinstance(source, DistantFolder) else records


def open_several(
    paths: Sequence[str],
    num_classes: Optional[int],
    data_format: str = "auto",
    shuffle: Optional[str] = None,
    separate: bool = False,
    weights: Optional[Sequence[float]] = None,
    accepts_missing: bool = False,
    test_sets: Sequence[str] = (),
    keeps_index: bool = True,
    open_others: Callable[[], Mapping[str, Records]] = dict,
) -> UnitedRecords:
    """Opens several data sets as one, which gives every rank access to all images.

    Args:
        paths: The sets, each as for `open_images`, or an address.
        num_classes: Number of classes of all sets together, or a larger one; None accepts what the sets have.
        data_format: The format of all of them, or 'auto'.
        shuffle: As for `open_images`.
        separate: Whether classes of the same name in different sets are different classes.
        weights: How often the images of each set are drawn in an epoch; see `UnitedRecords`.
        accepts_missing: As for `open_images`.
        test_sets: As for `open_images`.
        keeps_index: Whether this process may write indexes that it has made next to the data.
        open_others: Opens the sets that are not on this machine, each for rank 0 of 1; returns them by their paths. It
            is called once the sets of this machine are open, because a mistake in those costs no time.

    Raises:
        ConfigError: The number of classes does not fit.
        DataError: A set cannot be opened, or two classes of a set have the same name.
    """
    titles = titles_of(paths)
    with contextlib.ExitStack() as undo:
        opened: dict[str, Records] = {}
        for path in paths:
            if split_address("set_dataset_dir", path) is None:
                opened[path] = open_images(
                    path,
                    None,
                    0,
                    1,
                    data_format=data_format,
                    shuffle=shuffle,
                    accepts_missing=accepts_missing,
                    test_sets=test_sets,
                    keeps_index=keeps_index,
                )
                undo.callback(opened[path].close)
        for path, one in open_others().items():
            opened[path] = one
            undo.callback(one.close)
        records = [opened[path] for path in paths]
        classes = (separate_classes if separate else merge_classes)(titles, records)
        check_count(classes, num_classes or 0, titles, exactly=separate)
        united = UnitedRecords(titles, records, classes, weights)
        undo.pop_all()
    return united


def format_of(path: str) -> Optional[str]:
    """Returns the format that a path seems to hold; None if it is none of `FORMATS`."""
    return next((name for name, one in FORMATS.items() if one.holds(path)), None)


def takes_class_list(path: object, data_format: str = "auto") -> bool:
    """Returns whether a `classes.txt` in a single data set fixes the numbers of its classes."""
    if not isinstance(path, str):
        return False
    return (format_of(path) if data_format == "auto" else data_format) in ("jpeg", "folder")


def _check_shuffle(path: str, name: str, shuffle: Optional[str]) -> None:
    """Raises an error if data of a format cannot be shuffled in some way."""
    shuffles = FORMATS[name].shuffles
    if shuffle is None or shuffle in shuffles:
        return
    said = f"{path}: set_data_format(shuffle={shuffle!r})"
    if not shuffles:
        raise DataError(
            f"{said} needs files that hold many images each, and here each image has its own file; leave shuffle out"
        )
    raise ConfigError(
        f"{said}: {name} data takes {' or '.join(map(repr, shuffles))}; choose from these, or leave shuffle out"
    )


def _unknown(path: str, world_size: int) -> DataError:
    if os.path.exists(os.path.join(path, base64_source.UNSPLIT_LIST)):
        return base64_source.not_split(path, world_size)
    return not_data(path, ", ".join(f"{one.about} ({name!r})" for name, one in FORMATS.items()))
