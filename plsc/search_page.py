"""One HTML page of searched images and what was found: everything is in it, nothing is fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from PIL import Image

from plsc.errors import ConfigError
from plsc.files import replace_file
from plsc.report.markup import Markup, tag
from plsc.report.style import STYLE
from plsc.search import Hit
from plsc.version import __version__

_GENERATOR = "plsc search"  # in pages, so that they are known again
_SIDE = 96  # pixels of a thumbnail
_STYLE = """
.found { display: grid; grid-template-columns: 114px 1fr; gap: 12px; margin: 12px 0 0; padding: 8px; }
.found, .found figure { background: var(--card); border: 1px solid var(--grid); border-radius: 8px; }
.found ol { list-style: none; display: grid; grid-template-columns: repeat(auto-fill, minmax(114px, 1fr)); gap: 8px; margin: 0; padding: 0; }
.found figure { padding: 7px; font-size: .8rem; line-height: 1.3; }
.found .query { border-width: 2px; border-color: var(--soft); align-self: start; }
.found img, .found .gone { display: flex; width: 100%; max-width: 96px; aspect-ratio: 1; object-fit: contain; align-items: center; justify-content: center; text-align: center; margin: 0 auto 4px; }
.found .gone { border: 1px dashed var(--soft); color: var(--soft); font-size: .75rem; padding: 4px; }
.found figcaption { display: block; margin: 0; font-weight: normal; font-size: .8rem; }
.found b { font-variant-numeric: tabular-nums; display: block; }
@media (max-width: 500px) {
  .found { grid-template-columns: 88px 1fr; gap: 8px; }
  .found ol { grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)); }
}
"""


def write_page(output: Path, source: Optional[str], queries: Sequence[Path], hits: Sequence[Sequence[Hit]]) -> None:
    """Writes the page.

    Args:
        output: replaced if it is such a page; anything else stays.
        source: the folder that the names of hits are relative to.

    Raises:
        ConfigError: it cannot be written.
    """
    check_page(output)
    parts = [
        tag(
            "div",
            _figure(query, query.name, class_="query"),
            tag("ol", [tag("li", _hit(source, hit)) for hit in found]),
            class_="found",
        )
        for query, found in zip(queries, hits)
    ]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content=_GENERATOR),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", "Search results"),
        tag("style", Markup(STYLE + _STYLE)),
    )
    intro = tag("p", f"{len(queries)} images; left the image searched, then the nearest identities.", class_="names")
    footer = tag("footer", f"Made by plsc {__version__}. Every image is inside this file.")
    body = tag("body", tag("main", tag("header", tag("h1", "Search results"), intro), parts, footer))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        replace_file(output, f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n".encode())
    except OSError as problem:
        raise ConfigError(f"{output}: cannot write there ({problem.strerror})") from None


def check_page(output: Path) -> None:
    """Refuses to replace what is no such page.

    Raises:
        ConfigError: something else is there.
    """
    try:
        with open(output, encoding="utf-8", errors="replace") as stream:
            beginning = stream.read(1000)
    except FileNotFoundError:
        return
    except OSError as problem:
        raise ConfigError(f"{output}: cannot write there ({problem.strerror}); name another file with --page") from None
    if f'content="{_GENERATOR}"' not in beginning:
        raise ConfigError(
            f"{output}: there is something already that is no page of a search; name another file with --page"
        )


def _hit(source: Optional[str], hit: Hit) -> Markup:
    name = hit.identity or Path(hit.name).name
    return _figure(Path(source or "") / hit.name, name, tag("b", f"{hit.cosine:.3f}"), title=hit.name)


def _figure(path: Path, name: str, *more: Markup, title: Optional[str] = None, class_: Optional[str] = None) -> Markup:
    data = _thumbnail(path)
    shown = tag("img", src=data, alt=name) if data else tag("div", "image not found or unreadable", class_="gone")
    return tag("figure", shown, tag("figcaption", more, name), title=title or str(path), class_=class_)


def _thumbnail(path: Path) -> Optional[str]:
    """A data URI; None where there is no image."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * _SIDE, 2 * _SIDE))  # large JPEGs are decoded at a fraction
            small = image.convert("RGB")
        small.thumbnail((_SIDE, _SIDE))
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=82)
    except Exception:  # Pillow's decoders raise many unrelated types for damaged files
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
