"""Sets classes of a data set aside for a test: their images, pairs of them, and the list to leave out of training."""

from __future__ import annotations

import itertools
import logging
import math
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np

from plsc.data.damaged import is_damage
from plsc.data.encoded_image import decode_image, open_image
from plsc.data.exclusion import line_of
from plsc.data.pixels import PixelRule
from plsc.data.records import Records
from plsc.data.sources import format_of
from plsc.datasets.writers import class_folders, file_name
from plsc.errors import ConfigError, DataError, counted
from plsc.machine.files import sync, write_synced
from plsc.machine.names import to_text

logger = logging.getLogger("plsc")

NAME, EXCLUDE = "held_out", "exclude.txt"
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif", "TIFF": ".tif"}


class Wanted(NamedTuple):
    """What a split should be like.

    Attributes:
        share: Share of the classes to hold out, of those with at least two images.
        pairs: Number of pairs, half of them of one class.
        seed: Seed of the choice.
        rule: What pixels mean; images that cannot be decoded are not part of the test.
        exclude: List of images that the data set was opened without; None if it is whole.
    """

    share: float
    pairs: int
    seed: int
    rule: PixelRule
    exclude: Optional[Path] = None


class Split(NamedTuple):
    """What a split has made.

    Attributes:
        classes: Number of classes that are held out.
        images: Number of their images, without damaged ones.
        pairs: Number of pairs.
        left: Number of images that are left to train on.
        classes_left: Number of classes that have such images.
    """

    classes: int
    images: int
    pairs: int
    left: int
    classes_left: int


