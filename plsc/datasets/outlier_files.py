"""The folder that `plsc data outliers` writes.

embeddings/     an embeddings folder of all images; see `plsc.search.embeddings`
images.tsv      images that do not fit in their class
classes.tsv     classes that may be one (merge) or two (split)
copies.tsv      copies in other classes, and of test images
leave_out.txt   images to leave out, for set_dataset_dir(exclude=...)
page.html       the first of each kind, as pictures; `plsc.report.outliers` writes it
outliers.json   the numbers and the limits; written last
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from plsc.data.collection import Collection, RecordImages
from plsc.data.exclusion import line_of
from plsc.datasets.check import View
from plsc.datasets.look_alikes import look_alike
from plsc.datasets.outliers import Limits, Outliers
from plsc.errors import ConfigError
from plsc.machine.files import replace_file
from plsc.machine.json_files import json_text
from plsc.machine.names import class_title
from plsc.machine.tables import write_rows

EMBEDDINGS, PAGE = "embeddings", "page.html"
_SUMMARY = "outliers.json"
_FORMAT = "plsc outliers 1"
_OWN = {EMBEDDINGS, "images.tsv", "classes.tsv", "copies.tsv", "leave_out.txt", PAGE, _SUMMARY}


@dataclass(frozen=True)
class Review:
    """What has been found in a data set, and how its images are called.

    Attributes:
        found: What has been found.
        images: The images of the data set.
        tests: The test sets.
        class_names: Names of the classes; empty if they have none.
        damaged: Numbers of the images that could not be decoded.
    """

    found: Outliers
    images: RecordImages
    tests: Sequence[Collection]
    class_names: Sequence[str]
    damaged: Sequence[int]

    def class_of(self, number: int) -> str:
        """Returns the name of a class, or its number if the classes have no names."""
        return self.class_names[number] if len(self.class_names) else str(number)

    def class_title(self, number: int) -> str:
        """Returns what texts call a class."""
        return class_title(number, self.class_names)

    def test_image(self, i: int) -> str:
        """Returns what an image of the test sets is called, numbered one set after another."""
        test, i = self.place_in_tests(i)
        return test.name(i)

    def place_in_tests(self, i: int) -> tuple[Collection, int]:
        """Returns the test set of an image of the test sets, and its number in that set."""
        for test in self.tests:
            if i < test.num_images:
                return test, i
            i -= test.num_images
        raise IndexError(i)


class Summary(NamedTuple):
    """The numbers of what has been found.

    Attributes:
        images: Images of the data set.
        damaged: Images that could not be decoded.
        threshold: Cosine with the own class below which an image is an outlier.
        outliers: Images that are far from their class, and closer to another one.
        doubtful: Images for which only one of the two holds.
        merges: Pairs of classes that may be one.
        splits: Classes that may be two.
        copies: Images with a copy in another class.
        leaks: Copies of test images.
        left_out: Images on the list.
        unnamed: Images that should be on the list, and that no line can name.
    """

    images: int
    damaged: int
    threshold: float
    outliers: int
    doubtful: int
    merges: int
    splits: int
    copies: int
    leaks: int
    left_out: int
    unnamed: int


def check_folder(folder: Path) -> None:
    """Checks that a folder is new, or one that an interrupted command has left.

    Raises:
        ConfigError: It holds something else, or a finished review.
    """
    try:
        names = {name for name in os.listdir(folder) if not name.startswith(".")}
    except FileNotFoundError:
        return
    except OSError as problem:
        raise ConfigError(f"{folder}: cannot be used ({problem.strerror}); name a new folder with --output") from None
    if names >= {EMBEDDINGS, _SUMMARY}:
        raise ConfigError(
            f"{folder}: is finished, and nothing is overwritten; name a new folder with --output (to look again with "
            f"other limits, move {folder / EMBEDDINGS} there first, and no image is embedded again)"
        )
    # A command that is interrupted before the end has written the embeddings, and perhaps tables, which nobody edits.
    own = _OWN if EMBEDDINGS in names else set()
    strangers = sorted(names - own)
    if strangers:
        raise ConfigError(
            f"{folder}: holds {', '.join(strangers[:3])}, which plsc data outliers did not write; name a new folder "
            "with --output"
        )


def confirm_copies(review: Review, view: View) -> None:
    """Keeps those copies whose pixels look alike too: a network may embed different images of a class alike.

    Args:
        review: What has been found.
        view: How images are looked at.

    Raises:
        DataError: An image cannot be read any more.
    """

    def pixels(images: Collection, i: int) -> np.ndarray:
        return images.pixels(i, view.shape, view.rule)

    found, own = review.found, review.images
    found.copies = [one for one in found.copies if look_alike(pixels(own, one[0]), pixels(own, one[1]))]
    found.leaks = [
        one for one in found.leaks if look_alike(pixels(own, one[0]), pixels(*review.place_in_tests(one[1])))
    ]


def summary_of(review: Review) -> Summary:
    """Returns the numbers of what has been found.

    Args:
        review: What has been found.
    """
    found = review.found
    lines, unnamed = _lines_to_leave_out(review)
    return Summary(
        images=review.images.num_images,
        damaged=len(review.damaged),
        threshold=found.threshold,
        outliers=len(found.images),
        doubtful=len(found.doubtful),
        merges=len(found.merges),
        splits=len(found.splits),
        copies=len(found.copies),
        leaks=len(found.leaks),
        left_out=len(lines),
        unnamed=unnamed,
    )


def write_tables(folder: Path, review: Review) -> None:
    """Writes the tables and the list of images to leave out into a folder that `check_folder` has allowed.

    Raises:
        ConfigError: The folder cannot be written.
    """
    _write(
        folder,
        {
            "images.tsv": _table(
                ("kind", "image", "class", "cosine", "nearest class", "its cosine"), _image_rows(review)
            ),
            "classes.tsv": _table(("kind", "class", "and", "likeness", "images"), _class_rows(review)),
            "copies.tsv": _table(("kind", "image", "class", "copy of", "cosine"), _copy_rows(review)),
            "leave_out.txt": b"".join(_lines_to_leave_out(review)[0]),
        },
    )


def write_summary(folder: Path, summary: Summary, limits: Limits) -> None:
    """Writes the numbers and the limits, which say that the folder is complete.

    Raises:
        ConfigError: The folder cannot be written.
    """
    text = json_text({"format": _FORMAT, **summary._asdict(), "limits": limits._asdict()}, indent=1) + "\n"
    _write(folder, {_SUMMARY: text.encode()})


def _write(folder: Path, files: dict[str, bytes]) -> None:
    try:
        for name, content in files.items():
            replace_file(folder / name, content)
    except OSError as problem:
        raise ConfigError(f"{folder}: cannot be written ({problem.strerror}); free space, and run it again") from None


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    stream = io.StringIO(newline="")
    write_rows(stream, [header])
    write_rows(stream, ([f"{one:.4f}" if isinstance(one, float) else str(one) for one in row] for row in rows))
    return stream.getvalue().encode("utf-8", "surrogateescape")


def _image_rows(review: Review) -> Iterator[Sequence[Any]]:
    found = review.found
    for kind, images in (("outlier", found.images), ("doubtful", found.doubtful)):
        for i in images.tolist():
            cosines = float(found.own[i]), float(found.other[i])
            nearest = review.class_of(int(found.nearest[i]))
            yield kind, review.images.name(i), review.images.identity(i), cosines[0], nearest, cosines[1]


def _class_rows(review: Review) -> Iterator[Sequence[Any]]:
    for one, other, similar in review.found.merges:
        yield "merge", review.class_of(one), review.class_of(other), similar, ""
    for number, similar, first, second in review.found.splits:
        yield "split", review.class_of(number), "", similar, f"{len(first)} + {len(second)}"


def _copy_rows(review: Review) -> Iterator[Sequence[Any]]:
    images = review.images
    for i, j, cosine in review.found.copies:
        yield "copy", images.name(i), images.identity(i), f"{images.name(j)} ({images.class_title(j)})", cosine
    for i, j, cosine in review.found.leaks:
        yield "test image", images.name(i), images.identity(i), review.test_image(j), cosine


def _lines_to_leave_out(review: Review) -> tuple[list[bytes], int]:
    """Returns the lines of the list, and how many images no line can name.

    Doubtful images are not on it, nor are classes: those are for a person to decide.
    """
    reasons: dict[int, str] = dict.fromkeys(review.damaged, "cannot be decoded")
    for i, j, _ in review.found.leaks:
        reasons.setdefault(i, f"a copy of the test image {review.test_image(j)}")
    for i, j, _ in review.found.copies:
        reasons.setdefault(i, f"a copy of {review.images.name(j)}, in another class")
    for i in review.found.images.tolist():
        nearest = review.class_title(int(review.found.nearest[i]))
        reasons.setdefault(i, f"far from {review.images.class_title(i)}, nearest to {nearest}")
    lines: list[Optional[bytes]] = [line_of(review.images.name(i), why) for i, why in sorted(reasons.items())]
    named = [line for line in lines if line is not None]
    return named, len(lines) - len(named)
