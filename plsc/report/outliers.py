"""The page of `plsc data outliers`: one self-contained HTML file of what may be wrong in a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from plsc.data.collection import Collection
from plsc.data.pixels import PixelRule
from plsc.datasets.outlier_files import Review, Summary
from plsc.errors import ConfigError, DataError
from plsc.machine.files import replace_file
from plsc.report.document import document, image_url
from plsc.report.markup import Markup, tag

_GENERATOR = "plsc data outliers"
_SIDE = 72  # of a thumbnail, in pixels
_EXAMPLES = 3  # images that stand for a class
_STYLE = """
.rows {
  list-style: none; margin: 10px 0 0; padding: 0; display: grid; gap: 8px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 570px), 1fr));
}
.rows > li {
  display: flex; flex-wrap: wrap; gap: 6px 18px; align-items: flex-start; padding: 8px; background: var(--card);
  border: 1px solid var(--grid); border-radius: 8px; font-size: .8rem; line-height: 1.3;
}
.rows > li > div { display: grid; gap: 4px; max-width: 100%; }
.rows .many { display: flex; flex-wrap: wrap; gap: 4px; }
.rows img, .rows .gone { display: block; width: 72px; height: 72px; border-radius: 4px; }
.rows .gone { border: 1px dashed var(--soft); color: var(--soft); font-size: .7rem; padding: 4px; }
.rows .suspect img { outline: 3px solid #d1495b; }
.rows small { color: var(--soft); }
.rows b { font-variant-numeric: tabular-nums; }
"""


class _Pictures:
    """Thumbnails of the images of a data set and its test sets."""

    def __init__(self, review: Review, rule: PixelRule) -> None:
        self._review, self._rule = review, rule

    def of(self, images: Iterable[int]) -> Markup:
        """Returns the thumbnails of images of the data set, in a row."""
        return tag("div", [self._one(self._review.images, i) for i in images], class_="many")

    def of_test(self, i: int) -> Markup:
        """Returns the thumbnail of an image of the test sets."""
        return tag("div", self._one(*self._review.place_in_tests(i)), class_="many")

    def _one(self, images: Collection, i: int) -> Markup:
        name = images.name(i)
        try:
            pixels = images.pixels(i, (3, _SIDE, _SIDE), self._rule)
        except DataError:
            return tag("div", "cannot be read", class_="gone", title=name)
        return tag("img", src=image_url(Image.fromarray(pixels)), alt=name, title=name)


def write_page(path: Path, review: Review, summary: Summary, labels: np.ndarray, rule: PixelRule, most: int) -> None:
    """Writes the page.

    Args:
        path: File to write; a file there is replaced.
        review: What has been found.
        summary: The numbers of it.
        labels: Class of each image, [N].
        rule: What the pixels of image files mean.
        most: Most images and classes of each kind that the page shows.

    Raises:
        ConfigError: The file cannot be written.
    """
    found, pictures = review.found, _Pictures(review, rule)
    examples = _examples_of(labels, found.own)

    def image_row(i: int) -> Markup:
        label, nearest = int(labels[i]), int(found.nearest[i])
        return tag(
            "li",
            tag("div", pictures.of([i]), tag("small", review.images.name(i)), class_="suspect"),
            _class(f"labelled {review.class_title(label)}", float(found.own[i]), pictures.of(examples(label))),
            _class(f"nearest to {review.class_title(nearest)}", float(found.other[i]), pictures.of(examples(nearest))),
        )

    def merge_row(pair: tuple[int, int, float]) -> Markup:
        sides = [_class(review.class_title(one), None, pictures.of(examples(one))) for one in pair[:2]]
        return tag("li", *sides, tag("div", tag("span", "likeness ", tag("b", f"{pair[2]:.2f}"))))

    def split_row(split: tuple[int, float, np.ndarray, np.ndarray]) -> Markup:
        number, similar, *halves = split
        sides = [_class(f"{len(half)} images", None, pictures.of(half[:_EXAMPLES].tolist())) for half in halves]
        text = tag("span", f"{review.class_title(number)}, likeness ", tag("b", f"{similar:.2f}"))
        return tag("li", *sides, tag("div", text))

    def copy_row(copy: tuple[int, int, float]) -> Markup:
        sides = [_class(review.images.class_title(i), None, pictures.of([i])) for i in copy[:2]]
        return tag("li", *sides, tag("div", tag("span", "cosine ", tag("b", f"{copy[2]:.3f}"))))

    def leak_row(leak: tuple[int, int, float]) -> Markup:
        i, j, cosine = leak
        sides = (
            _class(review.images.class_title(i), None, pictures.of([i])),
            _class(f"test image {review.test_image(j)}", None, pictures.of_test(j)),
        )
        return tag("li", *sides, tag("div", tag("span", "cosine ", tag("b", f"{cosine:.3f}"))))

    far = f"Their cosine with their own class is below {found.threshold:.3f}, and another class is closer."
    sections = [
        _section("Images that are far from their class", far, found.images.tolist(), most, image_row),
        _section(
            "Doubtful images",
            "They are far from their class, or closer to another one, but not both.",
            found.doubtful.tolist(),
            most,
            image_row,
        ),
        _section("Classes that may be one", "1 is as similar as one class.", found.merges, most, merge_row),
        _section("Classes that may be two", "Their images form two groups.", found.splits, most, split_row),
        _section("Copies in other classes", "The first image does not fit in its class.", found.copies, most, copy_row),
        _section("Copies of test images", "Training on them spoils the test.", found.leaks, most, leak_row),
    ]
    counted = f"{summary.images:,} images. {summary.left_out:,} are on the list of images to leave out."
    header = tag("header", tag("h1", "What may be wrong in the data"), tag("p", counted, class_="names"))
    text = document(
        "Outliers", _GENERATOR, header, sections, about="This file contains all images that it shows.", style=_STYLE
    )
    try:
        replace_file(path, text.encode())
    except OSError as problem:
        raise ConfigError(f"{path}: cannot be written ({problem.strerror}); free space, and run it again") from None


def _examples_of(labels: np.ndarray, own: np.ndarray) -> Callable[[int], list[int]]:
    """Returns a function of a class that gives the images which fit best in it."""
    order = np.lexsort((-own, labels))
    ordered = labels[order]

    def examples(label: int) -> list[int]:
        first, end = np.searchsorted(ordered, [label, label + 1])
        return order[first : min(end, first + _EXAMPLES)].tolist()

    return examples


def _class(title: str, cosine: float | None, pictures: Markup) -> Markup:
    shown = [] if cosine is None else [" ", tag("b", f"{cosine:.3f}")]
    return tag("div", pictures, tag("span", title, shown))


def _section(title: str, about: str, rows: Sequence, most: int, row_of: Callable[..., Markup]) -> Iterator[Markup]:
    if len(rows):
        more = f" The first {most:,} are shown." if len(rows) > most else ""
        yield tag(
            "section",
            tag("h2", f"{title}: {len(rows):,}"),
            tag("p", about + more, class_="names"),
            tag("ul", [row_of(row) for row in rows[:most]], class_="rows"),
        )
