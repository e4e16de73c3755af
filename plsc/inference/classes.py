"""Answers which class an image shows, with the class centres of a head, read in parts so that memory stays bounded.

Shapes: N images, D embedding, C classes, n classes of a part, K answers for each image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from plsc.errors import ConfigError, DataError, counted
from plsc.machine.files import sha256_of
from plsc.machine.json_files import as_integer, as_object
from plsc.metrics.vectors import unit_rows

CENTRES, BIAS = "class_centres.npy", "class_bias.npy"
_ROWS = 4096  # classes of a part that is read from an export
_IMAGES = 1024  # images that a part is compared with at a time


class Answer(NamedTuple):
    """One class that an image may show.

    Attributes:
        number: Number of the class, from 0.
        name: Its name; '' if unknown.
        cosine: Cosine between the embedding and the class centre.
    """

    number: int
    name: str
    cosine: float


class ClassCentres:
    """The class centres of a head, on disk.

    Attributes:
        count: Number of classes, C.
        names: Name of each class; empty if they are unknown.
    """

    count: int
    names: Sequence[str]

    def parts(self) -> Iterator[tuple[np.ndarray, Optional[np.ndarray]]]:
        """Yields the centres in the order of their numbers, each part with its biases [n] or None.

        They are [n, D] float32, or [n, k, D] where a class has k sub-centres.
        """
        raise NotImplementedError


class CheckpointCentres(ClassCentres):
    """The class centres in a checkpoint of any number of ranks.

    Args:
        folder: Folder of the checkpoint.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        from plsc.checkpoint import open_checkpoint

        self._checkpoint = open_checkpoint(folder)
        self.count = self._checkpoint.meta["num_classes"]
        if not self.count:
            raise ConfigError(
                f"{folder}: holds the weights of a backbone alone, without class centres, so that it knows no class; "
                "train it, or import class centres with plsc import-weights --head"
            )
        self.names = self._checkpoint.meta.get("class_names", ())

    def parts(self) -> Iterator[tuple[np.ndarray, Optional[np.ndarray]]]:
        """Yields what `ClassCentres.parts` describes."""
        from plsc.checkpoint import HeadFiles

        with HeadFiles(self._checkpoint) as files:
            bias = None
            if "bias" in files:
                bias = np.concatenate([part.copy() for part in files.rows("bias", 0, self.count)])
        with HeadFiles(self._checkpoint) as files:
            first = 0
            for rows in files.rows("weight", 0, self.count):
                end = first + len(rows)
                yield rows.astype("float32", copy=False), None if bias is None else bias[first:end]
                first = end


class ExportedCentres(ClassCentres):
    """The class centres in an export, as `write_centres` wrote them.

    Args:
        folder: Folder of the export.
        record: What `write_centres` returned.
        names: Name of each class; empty if they are unknown.

    Raises:
        ConfigError: A file is missing or damaged.
    """

    def __init__(self, folder: Path, record: dict[str, Any], names: Sequence[str]) -> None:
        self.count, self.names = as_integer(record["count"], 1), names
        arrays: dict[str, np.ndarray] = {}
        for name, digest in as_object(record["files"]).items():
            path = folder / name
            try:
                if name not in (CENTRES, BIAS) or sha256_of(path) != digest:
                    raise ValueError("it differs from the manifest")
                arrays[name] = np.load(path, mmap_mode="r")
                if len(arrays[name]) != self.count:
                    raise ValueError("it has another number of classes")
            except (OSError, ValueError) as problem:
                raise ConfigError(f"{path}: cannot be used ({problem}); export the network again") from None
        self._centres, self._bias = arrays[CENTRES], arrays.get(BIAS)

    def parts(self) -> Iterator[tuple[np.ndarray, Optional[np.ndarray]]]:
        """Yields what `ClassCentres.parts` describes."""
        for first in range(0, self.count, _ROWS):
            end = first + _ROWS
            yield self._centres[first:end], None if self._bias is None else self._bias[first:end]


def check_names(names: Sequence[str], count: int, giver: str = "set_class_names") -> None:
    """Checks that there is a name for each class, or none at all.

    Args:
        names: The names.
        count: Number of classes.
        giver: What gives the names, for the message.

    Raises:
        ConfigError: There are more or fewer names than classes.
    """
    if len(names) not in (0, count):
        raise ConfigError(
            f"{giver} gives {counted(len(names), 'name')} for {counted(count, 'class')}; give one for each"
        )


