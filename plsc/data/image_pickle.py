"""Reads the pickles of verification sets, which hold images and bools; see `plsc.machine.pickles`."""

from __future__ import annotations

import os
from typing import Any

from plsc.machine.files import NotRegularError, open_regular
from plsc.machine.pickles import Dtype, RefusedError, Unpickler, arrays, reason, unwrap

__all__ = ["RefusedError", "load_pickle", "unwrap"]

_ALLOWED = arrays(Dtype)


def load_pickle(path: str) -> Any:
    """Returns what a pickle of lists, tuples, bytes, texts, integers, bools and arrays holds; see `unwrap`.

    Raises:
        OSError: The file cannot be read.
        RefusedError: It asks for a function or a class that images do not need.
        ValueError: It is no such pickle.
    """
    try:
        with open_regular(path) as file:
            return Unpickler(file, os.fstat(file.fileno()).st_size, _ALLOWED).load()
    except NotRegularError:
        raise ValueError("not an ordinary file") from None
    except (OSError, RefusedError):
        raise
    except Exception as problem:  # A damaged pickle can raise nearly any type.
        raise ValueError(reason(problem)) from None
