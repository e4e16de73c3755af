"""Builds HTML that no text can break: whatever is not `Markup` is escaped."""

from __future__ import annotations

import string
from collections.abc import Iterable
from html import escape
from typing import Any, Union

from plsc.machine.names import CONTROLS, readable

_EMPTY = frozenset({"img", "meta", "wbr", "link"})


class Markup(str):
    """A text that is HTML already."""


Child = Union[str, Iterable[Any]]


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """Returns an element.

    Args:
        name: Name of the element.
        *children: Its content; see `join`.
        **attributes: Its attributes: `class_` sets `class`, `aria_label` sets `aria-label`. None leaves an attribute
            out.
    """
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _EMPTY:
        return Markup(f"<{name}{words}>")
    return Markup(f"<{name}{words}>{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Returns the children one after the other. The items of an iterable count as children."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(_escaped(child))
        else:
            parts.append(join(*child))
    return Markup("".join(parts))


def _escaped(text: str) -> str:
    return escape(readable(text, keep=string.whitespace))


def clean(text: str) -> str:
    """Returns `text` with each character replaced that is not printable and could change how its surroundings look.

    Bytes of names that have no meaning are escaped.
    """
    return "".join(one if one.isprintable() else "\ufffd" for one in readable(text, keep=CONTROLS))
