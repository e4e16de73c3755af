"""Writes docs/api.md and the tables of docs/settings.md from the source: python tools/make_api_reference.py."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PAGE = ROOT / "docs" / "api.md"
SETTINGS_PAGE = ROOT / "docs" / "settings.md"
# The tables of docs/settings.md lie between these lines.
BEGIN, END = (
    "<!-- made by tools/make_api_reference.py from plsc/settings/table.py -->\n",
    "<!-- end of the tables -->\n",
)
MODULE = "*"  # all public functions of a module
SECTIONS = {
    "Entry": ["plsc.Entry"],
    "Models": ["plsc.BaseModel"],
    "Callbacks": ["plsc.Callback", "plsc.engine.callbacks.Run", "plsc.engine.callbacks.Step"],
    "Using a model": ["plsc.Predictor"],
    "Readers": [
        "plsc.shard_reader",
        "plsc.utils.jpeg_reader.arc_train",
        "plsc.utils.base64_reader.arc_train",
        "plsc.utils.jpeg_reader.test",
    ],
    "Optimizers": ["plsc.optim.deferred", "plsc.optim.Lion"],
    "Mixed precision": ["plsc.amp.AutoMixedPrecisionLists"],
    "Margins": [
        "plsc.heads.Margin",
        "plsc.heads.Target",
        "plsc.heads.margins.AngularMargin",
        "plsc.heads.margins.AdaFace",
        "plsc.heads.margins.MagFace",
        "plsc.heads.margins.CurricularFace",
    ],
    "Metrics": [f"plsc.metrics.{MODULE}"],
}
HEADER = """\
# API reference