def split(records: Records, source: Path, output: Path, wanted: Wanted, advance: Callable[[int, int], None]) -> Split:
    """Writes the images of some classes, pairs of them, and the list of these images.

    Args:
        records: The data set, opened for rank 0 of 1.
        source: Its path.
        output: The new folder. It appears when all is written. It receives `held_out/<class>/<image>`, the pairs file
            `held_out.txt`, and `exclude.txt`.
        wanted: What to hold out.
        advance: Called with the number of images that are done, and of all that are held out.

    Raises:
        ConfigError: The folder cannot be written, or would become a part of the data set.
        DataError: There are not enough images.
    """
    _check_place(source, output)
    labels = records.labels()
    chosen = _choose(labels, wanted, str(source))
    images = np.flatnonzero(np.isin(labels, chosen))
    part = output.with_name(f".{output.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir()
        try:
            named = _write_images(records, images, labels, part, wanted.rule, advance)
            pairs = _choose_pairs([len(names) for names in named], wanted)
            flat = list(itertools.chain(*named))
            lines = (f"{to_text(flat[i])}\t{to_text(flat[j])}\t{same}\n" for i, j, same in pairs)
            write_synced(part / f"{NAME}.txt", "".join(lines).encode("utf-8", "surrogateescape"))
            _write_list(records, images, part / EXCLUDE, wanted.exclude)
            sync(part)
            os.rename(part, output)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as problem:
        raise ConfigError(f"{output}: cannot be written ({problem.strerror}); name another folder") from None
    rest = np.delete(labels, images)
    return Split(len(chosen), len(flat), len(pairs), len(rest), len(np.unique(rest)))


def _check_place(source: Path, output: Path) -> None:
    if "," in str(output.absolute()):
        raise ConfigError(f"{output}: set_val_targets separates names by commas; name a folder without one")
    is_inside = os.path.realpath(output).startswith(os.path.join(os.path.realpath(source), ""))
    if is_inside and format_of(str(source)) == "folder":
        raise ConfigError(f"{output}: lies in {source}, whose folders are its classes; name a folder outside")


def _choose(labels: np.ndarray, wanted: Wanted, where: str) -> np.ndarray:
    """Returns the classes to hold out, int64. Raises DataError if there are too few."""
    sizes = np.bincount(labels)
    classes, able = np.flatnonzero(sizes), np.flatnonzero(sizes >= 2)
    count = max(2, round(wanted.share * len(able)))
    if len(able) < 2 or len(classes) < 4:
        raise DataError(
            f"{where}: has {counted(len(classes), 'class')}, {len(able):,} of them with at least two images; a test "
            "needs two such classes, and training two others"
        )
    if len(classes) - count < 2:
        raise DataError(
            f"{where}: --held-out {wanted.share:g} would hold out {count:,} of {counted(len(classes), 'class')}, and "
            "training needs two others; lower it"
        )
    return np.sort(np.random.default_rng((wanted.seed, 1)).permutation(able)[:count])


def _write_images(
    records: Records,
    images: np.ndarray,
    labels: np.ndarray,
    folder: Path,
    rule: PixelRule,
    advance: Callable[[int, int], None],
) -> list[list[str]]:
    """Copies images as they are; returns for each class their paths relative to `folder`. Leaves out damaged ones."""
    named: dict[int, list[str]] = {}
    folders = class_folders(records.class_names, records.num_classes)
    damaged = 0
    records.will_read(images)
    for done, i in enumerate(images.tolist(), 1):
        label = int(labels[i])
        place = f"{NAME}/{folders[label]}"
        if label not in named:
            named[label] = []
            os.makedirs(folder / place)
        try:
            data, _ = records.read(i)
            decode_image(data, "RGB", records.where(i), rule)
        except DataError as error:
            if not is_damage(error):
                raise
            damaged += 1
            logger.warning("not part of the test: %s", error)
        else:
            name = _file_of(records.name(i), data, len(named[label]))
            path = f"{place}/{name}"
            (folder / path).write_bytes(data)
            named[label].append(path)
        advance(done, len(images))
    return [names for names in named.values() if names]


def _file_of(name: str, data: bytes, number: int) -> str:
    """Returns the name of a file for an image: a number, since names may repeat, and what it was called."""
    with open_image(data) as image:
        suffix = _SUFFIXES.get(image.format or "", f".{(image.format or 'image').lower()}")
    stem = os.path.splitext(name.rpartition("/")[2])[0]
    return file_name(f"{number:04d}{'-' + stem if stem else ''}{suffix}")


def _write_list(records: Records, images: np.ndarray, path: Path, given: Optional[Path]) -> None:
    """Writes the list of images that are held out, after those of a list that was given."""
    lines = [line_of(records.name(i), "held out for a test") for i in images.tolist()]
    if None in lines:
        name = records.name(int(images[lines.index(None)]))
        raise DataError(f"{name!r}: an image whose name holds a tab or line end cannot be left out by name; rename it")
    before = b"" if given is None else given.read_bytes()
    before += b"\n" if before and not before.endswith((b"\n", b"\r")) else b""
    write_synced(path, before + b"".join(line for line in lines if line is not None))


def _choose_pairs(sizes: Sequence[int], wanted: Wanted) -> list[tuple[int, int, int]]:
    """Returns (one, other, 1 for the same class) of pairs, as many of each kind and in turns, none of them twice.

    Classes have equally many pairs of the same class, as far as their images make so many.

    Args:
        sizes: Number of images of each class; images are numbered class by class.
        wanted: The number of pairs and the seed.

    Raises:
        DataError: There are not enough images that can be decoded.
    """
    rng = np.random.default_rng((wanted.seed, 2))
    counts = np.array(sizes, np.int64)
    of_class = counts * (counts - 1) // 2
    total = int(counts.sum())
    different = (total * total - int((counts * counts).sum())) // 2
    half = min(wanted.pairs // 2, int(of_class.sum()), different)
    if not half:
        raise DataError("the classes that are held out have too few images that can be decoded; hold out more classes")
    if half < wanted.pairs // 2:
        made = counted(2 * half, "pair")
        logger.warning("the images that are held out make only %s; hold out more classes for more", made)
    same = _same_pairs(counts, _shares(of_class, half), rng)
    others = _different_pairs(counts, half, different, rng)
    pairs = [(*pair, 1) for pair in same], [(*pair, 0) for pair in others]
    return list(itertools.chain(*zip(*pairs)))


def _shares(limits: np.ndarray, count: int) -> np.ndarray:
    """Divides a number among classes as evenly as their limits allow; the first ones get what remains."""
    shares = np.zeros_like(limits)
    while count:
        open_ones = np.flatnonzero(shares < limits)
        each = max(1, count // len(open_ones))
        given = np.minimum(each, limits[open_ones] - shares[open_ones])[:count]
        shares[open_ones[: len(given)]] += given
        count -= int(given.sum())
    return shares


def _same_pairs(counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    pairs = []
    for first, size, share in zip((np.cumsum(counts) - counts).tolist(), counts.tolist(), shares.tolist()):
        for number in rng.choice(size * (size - 1) // 2, share, replace=False).tolist():
            # Pair `number` of the pairs (0, 1), (0, 2), (1, 2), (0, 3), ...
            other = (1 + math.isqrt(1 + 8 * number)) // 2
            pairs.append((first + number - other * (other - 1) // 2, first + other))
    return [pairs[k] for k in rng.permutation(len(pairs))]


def _different_pairs(counts: np.ndarray, wanted: int, most: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Returns pairs of images of two classes. Classes are drawn with equal chances, while there are many pairs left."""
    firsts = np.cumsum(counts) - counts
    if most <= 4 * wanted:
        of_class = np.repeat(np.arange(len(counts)), counts)
        pairs = np.argwhere(np.triu(of_class[:, None] != of_class[None]))
        return [tuple(pair) for pair in pairs[rng.choice(len(pairs), wanted, replace=False)].tolist()]
    found: dict[tuple[int, int], None] = {}
    while len(found) < wanted:
        one, other = sorted(rng.choice(len(counts), 2, replace=False).tolist())
        images = rng.integers(0, counts[[one, other]])
        found[(int(firsts[one] + images[0]), int(firsts[other] + images[1]))] = None
    return list(found)