def write_centres(centres: ClassCentres, emb_dim: int, folder: Path) -> tuple[list[Path], dict[str, Any]]:
    """Writes class centres as files of an export, part by part.

    Args:
        centres: The class centres.
        emb_dim: Size of an embedding, D.
        folder: An existing folder.

    Returns:
        The files, and what the manifest records of them.

    Raises:
        ConfigError: The files cannot be written.
        DataError: The centres have another size than the embeddings.
    """
    files: dict[str, Any] = {}
    with contextlib.ExitStack() as opened:
        for rows, bias in centres.parts():
            if rows.shape[-1] != emb_dim:
                raise DataError(f"the class centres have {rows.shape[-1]} numbers, and the embeddings {emb_dim}")
            for name, values in ((CENTRES, rows), (BIAS, bias)):
                if values is None:
                    continue
                if name not in files:
                    files[name] = opened.enter_context(open(folder / name, "wb"))
                    header = {"descr": "<f4", "fortran_order": False, "shape": (centres.count, *values.shape[1:])}
                    np.lib.format.write_array_header_1_0(files[name], header)
                # Not through mapped memory, where a full disk would end the process.
                files[name].write(np.ascontiguousarray(values, "<f4").data)
    paths = [folder / name for name in files]
    return paths, {"count": centres.count, "files": {path.name: sha256_of(path) for path in paths}}


@dataclass
class _Best:
    """The best classes found so far for N images.

    Attributes:
        scores: What orders the classes, [N, K], the best first.
        cosines: Their cosines, [N, K].
        numbers: Their numbers, [N, K].
    """

    scores: np.ndarray
    cosines: np.ndarray
    numbers: np.ndarray

    def merge(self, own: slice, scores: np.ndarray, cosines: np.ndarray, first: int) -> None:
        """Takes in the classes of a part.

        Args:
            own: The images that the part was compared with.
            scores: Scores of the part, [b, n].
            cosines: Its cosines, [b, n].
            first: Number of its first class.
        """
        kept = self.scores.shape[1]
        numbers = np.broadcast_to(np.arange(first, first + scores.shape[1]), scores.shape)
        every = [
            np.concatenate([old[own], new], axis=1)
            for old, new in ((self.scores, scores), (self.cosines, cosines), (self.numbers, numbers))
        ]
        # A stable sort of all of a part would take longer than the product: only the candidates are sorted.
        chosen = np.argpartition(-every[0], kept - 1, axis=1)[:, :kept]
        chosen.sort(axis=1)  # of equal scores, the class with the smallest number comes first
        order = np.argsort(-np.take_along_axis(every[0], chosen, 1), axis=1, kind="stable")
        chosen = np.take_along_axis(chosen, order, 1)
        self.scores[own], self.cosines[own], self.numbers[own] = (np.take_along_axis(one, chosen, 1) for one in every)


def classify(embeddings: np.ndarray, centres: ClassCentres, top: int = 5) -> list[list[Answer]]:
    """Returns the classes nearest to embeddings, in one pass over the class centres.

    The nearest class has the largest cosine; with a bias, as softmax heads have it, the largest logit.

    Args:
        embeddings: Embeddings [N, D] float32, of any length.
        centres: The class centres.
        top: Number of answers for each image, K; there are no more than classes.

    Returns:
        The answers for each image, the best first. An embedding of zeros, as a damaged image gets it, has none.

    Raises:
        DataError: The embeddings have another size than the centres, or one is not finite.
    """
    embeddings, top = np.asarray(embeddings, "float32"), min(top, centres.count)
    if not np.isfinite(embeddings).all():
        raise DataError("classify: an embedding is not finite; leave that image out")
    count = len(embeddings)
    best = _Best(
        np.full((count, top), -np.inf, "float32"), np.zeros((count, top), "float32"), np.full((count, top), -1)
    )
    units, first = unit_rows(embeddings), 0
    for rows, bias in centres.parts():
        if rows.shape[-1] != embeddings.shape[1]:
            raise DataError(
                f"classify: the embeddings have {embeddings.shape[1]} numbers, and the class centres {rows.shape[-1]}"
            )
        unit_centres = unit_rows(np.asarray(rows).reshape(-1, rows.shape[-1]))
        for start in range(0, count, _IMAGES):
            own = slice(start, start + _IMAGES)
            cosines = units[own] @ unit_centres.T
            if rows.ndim > 2:  # of the sub-centres of a class, the nearest counts
                cosines = cosines.reshape(len(cosines), *rows.shape[:2]).max(axis=2)
            scores = cosines if bias is None else embeddings[own] @ rows.T + bias
            best.merge(own, scores, cosines, first)
        first += len(rows)
    names = centres.names
    return [
        [Answer(int(k), names[k] if len(names) else "", float(cosine)) for k, cosine in zip(numbers, cosines)]
        if is_usable
        else []
        for numbers, cosines, is_usable in zip(best.numbers, best.cosines, (embeddings != 0).any(axis=1).tolist())
    ]
