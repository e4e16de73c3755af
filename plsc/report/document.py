"""An HTML file that has all in it, and is known again when it is made anew."""

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
    """A whole file.

    Args:
        generator: what made it, which `check_replaceable` looks for.
        children: of the page.
        about: the end of its last line.
        style: besides the style of all pages.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content=generator),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Markup(STYLE + style)),
    )
    footer = tag("footer", f"Made by plsc {__version__}. {about}")
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', tag('main', *children, footer)), lang='en')}\n"


def check_replaceable(file: Path, generator: str, what: str, option: str) -> None:
    """Refuses a file that another program made, or a person.

    Args:
        what: it should be.
        option: that names another file.

    Raises:
        ConfigError: something else is there, or it cannot be read.
    """
    try:
        with open(file, encoding="utf-8", errors="replace") as stream:
            beginning = stream.read(1000)
    except FileNotFoundError:
        return
    except OSError as problem:
        raise ConfigError(f"{file}: cannot write there ({problem.strerror}); name another file with {option}") from None
    if f'content="{generator}"' not in beginning:
        raise ConfigError(f"{file}: there is something already that is no {what}; name another file with {option}")


def image_url(image: Image.Image, kind: str = "JPEG") -> str:
    """A data URL of a JPEG or PNG."""
    stream = io.BytesIO()
    image.save(stream, kind, **({"optimize": True} if kind == "PNG" else {"quality": 82}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
