"""The folder tree that the shards of a conversion fill together, so that no image has to be moved at the end.

    images/data/CLASS/NAME          the tree
    shard-00000/owned               a line CLASS/NAME for each file of the tree that a complete shard has made
    shard-00000/spare               a line for each image whose name another image of the class had
    shard-00000/data/0              the image of the first of these lines
    shard-00000.*.piece/intended    lines of a shard that is being made, which are written before their files

Which of several shards gets a name first is chance, and a kill leaves files of incomplete shards. The lists tell whose
each file is, so that `roll_back` removes what has to be made again, and `settle` gives names as one process would that
made all shards in turn: the first image of a class that has a name keeps it, the others get a number.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from plsc.data.records import Record
from plsc.datasets.writers import class_folders, file_name, numbered
from plsc.errors import DataError
from plsc.machine.files import write_all, write_synced

DATA, TREE = "data", "images"
_OWNED, _SPARE, _INTENDED = "owned", "spare", "intended"
_ASIDE = "owned-"  # a file of the tree that is moved away for that of an earlier shard, by its line in `owned`
_BATCH, _BATCH_BYTES = 64, 4_000_000  # images that are made after their lines were written
_PASSES = 16  # over the lists, which take as much less memory if all images have the same name
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


class TreeWriter:
    """Writes the images of a shard into the folders of their classes, in the tree of all shards.

    Args:
        path: The folder `data` of the shard, in the hidden folder of the conversion.
        class_names: Name of each class; empty if they are unknown.
        num_classes: Number of classes if they have no names, which gives all numbers the same count of digits.
    """

    def __init__(self, path: Path, class_names: Sequence[str] = (), num_classes: int = 0) -> None:
        self._shard, self._tree = path.parent, _tree_of(path.parent.parent)
        self._folders = list(map(os.fsencode, class_folders(class_names, num_classes)))
        self._batch: list[tuple[bytes, bytes]] = []
        self._bytes = 0
        self._owned: list[bytes] = []
        self._spare: list[bytes] = []
        self._intended = open(self._shard / _INTENDED, "xb", buffering=0)  # noqa: SIM115 - `close` closes it

    def add(self, record: Record) -> None:
        """Writes one image, at the latest when the writer is closed. Raises OSError if the disk refuses it."""
        name = os.fsencode(file_name(posixpath.basename(record.name)))
        self._batch.append((b"%s/%s" % (self._folders[record.label], name), record.data))
        self._bytes += len(record.data)
        if len(self._batch) == _BATCH or self._bytes > _BATCH_BYTES:
            self._write()

    def close(self) -> None:
        """Writes what is left, and the lists of the files."""
        try:
            self._write()
        finally:
            self._intended.close()
        for name, lines in (_OWNED, self._owned), (_SPARE, self._spare):
            write_synced(self._shard / name, b"".join(b"%s\n" % line for line in lines))

    def _write(self) -> None:
        write_all(self._intended.fileno(), b"".join(b"%s\n" % line for line, _ in self._batch))
        for line, data in self._batch:
            file = self._open(line)
            try:
                write_all(file, data)
            finally:
                os.close(file)
        self._batch.clear()
        self._bytes = 0

    def _open(self, line: bytes) -> int:
        """Makes the file of a line, or a spare one if there is such a file."""
        path = b"%s/%s" % (self._tree, line)
        with contextlib.suppress(FileExistsError):
            try:
                file = os.open(path, _NEW, 0o666)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                file = os.open(path, _NEW, 0o666)
            self._owned.append(line)
            return file
        self._spare.append(line)
        return os.open(self._shard / DATA / str(len(self._spare) - 1), _NEW, 0o666)


def roll_back(folder: Path, shards: Iterable[Path], others: Iterable[Path]) -> None:
    """Removes the files that incomplete shards have made in the tree.

    Args:
        folder: Hidden folder of the conversion.
        shards: Folders of incomplete shards, or of complete ones that have to be made again.
        others: Folders of the complete shards, whose files stay.
    """
    lines = {line for shard in shards for name in (_INTENDED, _OWNED) for line in _lines(shard / name)}
    if not lines:
        return
    for shard in others:
        lines.difference_update(_lines(shard / _OWNED))
    tree = _tree_of(folder)
    for line in lines:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(b"%s/%s" % (tree, line))


def has_files(shard: Path) -> bool:
    """Returns whether a shard may have made files in the tree, so that its folder stays until `roll_back`."""
    return (shard / _INTENDED).exists()


def owned_sizes(shard: Path) -> list[int]:
    """Returns the bytes of each file that a complete shard has in the tree. Raises OSError if one is missing."""
    tree = _tree_of(shard.parent)
    return [os.lstat(b"%s/%s" % (tree, line)).st_size for line in _lines(shard / _OWNED)]


def check_count(folder: Path, shards: Sequence[Path], images: int) -> None:
    """Checks that all images have a file, and that there are no other files.

    Raises:
        DataError: That is not so, as after a power cut.
    """
    count = sum(len(os.listdir(shard / DATA)) for shard in shards)
    with os.scandir(_tree_of(folder)) as classes:
        count += sum(len(os.listdir(one.path)) for one in classes)
    if count != images:
        raise DataError(
            f"{folder}: holds {count} files of {images} images, as after a power cut; remove it, and run the same "
            "command again"
        )


def settle(folder: Path, shards: Sequence[Path]) -> None:
    """Moves the spare files into the tree. A call that is killed is continued by the next one, to the same names.

    Args:
        folder: Hidden folder of the conversion.
        shards: Folders of the shards, in their order.
    """
    if any(os.listdir(shard / DATA) for shard in shards):
        for number in range(_PASSES):
            _settle_some(_tree_of(folder), shards, number)


def _settle_some(tree: bytes, shards: Sequence[Path], number: int) -> None:
    """Does what `settle` does for one in `_PASSES` names."""
    left = [set(os.listdir(shard / DATA)) for shard in shards]
    files: dict[bytes, list[tuple[int, int, Path]]] = {}  # by line: shard, line in `spare`, or -1, and path
    for k, shard in enumerate(shards):
        for i, line in enumerate(_lines(shard / _SPARE)) if left[k] else ():
            if zlib.crc32(line) % _PASSES == number and str(i) in left[k]:
                files.setdefault(line, []).append((k, i, shard / DATA / str(i)))
    for k, shard in enumerate(shards):
        for i, line in enumerate(_lines(shard / _OWNED)):
            aside = shard / DATA / f"{_ASIDE}{i}"
            if aside.name in left[k]:
                if zlib.crc32(line) % _PASSES == number:
                    files.setdefault(line, []).append((k, -1, aside))
            elif line in files and k > min(files[line])[0]:
                os.rename(b"%s/%s" % (tree, line), aside)
                files[line].append((k, -1, aside))
    paths = {line: os.fsdecode(b"%s/%s" % (tree, line)) for line in sorted(files)}
    for line, path in paths.items():  # before any file gets a number, with which it could take the name of another
        if not os.path.lexists(path):
            files[line].sort()
            os.rename(files[line].pop(0)[2], path)
    for line, path in paths.items():
        number = 2
        for _, _, source in sorted(files[line]):
            number = _place(source, path, number)


def _place(source: Path, path: str, number: int) -> int:
    """Gives a file that name in the tree with the first number from `number` on that is free, and returns it."""
    folder, name = os.path.split(path)
    while os.path.lexists(target := f"{folder}/{numbered(name, number)}"):
        number += 1
    os.rename(source, target)
    return number


def _tree_of(folder: Path) -> bytes:
    return os.fsencode(folder / TREE / DATA)


def _lines(path: Path) -> list[bytes]:
    """Returns the whole lines of a list; none if it is missing. What a kill cut off stands for no file."""
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
