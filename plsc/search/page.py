"""The page of a search: one self-contained HTML file of the images searched for and what was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Optional

from plsc.data.encoded_image import check_size, open_image
from plsc.data.pixels import NEWEST, PixelRule, interpret
from plsc.errors import ConfigError, counted
from plsc.machine.files import replace_file
from plsc.machine.mounts import open_stream
from plsc.report.document import check_replaceable, document, image_url
from plsc.report.markup import Markup, tag
from plsc.search.index import Hit

_GENERATOR = "plsc search"  # Pages hold it, so that they are recognised later.
_SIDE = 96  # Side of a thumbnail, in pixels.
_STYLE = """
.found { display: grid; grid-template-columns: 114px 1fr; gap: 12px; margin: 12px 0 0; padding: 8px; }
.found, .found figure { background: var(--card); border: 1px solid var(--grid); border-radius: 8px; }
.found ol {
  list-style: none; display: grid; grid-template-columns: repeat(auto-fill, minmax(114px, 1fr)); gap: 8px;
  margin: 0; padding: 0;
}
.found figure { padding: 7px; font-size: .8rem; line-height: 1.3; }
.found .query { border-width: 2px; border-color: var(--soft); align-self: start; }
.found img, .found .gone {
  display: flex; width: 100%; max-width: 96px; aspect-ratio: 1; object-fit: contain; align-items: center;
  justify-content: center; text-align: center; margin: 0 auto 4px;
}
.found .gone { border: 1px dashed var(--soft); color: var(--soft); font-size: .75rem; padding: 4px; }
.found figcaption { display: block; margin: 0; font-weight: normal; font-size: .8rem; }
.found b { font-variant-numeric: tabular-nums; display: block; }
@media (max-width: 500px) {
  .found { grid-template-columns: 88px 1fr; gap: 8px; }
  .found ol { grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)); }
}
"""


def write_page(
    output: Path,
    source: Optional[str],
    queries: Sequence[Path],
    hits: Sequence[Sequence[Hit]],
    rule: PixelRule = NEWEST,
    named: Callable[[str], str] = str,
) -> None:
    """Writes the page.

    Args:
        output: File to write. An earlier page of a search is replaced; any other file is not.
        source: Folder that the names of the hits are relative to.
        queries: The images searched for.
        hits: What was found for each of them, nearest first.
        rule: What the pixels of image files mean.
        named: Returns what the page calls the path of an image searched for.

    Raises:
        ConfigError: The file cannot be written.
    """
    check_page(output)
    parts = [
        tag(
            "div",
            _figure(query, query.name, rule, title=named(str(query)), class_="query"),
            tag("ol", [tag("li", _hit(source, hit, rule)) for hit in found]),
            class_="found",
        )
        for query, found in zip(queries, hits)
    ]
    images = counted(len(queries), "image")
    intro = tag("p", f"{images}. Each row shows the query first, and then its nearest identities.", class_="names")
    header, about = tag("header", tag("h1", "Search results"), intro), "This file contains every image."
    text = document("Search results", _GENERATOR, header, parts, about=about, style=_STYLE)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        replace_file(output, text.encode())
    except OSError as problem:
        raise ConfigError(f"{output}: cannot be written ({problem.strerror}); name another file with --page") from None


def check_page(output: Path) -> None:
    """Refuses to replace a file that is not the page of a search.

    Raises:
        ConfigError: The file is something else.
    """
    check_replaceable(output, _GENERATOR, "page of a search", "--page")


def _hit(source: Optional[str], hit: Hit, rule: PixelRule) -> Markup:
    name = hit.identity or Path(hit.name).name
    return _figure(Path(source or "") / hit.name, name, rule, tag("b", f"{hit.cosine:.3f}"), title=hit.name)


def _figure(path: Path, name: str, rule: PixelRule, *more: Markup, title: str, class_: Optional[str] = None) -> Markup:
    data = _thumbnail(path, rule)
    shown = tag("img", src=data, alt=name) if data else tag("div", "image missing or unreadable", class_="gone")
    return tag("figure", shown, tag("figcaption", more, name), title=title, class_=class_)


def _thumbnail(path: Path, rule: PixelRule = NEWEST) -> Optional[str]:
    """Returns a thumbnail as a data URL; None if the image is missing or damaged."""
    try:
        with open_stream(path) as file, open_image(file) as image:
            check_size(image, rule.most_pixels)
            image.draft("RGB", (2 * _SIDE, 2 * _SIDE))  # Large JPEGs are decoded at a fraction of their size.
            small = interpret(image, "RGB", rule)
            small.thumbnail((_SIDE, _SIDE))
            return image_url(small)
    except Exception:  # For damaged files Pillow's decoders raise many unrelated types.
        return None
