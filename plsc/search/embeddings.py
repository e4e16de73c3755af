"""Embeddings folders, which `predict` writes and `index` reads. Needs no Paddle.

embeddings.npy   float32 [N, D], not normalised
images.tsv       N lines, each with the name of an image and its identity, which may be empty; see `write_table`
manifest.json    what the embeddings were made from; written last
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from plsc.data.packed import Distinct, Numbering, TextsOfFile, blocks_of_lines, most_lines, state_of, unquoted
from plsc.data.pixels import IMAGE_RECORD
from plsc.errors import ConfigError, DataError, counted, reason_of
from plsc.machine.files import open_regular, remove_leftovers, replace_file, replacing, sync, write_all
from plsc.machine.json_files import as_integer, as_integers, as_text, json_text, read_json
from plsc.machine.locks import lock_folder
from plsc.machine.tables import write_rows

_FORMAT = "plsc embeddings 1"
_FILES = _VECTORS, _TABLE, _MANIFEST = "embeddings.npy", "images.tsv", "manifest.json"
PARQUET = "embeddings.parquet"  # plsc.search.parquet writes it
_PART, _PROGRESS = ".embeddings.npy.part", ".embeddings.progress.json"
_ANOTHER_FOLDER = "choose another folder"
_NAMED = 3  # files of the user in a message
_SAVE_SECONDS = 10.0  # Time between two records of the progress.


@dataclass
class Embeddings:
    """The content of an embeddings folder.

    Attributes:
        vectors: Embeddings [N, D] float32, mapped from disk.
        names: Name of each image.
        identities: Identity of each image; '' if unknown.
        meta: The manifest.
    """

    vectors: np.ndarray
    names: TextsOfFile
    identities: Distinct
    meta: dict[str, Any]


def holds_embeddings(folder: Path) -> bool:
    """Returns whether a folder is an embeddings folder, complete or not."""
    return any((folder / name).exists() for name in (_VECTORS, _PART))


def open_embeddings(folder: Path) -> Embeddings:
    """Opens a complete embeddings folder.

    Raises:
        DataError: The folder is missing or incomplete, or its files do not belong together.
    """
    try:
        meta = read_json(folder / _MANIFEST)
        count, emb_dim = as_integer(meta["count"]), as_integer(meta["emb_dim"], 1)
        check_source(meta)
        vectors = _mapped(folder / _VECTORS)
        names, identities = read_table(folder / _TABLE)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DataError(
            f"{folder}: not a complete embeddings folder ({reason(problem)}); make one with plsc predict"
        ) from None
    if vectors.shape != (count, emb_dim) or vectors.dtype != np.float32 or len(names) != count:
        raise DataError(
            f"{folder}: embeddings.npy is {vectors.dtype} {list(vectors.shape)} and images.tsv has "
            f"{counted(len(names), 'line')}, but manifest.json says {count} embeddings of {emb_dim} float32; make the "
            "folder again"
        )
    return Embeddings(vectors, names, identities, meta)


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as problem:  # NumPy raises exceptions of many types for damaged headers.
        raise ValueError(f"{path.name}: not an array of NumPy ({type(problem).__name__})") from None


def check_source(meta: dict[str, Any]) -> None:
    """Checks what a manifest says about the network and the images.

    Raises:
        ValueError: A part of it has another type than `predict` wrote.
    """
    for name in ("model", "export", "source", "images"):
        if meta.get(name) is not None:
            as_text(meta[name])
    if meta.get("image_shape") is not None:
        as_integers(meta["image_shape"], 1, 3)
    for name, check in IMAGE_RECORD.items():
        if meta.get(name) is not None:
            check(meta[name])


class EmbeddingsWriter:
    """A writer that fills an embeddings folder row by row, and resumes where one with the same `meta` stopped.

    Args:
        folder: Folder to fill, created if necessary. The writer replaces only files of its own.
        meta: What the embeddings are made from. It includes `count` and `emb_dim`.

    Attributes:
        rows: Number of embeddings in the folder.

    Raises:
        ConfigError: The folder holds something else or cannot be written, or another process is writing it.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any]) -> None:
        self._folder, self._meta = folder, {"format": _FORMAT, **meta}
        self._count, self._emb_dim = int(meta["count"]), int(meta["emb_dim"])
        self._stream: Optional[io.FileIO] = None
        self._complete = False
        self._saved = time.monotonic()
        self._lock = contextlib.ExitStack()
        with contextlib.ExitStack() as failed:
            failed.callback(self._release)
            with self._writing():
                self._lock.enter_context(lock_folder(folder, _ANOTHER_FOLDER))
                self._begin()
            failed.pop_all()

    def append(self, rows: np.ndarray) -> None:
        """Appends embeddings [n, D]."""
        assert self._stream is not None
        with self._writing():
            write_all(self._stream.fileno(), np.ascontiguousarray(rows, dtype="<f4").tobytes())
            self.rows += len(rows)
            if time.monotonic() - self._saved >= _SAVE_SECONDS:
                self._save()

    def finish(self, images: Iterable[tuple[str, str]]) -> None:
        """Completes the folder, unless it is complete already.

        Args:
            images: Name and identity of each image, in the order of the rows.
        """
        if self._complete:
            return
        assert self.rows == self._count
        with self._writing():
            self._save()  # From now on a resumed writer may replace files of these names.
            with replacing(self._folder / _TABLE) as table:
                write_table(table, images)
            if (self._folder / _PART).exists():
                os.replace(self._folder / _PART, self._folder / _VECTORS)
            text = json_text(self._meta, indent=1) + "\n"
            replace_file(self._folder / _MANIFEST, text.encode())
            (self._folder / _PROGRESS).unlink()
            sync(self._folder)
            self._complete = True

    def close(self) -> None:
        """Closes the folder, and keeps an incomplete one for a later run."""
        try:
            if not self._complete:
                with self._writing():
                    self._save()
        finally:
            self._release()

    def _release(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._lock.close()

    def _begin(self) -> None:
        """Takes over what an interrupted writer left; refuses other embeddings, and files that plsc did not write."""
        found, begun = _read(self._folder / _MANIFEST), _read_progress(self._folder / _PROGRESS)
        if begun is None and found == self._meta:
            self.rows, self._complete = self._count, True
            return
        made_of = (found if begun is None else begun["meta"]) or {}
        if begun is not None and made_of == {**self._meta, "skip_damaged": False}:
            made_of = self._meta  # No image was damaged so far, so the option has made no difference.
        if made_of.get("format") == _FORMAT and made_of != self._meta:
            every = {**self._meta, **made_of}  # versions of plsc differ in what they record
            different = ", ".join(key for key in every if made_of.get(key) != self._meta.get(key))
            raise ConfigError(
                f"{self._folder}: holds other embeddings (different: {different}); name another folder, or move them "
                "away"
            )
        self.rows = begun["rows"] if begun is not None and made_of == self._meta else 0
        part, finishing = (self._folder / _PART).exists(), self.rows == self._count
        own = {_TABLE: finishing, _VECTORS: finishing and not part, _MANIFEST: finishing and found == self._meta}
        others = [name for name in _FILES if not own[name] and os.path.lexists(self._folder / name)]
        if others:
            raise ConfigError(
                f"{self._folder}: holds {', '.join(others)}, which plsc predict did not write; name another folder, or "
                "move the files away"
            )
        if begun is None:
            self._check_alone()
        for name in (_TABLE, _MANIFEST, _PROGRESS):
            remove_leftovers(self._folder / name)
        if part or not finishing or not (self._folder / _VECTORS).exists():
            self._open(part)

    def _check_alone(self) -> None:
        """Refuses to start in a folder that holds files of the user, hidden ones aside."""
        names = (name for name in os.listdir(self._folder) if not name.startswith("."))
        strangers = sorted(set(names) - {*_FILES, PARQUET})
        if strangers:
            more = f" and {len(strangers) - _NAMED} more" if len(strangers) > _NAMED else ""
            raise ConfigError(
                f"{self._folder}: holds {', '.join(strangers[:_NAMED])}{more}, and embeddings get a folder of their "
                f"own; name a new one, such as {self._folder / 'embeddings'}"
            )

    def _open(self, part: bool) -> None:
        place, size = self._folder / _PART, len(self._header()) + 4 * self._emb_dim * self.rows
        if self.rows and (not part or place.stat().st_size < size):
            raise ConfigError(f"{place}: is missing or cut short; remove it and {_PROGRESS}, and start again")
        self._stream = io.FileIO(place, "r+" if part else "w+")
        if not self.rows:
            write_all(self._stream.fileno(), self._header())
        self._stream.truncate(size)
        self._stream.seek(size)
        self._save()

    def _save(self) -> None:
        if self._stream is not None:
            os.fsync(self._stream.fileno())
        replace_file(self._folder / _PROGRESS, json.dumps({"meta": self._meta, "rows": self.rows}).encode())
        self._saved = time.monotonic()

    def _header(self) -> bytes:
        stream = io.BytesIO()
        shape = (self._count, self._emb_dim)
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
        return stream.getvalue()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise ConfigError(
                f"{self._folder}: cannot be written ({problem.strerror}); free space or name another folder"
            ) from None


def write_table(path: Path, images: Iterable[tuple[str, str]]) -> None:
    """Writes names and identities so that they survive a power cut.

    The bytes of a name are written as they are. A name with a tab, a line end or a double quote stands in double
    quotes, and each double quote in it is doubled, as in CSV.

    Args:
        path: File to write.
        images: Native name and identity of each image.

    Raises:
        OSError: The file cannot be written.
    """
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        write_rows(stream, images)
    sync(path)


def read_table(path: Path) -> tuple[TextsOfFile, Distinct]:
    """Reads an `images.tsv`, without a Python object for each image.

    Returns:
        The native names and the native identities of the images.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged.
    """
    found, count = Numbering(), 0
    with contextlib.ExitStack() as failed:
        file = failed.enter_context(open_regular(path))
        state, most = state_of(file.fileno()), most_lines(file.fileno())
        starts, lengths, ids = np.empty(most, np.int64), np.empty(most, np.int32), np.empty(most, np.int32)
        for block in blocks_of_lines(file.fileno(), quoted=True):
            tabs = block.places(b"\t")
            firsts = np.searchsorted(tabs, block.starts)
            wrong = np.searchsorted(tabs, block.ends) - firsts != 1
            if wrong.any():
                number = count + int(wrong.argmax()) + 1
                raise ValueError(f"{path.name}, line {number}: expected an image and an identity, with a tab between")
            middles = tabs[firsts]
            ends = block.ends - (block.data[block.ends - 1] == ord("\r"))  # an editor of Windows may have added it
            part = slice(count, count + len(firsts))
            count = part.stop
            starts[part], lengths[part] = block.position + block.starts, middles - block.starts
            ids[part] = found.of(block.data, middles + 1, ends - middles - 1)
        names = TextsOfFile(path, file, starts[:count], lengths[:count], state, quoted=True)
        failed.pop_all()
    return names, Distinct(ids[:count], [os.fsdecode(unquoted(one)) for one in found.numbers])


def reason(problem: Exception) -> str:
    """Returns a problem in a few words, for error messages."""
    if isinstance(problem, OSError) and problem.filename:
        return f"{Path(problem.filename).name}: {problem.strerror}"
    return reason_of(problem)


def _read(path: Path) -> Optional[dict[str, Any]]:
    try:
        content = read_json(path)
    except FileNotFoundError:
        return None
    except ValueError:
        raise ConfigError(f"{path}: plsc did not write this file; name another folder, or move it away") from None
    return content if isinstance(content, dict) else {}


def _read_progress(path: Path) -> Optional[dict[str, Any]]:
    begun = _read(path)
    if begun is not None:
        try:
            as_integer(begun["rows"])
            if not isinstance(begun["meta"], dict):
                raise ValueError("its meta is not an object")
        except (KeyError, ValueError) as problem:
            raise ConfigError(f"{path}: is damaged ({reason(problem)}); remove it, and start again") from None
    return begun
