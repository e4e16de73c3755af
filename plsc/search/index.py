"""Builds an index of an embeddings folder with faiss, and finds nearest neighbours in it. Needs no Paddle."""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from plsc.errors import ConfigError, DataError
from plsc.machine.files import replace_file, replacing, sync
from plsc.machine.json_files import as_integer, json_text, read_json, short
from plsc.machine.names import utf8_path
from plsc.search.embeddings import Embeddings, check_source, open_embeddings, read_table, reason, write_table

KINDS = ("auto", "flat", "ivf")
_FORMAT = "plsc index 1"
# What an index records about how its embeddings were made, so that queries are embedded in the same way.
_OF_EMBEDDINGS = ("model", "export", "source", "images", "image_shape", "pixel_rule", "image_ground", "flip")
_FLAT_UP_TO = 200_000  # Up to so many vectors an exact search takes a CPU some hundredths of a second.
_BLOCK = 16_384  # Rows that are read, normalised and added at a time.
_WIDEST = 1024  # Images that `search` looks at for each query before it searches other identities alone.
_TRAIN_ROWS_PER_LIST, _TRAIN_ROUNDS = 40, 10  # faiss asks for at least 39 rows.
_SAMPLE, _RECALL, _LEAST_PROBES = 256, 0.95, 16  # They decide the number of probes; see `_lists_and_probes`.


class Hit(NamedTuple):
    """One image that a search found.

    Attributes:
        name: Name of the image.
        identity: Its identity; '' if unknown.
        cosine: Cosine between its embedding and that of the query.
    """

    name: str
    identity: str
    cosine: float


