"""Writes self-contained HTML files, which plsc recognises later as its own and may replace."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from plsc.errors import ConfigError
from plsc.report.markup import Child, Markup, tag
from plsc.report.style import STYLE
from plsc.version import __version__


def document(title: str, generator: str, *children: Child, about: str, style: str = "") -> str:
    """Returns the text of a whole file.

    Args:
        title: Title of the document.
        generator: Program that made it, which `check_replaceable` looks for.
        *children: Content of the page.
        about: End of the last line of the page.
        style: CSS in addition to that of all pages.
    """
    elements = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content=generator),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Markup(STYLE + style)),
    ]
    head = tag("head", elements)
    footer = tag("footer", f"Made by plsc {__version__}. {about}")
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', tag('main', *children, footer)), lang='en')}\n"


def check_replaceable(file: Path, generator: str, what: str, option: str) -> None:
    """Refuses to replace a file that `generator` did not make.

    Args:
        file: File to write; it need not exist.
        generator: Program that may replace it.
        what: What that program makes, for the error message.
        option: Command line option that names another file, for the error message.

    Raises:
        ConfigError: The file is something else, or cannot be read.
    """
    try:
        with open(file, encoding="utf-8", errors="replace") as stream:
            beginning = stream.read(1000)
    except FileNotFoundError:
        return
    except OSError as problem:
        raise ConfigError(f"{file}: cannot be written ({problem.strerror}); name another file with {option}") from None
    if f'content="{generator}"' not in beginning:
        raise ConfigError(f"{file}: exists, and is not a {what}; name another file with {option}")


def image_url(image: Image.Image, kind: str = "JPEG") -> str:
    """Returns an image as a data URL.

    Args:
        image: The image.
        kind: 'JPEG' or 'PNG'.
    """
    stream = io.BytesIO()
    image.save(stream, kind, **({"optimize": True} if kind == "PNG" else {"quality": 82}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
