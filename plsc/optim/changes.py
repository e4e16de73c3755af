"""What has changed in an object since it was made, in a form that JSON can hold.

That is the state of a learning rate schedule. Its settings, which have not changed, are left out: a resumed run takes
them from its script.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle

Snapshot = dict[str, Any]  # {attribute: its value as `_encoded` gives it}

_INTERNAL = ("_var_name", "keys")  # of Paddle's schedules: names of this process, and what to save
_LARGEST = 64  # elements of a tensor that counts as plain; larger ones are parameters and their like
_SEQUENCES: dict[str, Any] = {"tuple": tuple, "set": set, "deque": deque}


def snapshot(owner: Any) -> Snapshot:
    """Returns the plain attributes of an object: numbers, texts, containers and small arrays of them, and schedules."""
    found = {}
    for name, value in vars(owner).items():
        if name in _INTERNAL:
            continue
        try:
            found[name] = _encoded(value)
        except TypeError:
            continue
    return found


def changes(now: Snapshot, then: Snapshot) -> Snapshot:
    """Returns the attributes of `now` that `then` has with another value, or does not have."""
    found = {}
    for name, value in now.items():
        if name not in then or _text(value) != _text(then[name]):
            is_inner = _is_inner(value) and _is_inner(then.get(name))
            found[name] = {"inner": changes(value["inner"], then[name]["inner"])} if is_inner else value
    return found


def apply(owner: Any, changed: Mapping[str, Any]) -> None:
    """Gives an object the attributes that `changes` has returned; schedules in it are changed in place."""
    for name, value in changed.items():
        owner.__dict__[name] = _decoded(value, owner.__dict__.get(name))


def undo(owner: Any, then: Snapshot) -> None:
    """Gives an object the plain attributes that it had at an earlier time."""
    now = snapshot(owner)
    for name in now.keys() - then.keys():
        del owner.__dict__[name]
    apply(owner, {name: value for name, value in then.items() if _text(now.get(name)) != _text(value)})


def has_hidden_state(owner: Any) -> bool:
    """Returns whether an object has attributes, such as iterators, that `snapshot` leaves out and that may change."""
    kept = snapshot(owner)
    return any(
        has_hidden_state(value) if name in kept else not callable(value)
        for name, value in vars(owner).items()
        if name not in _INTERNAL and (name not in kept or _is_inner(kept[name]))
    )


def _encoded(value: Any) -> Any:
    """Returns a value for JSON, such that `_decoded` gives it back in its own type.

    Raises:
        TypeError: It is not plain.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_encoded(one) for one in value]
    if type(value) is dict:
        return {"dict": [[_encoded(key), _encoded(one)] for key, one in value.items()]}
    for kind, made in _SEQUENCES.items():
        if type(value) is made:
            ordered = sorted(value, key=repr) if kind == "set" else value
            return {kind: [_encoded(one) for one in ordered]}
    if isinstance(value, (np.generic, np.ndarray)) and value.dtype.kind in "biuf":
        return {"numpy": [value.dtype.str, value.tolist(), isinstance(value, np.ndarray)]}
    if isinstance(value, paddle.Tensor) and value.size <= _LARGEST:
        array = value.numpy()
        return {"tensor": [array.dtype.str, array.tolist()]}
    if isinstance(value, paddle.optimizer.lr.LRScheduler):
        return {"inner": snapshot(value)}
    raise TypeError(type(value).__name__)


def _decoded(value: Any, current: Any) -> Any:
    """Returns the value that `_encoded` was given; a schedule is `current`, with the attributes it had."""
    if isinstance(value, list):
        kept = current if isinstance(current, list) and len(current) == len(value) else [None] * len(value)
        return [_decoded(one, old) for one, old in zip(value, kept)]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {_decoded(key, None): _decoded(one, None) for key, one in content}
    if kind == "numpy":
        array = np.array(content[1], content[0])
        return array if content[2] else array[()]
    if kind == "tensor":
        return paddle.to_tensor(np.array(content[1], content[0]))
    if kind == "inner":
        apply(current, content)
        return current
    return _SEQUENCES[kind](_decoded(one, None) for one in content)


def _is_inner(value: Any) -> bool:
    return isinstance(value, dict) and "inner" in value


def _text(value: Any) -> str:
    """Returns what two values have in common only when they are the same to the bit, NaN included."""
    return json.dumps(value, sort_keys=True)
