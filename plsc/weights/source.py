"""What the readers of all kinds of weight files give."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from plsc.errors import ConfigError
from plsc.machine.files import NotRegularError, open_regular


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

    @property
    def parameters(self) -> int:
        """Number of values in all tensors together."""
        return sum(map(math.prod, self.shapes.values()))


def open_file(path: Path) -> BinaryIO:
    """Opens a file of weights. Raises ConfigError if it cannot be read."""
    try:
        return open_regular(path)
    except NotRegularError:
        raise damaged(path, "not an ordinary file") from None
    except OSError as problem:
        raise ConfigError(f"{path}: cannot be read ({problem.strerror}); check the path") from None


def damaged(path: Path, why: str) -> ConfigError:
    """Returns the error for a file that cannot be read."""
    return ConfigError(f"{path}: cannot be read as weights ({why}); get the file again")


def floats_of_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Returns the float32 values of bfloat16 numbers, given as uint16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