Look up the arguments, results and errors of everything that users import. [Settings](settings.md) lists the setters by
subject. `python tools/make_api_reference.py` makes this page from the docstrings of the source, which are the place for
changes. [中文](zh/api.md)
"""
LISTS = ("Args", "Attributes", "Raises")


def page() -> str:
    """Returns the text of docs/api.md."""
    parts = [HEADER]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}\n")
        for name in names:
            for path, thing in _find(name):
                parts += _class(path, thing) if inspect.isclass(thing) else _callable(f"### {path}", path, thing)
    parts += ["## Layers\n", _layers(), "## Errors\n", _errors()]
    return "\n".join(parts)


def settings_page() -> str:
    """Returns the text of docs/settings.md with tables made from the table of settings."""
    before, _, rest = SETTINGS_PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    groups = importlib.import_module("plsc.settings").GROUPS
    return before + BEGIN + "\n" + "\n".join(_settings(*group) for group in groups.items()) + "\n" + END + after


def settings_row(setting: Any) -> tuple[str, str, str]:
    """Returns the first cells of the row of a setting: the setter, the name for `--set`, and the default."""
    entry = importlib.import_module("plsc").Entry
    names = list(inspect.signature(getattr(entry, setting.setter)).parameters)[1:]
    shown = names if len(names) <= 4 else [names[0], "..."]
    return f"`{setting.setter}({', '.join(shown)})`", f"`{setting.name}`" if setting.has_text else "", _default(setting)


def _settings(title: str, settings: Iterable[Any]) -> str:
    """One heading of docs/settings.md and its table."""
    lines = [f"### {title}\n", "| setter | name | default | meaning |", "|---|---|---|---|"]
    for setting in settings:
        meaning = ". ".join(text[0].upper() + text[1:] for text in (setting.help, setting.more) if text)
        lines.append(f"| {' | '.join((*settings_row(setting), meaning))} |")
    return "\n".join(lines) + "\n"


def _default(setting: Any) -> str:
    """A default as a reader would write it."""
    value = setting.default
    if dataclasses.is_dataclass(value):
        values = [getattr(value, field.name) for field in dataclasses.fields(value) if field.repr]
        return ", ".join(map(_plain, values if len(values) <= 4 else values[:1]))
    return ", ".join(map(_plain, value)) if isinstance(value, tuple) else _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return f"`{value}`" if value else "''"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _find(name: str) -> Iterator[tuple[str, Any]]:
    module, _, last = name.rpartition(".")
    home = importlib.import_module(module)
    if last != MODULE:
        yield name, getattr(home, last)
        return
    for key, value in vars(home).items():
        if inspect.isfunction(value) and value.__module__ == module and not key.startswith("_"):
            yield f"{module}.{key}", value


def _class(path: str, kind: type) -> Iterator[str]:
    is_protocol = getattr(kind, "_is_protocol", False)
    yield f"### {path}\n"
    if not is_protocol and inspect.signature(kind).parameters:
        yield f"`{path.rpartition('.')[2]}{_signature(kind)}`\n"
    yield _markdown(inspect.getdoc(kind) or "")
    for name, member in vars(kind).items():
        if name.startswith("_") or not getattr(member, "__doc__", None) or member.__doc__ == "See above.":
            continue
        if isinstance(member, property):
            yield f"**`{name}`** {_markdown(inspect.getdoc(member) or '')}"
        elif inspect.isfunction(member):
            yield f"**`{name}{_signature(member)}`** {_markdown(inspect.getdoc(member) or '')}"


def _callable(heading: str, path: str, function: Any) -> list[str]:
    text = _markdown(inspect.getdoc(function) or "")
    return [f"{heading}\n", f"`{path.rpartition('.')[2]}{_signature(function)}`\n", text]


def _signature(thing: Any, types: bool = True) -> str:
    signature = inspect.signature(thing)
    shown, starred = [], False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            shown.append("*")
            starred = True
        text = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "") + parameter.name
        starred = starred or parameter.kind is parameter.VAR_POSITIONAL
        has_type = types and parameter.annotation is not parameter.empty
        if has_type:
            text += f": {_type(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {parameter.default!r}" if has_type else f"={parameter.default!r}"
        shown.append(text)
    result = signature.return_annotation
    has_result = types and not inspect.isclass(thing) and result not in (signature.empty, "None", None)
    return f"({', '.join(shown)})" + (f" -> {_type(result)}" if has_result else "")


def _type(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    return getattr(annotation, "__forward_arg__", None) or getattr(annotation, "__name__", str(annotation))


def _markdown(text: str) -> str:
    """Returns a docstring as Markdown: its sections become lists, its examples code blocks."""
    text = re.sub(r"docs/(\w+)\.md", r"[\1](\1.md)", text)
    parts = re.split(r"^(Args|Attributes|Raises|Returns|Yields|Example):\n", text, flags=re.M)
    shown = [parts[0].strip() + "\n"] if parts[0].strip() else []
    for title, body in zip(parts[1::2], parts[2::2]):
        body = textwrap.dedent(body).strip()
        if title in LISTS:
            items = re.findall(r"^(\S[^:\n]*): (.*(?:\n {4}.*)*)", body, re.M)
            lines = [f"- {_names(name)}: {' '.join(meaning.split())}" for name, meaning in items]
            shown.append(f"{title}:\n\n" + "\n".join(lines) + "\n")
        elif title == "Example":
            shown.append(f"```pycon\n{re.sub(r'  # doctest:.*', '', body)}\n```\n")
        else:
            shown.append(f"{title}: {' '.join(body.split())}\n")
    return "\n".join(shown)


def _names(text: str) -> str:
    return ", ".join(f"`{name.strip()}`" for name in text.split(","))


def _table(about: str, column: str) -> list[str]:
    """Returns the first lines of a table of two columns, of which the second has no name."""
    return [f"{about}\n", f"| {column} | |", "|---|---|"]


def _layers() -> str:
    layers = importlib.import_module("plsc.layers")
    lines = _table("In `plsc.layers` and `plsc.fluid.layers`; meanings and differences: [fluid](fluid.md).", "function")
    for name in layers.__all__:
        function = getattr(layers, name)
        about = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        lines.append(f"| `{name}{_signature(function, types=False)}` | {about} |")
    return "\n".join(lines) + "\n"


def _errors() -> str:
    errors = importlib.import_module("plsc.errors")
    lines = _table("In `plsc.errors`. Uncaught, they end a program with their one line and exit status 1.", "error")
    for name, kind in vars(errors).items():
        if inspect.isclass(kind):
            about = f"{inspect.getdoc(kind)}"
            lines.append(f"| `{name}({kind.__bases__[0].__name__})` | {about} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    SETTINGS_PAGE.write_text(settings_page(), encoding="utf-8")
    print(f"{PAGE} and the tables of {SETTINGS_PAGE} written")
