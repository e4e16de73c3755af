"""HTML that cannot be broken by a text: what is not `Markup` is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any, Union

_EMPTY = frozenset({"img", "meta", "wbr", "link"})


class Markup(str):
    """A text that is HTML already."""


Child = Union[str, Iterable[Any]]


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """An element. `class_` is the attribute `class`; `aria_label` is `aria-label`; None leaves an attribute out."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _EMPTY:
        return Markup(f"<{name}{words}>")
    return Markup(f"<{name}{words}>{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """One after the other; lists are taken apart."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(escape(child))
        else:
            parts.append(join(*child))
    return Markup("".join(parts))
