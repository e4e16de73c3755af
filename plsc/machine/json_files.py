"""Writes JSON, and reads what anyone may have written: whatever it holds, only the errors named here are raised."""

from __future__ import annotations

import json
import os
from numbers import Real
from pathlib import Path
from typing import Any, Optional, Union

from plsc.errors import one_line, shown
from plsc.machine.files import NotRegularError, open_regular
from plsc.machine.names import SURROGATE

LARGEST = 64 << 20  # bytes; the meta.json of a checkpoint has 66 for every 8 MB of the checkpoint
_MOST_CONTAINERS, _DEEPEST = 1_000_000, 100  # Python takes up to 100 bytes for two of the text
_LONGEST_INTEGER = 300  # digits, so that a float can hold it
_LONGEST_SHOWN = 60
_LARGEST_INTEGER = 2**53  # what every program can read from JSON


def json_text(value: Any, indent: Optional[int] = None) -> str:
    """Returns JSON that UTF-8 can hold, whatever bytes names have; see `plsc.machine.names.to_text`.

    Args:
        value: What `json.dumps` takes.
        indent: Blanks for each level; None writes one line.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no JSON, or no ordinary file, or has more than 64 MB.
    """
    return parse_json(read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """Returns the bytes of a file of moderate size.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no ordinary file, or has more than 64 MB.
    """
    try:
        with open_regular(path) as stream:
            if os.fstat(stream.fileno()).st_size <= LARGEST:
                return stream.read(LARGEST)
    except NotRegularError:
        pass
    raise ValueError("not an ordinary file, or too large")


def parse_json(text: Union[bytes, str]) -> Any:
    """Returns what a JSON text in UTF-8 holds. Integers that no float can hold become infinite.

    Raises:
        ValueError: It is no JSON, an object has a name twice, or it is too large or nested too deeply.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    containers = text.count("[") + text.count("{")
    if len(text) > LARGEST or containers > _MOST_CONTAINERS:
        raise ValueError("too large")
    try:
        found = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if containers > _DEEPEST:
        _check_depth(found)
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice")
    return found


def _integer(text: str) -> Union[int, float]:
    return int(text) if len(text) <= _LONGEST_INTEGER else float(text)


def _check_depth(value: Any) -> None:
    """Raises ValueError for lists and objects that are nested so deeply that reading them could fill the stack."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for one in level
            if isinstance(one, (dict, list))
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, (dict, list))
        ]
    if level:
        raise ValueError("nested too deeply")


def as_integer(value: Any, least: int = 0) -> int:
    """Returns `value`, which must be an integer of at least `least` and at most 2**53.

    Raises:
        ValueError: It is something else.
    """
    if type(value) is not int or not least <= value <= _LARGEST_INTEGER:
        raise ValueError(f"expected an integer of at least {least}, got {short(value)}")
    return value


def as_integers(value: Any, least: int = 0, count: Optional[int] = None) -> list[int]:
    """Returns `value`, which must be a list of `count` integers, as in `as_integer`.

    Raises:
        ValueError: It is something else.
    """
    if count not in (None, len(as_list(value))):
        raise ValueError(f"expected a list of {count} integers, got {short(value)}")
    return [as_integer(one, least) for one in as_list(value)]


def as_list(value: Any) -> list[Any]:
    """Returns `value`, which must be a list.

    Raises:
        ValueError: It is something else.
    """
    return _of_kind(value, list, "a list")


def as_object(value: Any) -> dict[str, Any]:
    """Returns `value`, which must be a JSON object.

    Raises:
        ValueError: It is something else.
    """
    return _of_kind(value, dict, "an object")


def as_number(value: Any) -> float:
    """Returns `value`, which must be a number, as a float.

    Raises:
        ValueError: It is something else, or an integer too large for a float.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ValueError(f"expected a number, got {short(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("a number is too large") from None


def as_text(value: Any) -> str:
    """Returns `value`, which must be a text.

    Raises:
        ValueError: It is something else.
    """
    return _of_kind(value, str, "a text")


def as_truth(value: Any) -> bool:
    """Returns `value`, which must be true or false.

    Raises:
        ValueError: It is something else.
    """
    return _of_kind(value, bool, "true or false")


def _of_kind(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"expected {name}, got {short(value)}")
    return value


def short(value: Any) -> str:
    """Returns a value for an error message, on one line of a few words."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return one_line(shown(value), _LONGEST_SHOWN)
