"""Reads pickles that anyone may have made: nothing in them runs, and what they take is bounded.

A pickle is a program for a small machine with a stack. Only the instructions that a kind of file needs are carried out,
with a bound on their number and on the bytes that they make.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Callable

import numpy as np

from plsc.errors import one_line

_MOST_STEPS = 4_000_000  # an image takes about 5, a tensor 50
_MOST_COPIES = 8  # bytes that a pickle may make for each of its own; protocol 0 needs a few
_LEAST_BYTES = 1 << 20
_POINTER = 8  # bytes of a place in a list
_DEEPEST = 100  # lists and tuples in each other

# Instructions, by their names in Python's module. There is none for sets or instances of classes.
PLAIN_STEPS = (
    *("MARK", "STOP", "POP", "POP_MARK", "DUP", "PROTO", "FRAME", "NONE", "NEWTRUE", "NEWFALSE"),
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
)
DICT_STEPS = ("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "FLOAT", "BINFLOAT")


class RefusedError(Exception):
    """The error for a pickle that asks for a function or a class that it does not need."""


class Stateful:
    """The base class of what may receive a state in a pickle."""


# The classes and functions below replace NumPy's while unpickling, so that a hostile file reaches nothing but this
# code. The file sets no NumPy state; its bytes are only read as elements of a plain dtype.


class Dtype(Stateful):
    """The dtype of an array.

    Attributes:
        dtypes: The dtypes that arrays may have, and as what they are read.
        about: What they are, for error messages.
    """

    dtypes = {"b1": "u1", **{f"{kind}{size}": f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}}
    about = "integers or bools"

    def __init__(self, name: Any = b"", *_: Any):
        text = name.decode("ascii") if isinstance(name, bytes) else str(name)
        self.text, self.is_big_endian = text.lstrip("|<>="), text.startswith(">")

    def __setstate__(self, state: Any) -> None:
        """Takes the byte order, which is the second part of the state."""
        self.is_big_endian = isinstance(state, tuple) and state[1:2] in ((">",), (b">",))

    def read(self, raw: Any, shape: Any, order: str = "C") -> np.ndarray:
        """Returns bytes as an array."""
        if self.text not in self.dtypes:
            raise pickle.UnpicklingError(f"array of dtype {self.text!r}, not of {self.about}")
        # Older versions of Python pickled array data as text in latin-1.
        data = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
        elements = np.frombuffer(
            data, ("<>"[self.is_big_endian] if self.text[1] != "1" else "|") + self.dtypes[self.text]
        )
        elements = elements.reshape(shape, order="F" if order == "F" else "C")
        return elements != 0 if self.text == "b1" else elements


class FloatDtype(Dtype):
    """The dtype of an array that may also hold floating-point numbers."""

    dtypes = {**Dtype.dtypes, "f2": "f2", "f4": "f4", "f8": "f8"}
    about = "numbers or bools"


class _Array(Stateful):
    def __init__(self, *_: Any):
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if isinstance(raw, list):  # The elements of an array of objects were unpickled under the same rules.
            self.value = raw
        else:
            self.value = dtype.read(raw, shape, "F" if fortran else "C")


def _scalar(dtype: Dtype, raw: Any) -> Any:
    return dtype.read(raw, (1,))[0]


def _frombuffer(raw: Any, dtype: Dtype, shape: Any, order: str = "C", *_: Any) -> np.ndarray:
    return dtype.read(raw, shape, order)


def _encode(text: Any, encoding: Any = "") -> bytes:
    # Protocol 2 writes bytes as latin-1 text; no other codec is needed.
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise RefusedError(f"_codecs.encode with codec {encoding!r}")
    return text.encode("latin1")


def arrays(dtype: type[Dtype]) -> dict[tuple[str, str], Any]:
    """Returns what stands for NumPy's functions and classes, by module and name, for arrays of some dtypes."""
    allowed: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): dtype,
        ("_codecs", "encode"): _encode,
    }
    for core in ("numpy.core", "numpy._core"):
        allowed[f"{core}.multiarray", "_reconstruct"] = _Array
        allowed[f"{core}.multiarray", "scalar"] = _scalar
        allowed[f"{core}.numeric", "_frombuffer"] = _frombuffer  # Protocol 5 writes arrays so.
    return allowed


