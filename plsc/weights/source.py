"""What the readers of all kinds of weight files give."""

from __future__ import annotations

import abc
import contextlib
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from plsc.errors import ConfigError
from plsc.machine.files import NotRegularError, open_regular
from plsc.machine.pickles import RefusedError, reason

_MOST_THINGS, _DEEPEST = 1_000_000, 100


class Weights(abc.ABC):
    """The tensors of a file, of which each is read when it is asked for.

    Attributes:
        path: The file.
        shapes: Shape of each tensor by its name, in the order of the file.
        of_torch: Whether linear layers have their weights as in PyTorch, [out, in], and not as in Paddle, [in, out].
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    of_torch: bool

    @abc.abstractmethod
    def read(self, name: str) -> np.ndarray:
        """Returns a tensor; bfloat16 as float32.

        Raises:
            ConfigError: Its bytes are damaged.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Closes the file."""

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def check_not_empty(self) -> None:
        """Raises ConfigError if the file holds no tensors."""
        if not self.shapes:
            raise ConfigError(f"{self.path}: holds no tensors; name a file with the state_dict of a network")


def open_file(path: Path) -> BinaryIO:
    """Opens a file of weights. Raises ConfigError if it cannot be read."""
    try:
        return open_regular(path)
    except NotRegularError:
        raise damaged(path, "not an ordinary file") from None
    except OSError as problem:
        raise ConfigError(f"{path}: cannot be read ({problem.strerror}); check the path") from None


@contextlib.contextmanager
def reading_pickle(path: Path, function: str, why: Callable[[Exception], str] = reason) -> Iterator[None]:
    """Raises every error of its block as a ConfigError that names the file.

    Args:
        path: The file.
        function: Function that saves such files, for the advice.
        why: Returns why a file that raised an error cannot be read.
    """
    try:
        yield
    except ConfigError:
        raise
    except RefusedError as problem:
        raise ConfigError(
            f"{path}: asks for {problem}, which weights do not need, so it is not read; save the state_dict of the "
            f"network alone with {function}"
        ) from None
    except Exception as problem:  # A damaged pickle can raise nearly any type.
        raise damaged(path, why(problem)) from None


def leaves_of(content: Any, leaf: Callable[[Any], Any]) -> Iterator[tuple[str, Any]]:
    """Yields the tensors in dicts, lists and tuples, with their names, joined by dots.

    Args:
        content: What a pickle holds. It may hold one thing in many places, so what is visited is counted.
        leaf: Returns the tensor that a thing stands for, or None for other things.

    Raises:
        UnpicklingError: It holds too much, or is nested too deeply.
    """
    left = _MOST_THINGS
    stack: list[tuple[str, Any, int]] = [("", content, 0)]
    while stack:
        name, thing, depth = stack.pop()
        left -= 1
        if left < 0 or depth > _DEEPEST:
            raise pickle.UnpicklingError("it holds too many things in each other")
        tensor = leaf(thing)
        if tensor is not None:
            yield name or "tensor", tensor
        elif isinstance(thing, (dict, list, tuple)):
            parts = list(thing.items() if isinstance(thing, dict) else enumerate(thing))
            if len(parts) > left:
                raise pickle.UnpicklingError("it holds too many things in each other")
            stack += [(f"{name}.{key}" if name else str(key), part, depth + 1) for key, part in reversed(parts)]


def damaged(path: Path, why: str) -> ConfigError:
    """Returns the error for a file that cannot be read."""
    return ConfigError(f"{path}: cannot be read as weights ({why}); get the file again")