class SearchIndex:
    """An index in memory.

    Args:
        file: Index that `build_index` wrote.

    Attributes:
        meta: Content of `FILE.json`.
        names: Name of each image in the index.
        identities: Identity of each image; '' if unknown.

    Raises:
        ConfigError: faiss is missing.
        DataError: The index is missing or incomplete.
    """

    def __init__(self, file: Path) -> None:
        self._faiss = _faiss()
        self.meta = _read_meta(file)
        try:
            self.names, self.identities = read_table(_companion(file, ".tsv"))
            with utf8_path(file) as place:
                self._index = self._faiss.read_index(str(place))
        except (OSError, ValueError, RuntimeError, MemoryError) as problem:
            raise DataError(f"{file}: the index cannot be read ({reason(problem)}); make it again") from None
        kind = {"flat": self._faiss.IndexFlat, "ivf": self._faiss.IndexIVFFlat}[self.meta["kind"]]
        sizes_fit = isinstance(self._index, kind) and self._index.d == self.emb_dim
        if not sizes_fit or not self._index.ntotal == len(self.names) == self.meta["count"]:
            raise DataError(f"{file}: the index does not belong to its .json and .tsv; make it again")

    @property
    def emb_dim(self) -> int:
        """Size of an embedding, D."""
        return self.meta["emb_dim"]

    def nearest(
        self, embeddings: np.ndarray, number: int, probes: Optional[int] = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the images nearest to embeddings. Threads may search at the same time.

        Args:
            embeddings: Queries [B, D], which need not have unit length.
            number: Number of images to find for each query.
            probes: Lists that an ivf index looks into; by default the number chosen when the index was made.

        Returns:
            Cosines [B, number] and rows [B, number], nearest first. Where there are no more images the row is -1.

        Raises:
            DataError: The embeddings have another size, or one is zero or not finite.
        """
        return self._find(self._queries(embeddings), number, probes)

    def search(self, embeddings: np.ndarray, top: int = 5, probes: Optional[int] = None) -> list[list[Hit]]:
        """Finds the identities nearest to embeddings; the nearest image of each identity represents it.

        An image without an identity counts as an identity of its own.

        Args:
            embeddings: Queries [B, D], which need not have unit length.
            top: Number of identities to find for each query.
            probes: Lists that an ivf index looks into; by default the number chosen when the index was made.

        Returns:
            The hits of each query, nearest first. There are fewer than `top` only if the index, or the lists that an
            ivf index looks into, hold no more identities.

        Raises:
            DataError: As for `nearest`.
        """
        queries, number = self._queries(embeddings), 4 * top
        top, widest = min(top, self._identity_count), max(number, _WIDEST)
        found: list[dict[int, Hit]] = [{} for _ in queries]
        lacking = np.arange(len(queries))
        while len(lacking) and number <= widest:
            cosines, rows = self._find(queries[lacking], number, probes)
            for query, one_cosines, one_rows in zip(lacking, cosines, rows):
                found[query] = self._nearest_of_each(one_cosines, one_rows, top)
            exhausted = (rows[:, -1] < 0) | (rows.shape[1] == self._index.ntotal)
            lacking = lacking[[not done and len(found[query]) < top for query, done in zip(lacking, exhausted)]]
            number *= 4
        for query in lacking:
            self._complete(found[query], queries[query : query + 1], top, probes)
        return [list(hits.values()) for hits in found]

    def _complete(self, hits: dict[int, Hit], query: np.ndarray, top: int, probes: Optional[int]) -> None:
        """Adds hits for one query until there are `top`, by searching the images of the other identities alone.

        It is for identities with so many images that one cannot look at all of them to find the next identity.
        """
        while len(hits) < top:
            others = ~np.isin(self._numbers, list(hits))
            cosines, rows = self._find(query, 4 * top, probes, others)
            more = self._nearest_of_each(cosines[0], rows[0], top - len(hits))
            if not more:
                return
            hits.update(more)

    def _queries(self, embeddings: np.ndarray) -> np.ndarray:
        """Returns embeddings at unit length, as faiss takes them."""
        queries = np.asarray(embeddings, dtype="float64")  # In float32 the squares of extreme numbers would overflow.
        if queries.ndim != 2 or queries.shape[1] != self.emb_dim:
            raise DataError(
                f"search: embeddings {list(queries.shape)} do not fit the index, which holds [N, {self.emb_dim}]; "
                "embed the queries with the network of the index"
            )
        lengths = np.linalg.norm(queries, axis=1, keepdims=True)
        bad = ~(np.isfinite(lengths) & (lengths > 0))
        if bad.any():
            raise DataError(
                f"search: the embedding of query {int(bad.argmax())} is zero or not finite; leave that image out"
            )
        return np.ascontiguousarray(queries / lengths, dtype="float32")

    def _find(
        self, queries: np.ndarray, number: int, probes: Optional[int], allowed: Optional[np.ndarray] = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Does the work of `nearest`. Only rows count for which `allowed` [N] is true."""
        options: dict[str, Any] = {}  # They belong to the call; those of the index would be those of other threads too.
        if allowed is not None:
            options["sel"] = self._faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        if self.meta["kind"] == "ivf":
            options["nprobe"] = min(probes or self.meta["probes"], self._index.nlist)
            parameters = self._faiss.SearchParametersIVF(**options)
        else:
            parameters = self._faiss.SearchParameters(**options)
        return self._index.search(queries, min(number, self._index.ntotal), params=parameters)

    @functools.cached_property
    def _numbers(self) -> np.ndarray:
        """A number for the identity of each row [N]; an image without an identity has one of its own."""
        numbers = self.identities.ids.astype(np.int64)
        rows = np.flatnonzero(numbers == self.identities.number_of_empty())
        numbers[rows] = len(self.identities.distinct) + np.arange(len(rows))
        return np.unique(numbers, return_inverse=True)[1].reshape(-1)

    @functools.cached_property
    def _identity_count(self) -> int:
        return int(self._numbers.max(initial=-1)) + 1

    def _nearest_of_each(self, cosines: np.ndarray, rows: np.ndarray, top: int) -> dict[int, Hit]:
        """Returns the first image of each of the first `top` identities, by the number of the identity."""
        hits: dict[int, Hit] = {}
        for cosine, row in zip(cosines, rows):
            if row < 0 or len(hits) == top:
                break
            number = int(self._numbers[row])
            if number not in hits:
                hits[number] = Hit(self.names[row], self.identities[row], float(cosine))
        return hits


def build_index(folder: Path, file: Path, kind: str = "auto", probes: Optional[int] = None) -> dict[str, Any]:
    """Builds an index of the embeddings of a folder, at unit length, and writes it.

    The index is `file`, `FILE.json` and `FILE.tsv`. The embeddings are read in blocks, so that memory holds the index
    and one block. Embeddings that are zero are left out, with a warning.

    Args:
        folder: An embeddings folder.
        file: File to write. An earlier index is replaced; any other file is not.
        kind: 'flat' compares a query with every embedding, 'ivf' with those in the lists nearest to the query. 'auto'
            chooses flat up to 200,000 embeddings.
        probes: Lists that a search in an ivf index looks into by default. With None the number is chosen such that 95 %
            of a sample of the images find their nearest other image.

    Returns:
        Content of `FILE.json`.

    Raises:
        ConfigError: faiss is missing, or the file cannot be written.
        DataError: The folder cannot be used, or an embedding is not finite.
    """
    faiss = _faiss()
    _check_replaceable(file)
    embeddings = open_embeddings(folder)
    kept = _usable_rows(folder, embeddings)
    if kind == "auto":
        kind = "flat" if len(kept) <= _FLAT_UP_TO else "ivf"
    dim = embeddings.vectors.shape[1]
    index = _flat(faiss, embeddings.vectors, kept) if kind == "flat" else _ivf(faiss, embeddings.vectors, kept)
    meta = {
        "format": _FORMAT,
        "kind": kind,
        "count": len(kept),
        "left_out": len(embeddings.names) - len(kept),
        "identities": len(
            {embeddings.identities.distinct[k] for k in np.unique(embeddings.identities.ids[kept])} - {""}
        ),
        "emb_dim": dim,
        **(_lists_and_probes(index, embeddings.vectors, kept, probes) if kind == "ivf" else {}),
        **{key: embeddings.meta.get(key) for key in _OF_EMBEDDINGS},
    }
    try:
        _write(faiss, index, file, meta, embeddings, kept)
    except (OSError, RuntimeError) as problem:  # faiss raises RuntimeError.
        raise ConfigError(f"{file}: cannot be written ({reason(problem)}); name another file with --output") from None
    return meta


def _usable_rows(folder: Path, embeddings: Embeddings) -> np.ndarray:
    kept = np.ones(len(embeddings.vectors), bool)
    for first in range(0, len(kept), _BLOCK):
        block = embeddings.vectors[first : first + _BLOCK]
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            row = first + int(finite.argmin())
            raise DataError(
                f"{folder}/embeddings.npy: row {row} ({embeddings.names[row]}) is not finite; make the embeddings "
                "again, without that image or in float32"
            )
        kept[first : first + _BLOCK] = block.any(axis=1)
    rows = np.flatnonzero(kept)
    if not len(rows):
        raise DataError(
            f"{folder}/embeddings.npy: all embeddings are zero, so there is nothing to find; embed other images"
        )
    if len(rows) < len(kept):
        row = int(kept.argmin())
        logging.getLogger("plsc").warning(
            "%s: %d zero embeddings are left out, the first in row %d (%s)",
            folder,
            len(kept) - len(rows),
            row,
            embeddings.names[row],
        )
    return rows


def _unit_blocks(vectors: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(rows), _BLOCK):
        yield _unit(vectors[rows[first : first + _BLOCK]])


def _unit(vectors: np.ndarray) -> np.ndarray:
    scale = np.abs(vectors).max(axis=1, keepdims=True)  # It avoids overflow, as float64 does in `nearest`.
    scaled = vectors / scale
    scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.ascontiguousarray(scaled, dtype="float32")


def _flat(faiss: Any, vectors: np.ndarray, rows: np.ndarray) -> Any:
    index = faiss.IndexFlatIP(vectors.shape[1])
    # Reserving the whole room at once keeps memory from holding the index twice while it grows.
    index.codes.resize(len(rows) * index.code_size)
    index.codes.resize(0)
    for block in _unit_blocks(vectors, rows):
        index.add(block)
    return index


def _ivf(faiss: Any, vectors: np.ndarray, rows: np.ndarray) -> Any:
    quantizer = faiss.IndexFlatIP(vectors.shape[1])
    index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], _lists(len(rows)), faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = _TRAIN_ROUNDS
    index.cp.min_points_per_centroid = 1  # Otherwise faiss warns about small sets.
    sample = min(len(rows), _TRAIN_ROWS_PER_LIST * index.nlist)
    chosen = np.sort(np.random.default_rng(0).choice(len(rows), sample, replace=False))
    index.train(_unit(vectors[rows[chosen]]))
    assigned = np.concatenate([quantizer.search(block, 1)[1][:, 0] for block in _unit_blocks(vectors, rows)])
    for number, count in enumerate(np.bincount(assigned, minlength=index.nlist)):  # It reserves room, as in `_flat`.
        index.invlists.resize(number, int(count))
        index.invlists.resize(number, 0)
    first = 0
    for block in _unit_blocks(vectors, rows):
        lists = np.ascontiguousarray(assigned[first : first + len(block)])
        index.add_core(len(block), faiss.swig_ptr(block), None, faiss.swig_ptr(lists))
        first += len(block)
    return index