class _File:
    """A file whose end is known, so that no length in it makes Python reserve memory for bytes that do not exist."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def read(self, count: int) -> bytes:
        """Reads as a file does. Raises EOFError if the file is shorter."""
        if count > self._size - self._file.tell():
            raise EOFError("it ends too early")
        return self._file.read(count)

    def readline(self) -> bytes:
        """Reads as a file does. Raises EOFError if the line has no end."""
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise EOFError("it ends too early")
        return line


class _Steps(dict[int, Callable[[Any], None]]):
    """The instructions by their codes, which are counted as they are looked up."""

    left = _MOST_STEPS

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError(f"it has more than {_MOST_STEPS:,} steps")
        return super().__getitem__(code)

    def __missing__(self, code: int) -> Callable[[Any], None]:
        raise pickle.UnpicklingError(f"it has the instruction {bytes([code])!r}, which such a file does not need")


_PURE: Any = getattr(pickle, "_Unpickler")  # noqa: B009 - the stubs do not have it


class Unpickler(_PURE):
    """Python's own unpickler in Python. That in C makes a table of gigabytes for a large number of an object.

    Args:
        file: The file.
        size: Its size in bytes.
        allowed: What stands for functions and classes, by module and name.
        steps: The instructions that the kind of file needs, by their names in the module `pickle`.
        encoding: Encoding of the texts of Python 2; 'bytes' leaves them as they are.
    """

    def __init__(
        self,
        file: BinaryIO,
        size: int,
        allowed: Mapping[tuple[str, str], Any],
        steps: Sequence[str] = PLAIN_STEPS,
        encoding: str = "bytes",
    ) -> None:
        super().__init__(_File(file, size), encoding=encoding)
        codes = {getattr(pickle, name)[0] for name in steps}
        self._allowed = allowed
        self.dispatch = _Steps({code: step for code, step in _PURE.dispatch.items() if code in codes})
        self.dispatch[pickle.MARK[0]] = Unpickler._mark
        self.dispatch[pickle.REDUCE[0]] = Unpickler._reduce
        self.dispatch[pickle.BUILD[0]] = Unpickler._build
        self.dispatch[pickle.BYTEARRAY8[0]] = Unpickler._bytearray8
        self._left = _MOST_COPIES * size + _LEAST_BYTES

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a class or a function. Raises RefusedError for what nothing stands for."""
        try:
            return self._allowed[module, name]
        except KeyError:
            raise RefusedError(one_line(f"{module}.{name}")) from None

    def _mark(self) -> None:
        if len(self.metastack) > _DEEPEST:
            raise pickle.UnpicklingError("it is nested too deeply")
        self.load_mark()

    def _bytearray8(self) -> None:
        """Reads the bytes before it makes room for them, as Python's own method does not."""
        size = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(size)))

    def _reduce(self) -> None:
        self.load_reduce()
        self._count(self.stack[-1])

    def _build(self) -> None:
        if not isinstance(self.stack[-2], Stateful):
            raise pickle.UnpicklingError("it sets the state of something that is not an array")
        self.load_build()
        self._count(unwrap(self.stack[-1]))

    def _count(self, made: Any) -> None:
        if isinstance(made, np.ndarray):
            self._left -= made.nbytes
        elif isinstance(made, (bytes, list, tuple, dict)):
            self._left -= len(made) * (1 if isinstance(made, bytes) else _POINTER)
        if self._left < 0:
            raise pickle.UnpicklingError("its arrays are much larger than the file")


def unwrap(value: Any) -> Any:
    """Returns the array for what stands for one in a pickle, and anything else as it is."""
    return value.value if isinstance(value, _Array) else value


def reason(problem: Exception) -> str:
    """Returns why a pickle cannot be read, in one line."""
    if isinstance(problem, EOFError):
        return "it ends too early"
    is_told = isinstance(problem, pickle.UnpicklingError) and str(problem)
    return one_line(str(problem)) if is_told else "its pickle is damaged"