def _lists(count: int) -> int:
    """Returns a power of two near 4 * sqrt(count), but few enough lists that each can learn its centre."""
    wanted = min(4 * count**0.5, count / _TRAIN_ROWS_PER_LIST)
    return max(1, 2 ** round(np.log2(max(1.0, wanted))))


def _lists_and_probes(index: Any, vectors: np.ndarray, rows: np.ndarray, probes: Optional[int]) -> dict[str, Any]:
    if probes is not None:
        return {"lists": index.nlist, "probes": min(probes, index.nlist)}
    chosen = np.sort(np.random.default_rng(1).choice(len(rows), min(_SAMPLE, len(rows)), replace=False))
    sample = _unit(vectors[rows[chosen]])
    exact = _nearest_other(index, sample, index.nlist)
    probes = min(_LEAST_PROBES, index.nlist)
    while True:
        # Cosines are compared, not rows, because an image may be in the index twice.
        recall = float((_nearest_other(index, sample, probes) >= exact - 1e-6).mean())
        if recall >= _RECALL or probes == index.nlist:
            return {"lists": index.nlist, "probes": probes, "recall": round(recall, 4)}
        probes = min(2 * probes, index.nlist)


def _nearest_other(index: Any, sample: np.ndarray, probes: int) -> np.ndarray:
    """Returns the cosine of the nearest other image of each. The first that a search finds is the image itself."""
    index.nprobe = probes
    return index.search(sample, 2)[0][:, 1]


def _write(faiss: Any, index: Any, file: Path, meta: dict[str, Any], embeddings: Embeddings, kept: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(_companion(file, ".tsv")) as new_table, replacing(file) as new_index:
        with utf8_path(new_index) as place:
            faiss.write_index(index, str(place))
        write_table(new_table, ((embeddings.names[row], embeddings.identities[row]) for row in kept))
        sync(new_index)
        # An index without .json is not valid, so an old and a new part are never taken for one index.
        _companion(file, ".json").unlink(missing_ok=True)
    replace_file(_companion(file, ".json"), json_text(meta, indent=1).encode() + b"\n")


def _check_replaceable(file: Path) -> None:
    there = [one for one in (file, _companion(file, ".json"), _companion(file, ".tsv")) if os.path.lexists(one)]
    if not there:
        return
    try:
        _read_meta(file)
    except DataError:
        raise ConfigError(
            f"{there[0]}: exists, and is not a complete index; name another file with --output, or remove this one"
        ) from None


def _read_meta(file: Path) -> dict[str, Any]:
    place = _companion(file, ".json")
    try:
        meta = read_json(place)
        if meta["format"] != _FORMAT:
            raise ValueError(f"format {short(meta['format'])}")
        as_integer(meta["count"], 1)
        as_integer(meta["emb_dim"], 1)
        if meta["kind"] not in ("flat", "ivf"):
            raise ValueError(f"kind {short(meta['kind'])}")
        if meta["kind"] == "ivf":
            as_integer(meta["probes"], 1)
        check_source(meta)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        inner = "" if isinstance(problem, OSError) else f"{place.name}: "  # `reason` names the file of an OSError
        raise DataError(f"{file}: not a complete index ({inner}{reason(problem)}); make one with plsc index") from None
    return {**dict.fromkeys(_OF_EMBEDDINGS), **meta}


def _companion(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)


def _faiss() -> Any:
    if logging.getLogger("faiss").level == logging.NOTSET:  # it tells which builds for other processors it lacks
        logging.getLogger("faiss").setLevel(logging.WARNING)
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise ConfigError("an index needs faiss; run pip install '.[search]' in the plsc clone") from None
