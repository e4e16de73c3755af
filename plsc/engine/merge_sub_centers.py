"""Leaves one sub-centre of each class: the dominant one, which is the nearest of most of the class's images.

With the images that are far from it on a list, the next training begins with clean data (Deng et al., "Sub-center
ArcFace", ECCV 2020, section 3.4).

Shapes: N images, n images of a batch, C classes, k sub-centres of a class, D embedding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np

from plsc import parallel
from plsc.checkpoint import Checkpoint, HeadFiles, Stream, open_checkpoint
from plsc.config import Config
from plsc.data.class_names import find_names
from plsc.data.collection import RecordImages
from plsc.data.exclusion import line_of
from plsc.data.records import Records
from plsc.engine.derived import Tensors, kept_type, whole_tensors, write_derived
from plsc.errors import ConfigError, DataError
from plsc.evaluation.embedder import Embedder
from plsc.evaluation.trained import open_network
from plsc.inference.classes import CENTRES, CheckpointCentres, write_centres
from plsc.machine.files import replace_file
from plsc.machine.names import quoted
from plsc.metrics.vectors import unit_rows
from plsc.zoo import check_target


class Wanted(NamedTuple):
    """What is merged, and where the result goes.

    Attributes:
        data: Path of the data set.
        output: New folder of the checkpoint.
        drop_beyond: Angle from the dominant sub-centre, in degrees, beyond which an image is listed; None lists none.
        listed: File that receives the list; None without one.
    """

    data: Path
    output: Path
    drop_beyond: Optional[float] = None
    listed: Optional[Path] = None


@dataclasses.dataclass(frozen=True)
class Report:
    """What `merge_sub_centers` did.

    Attributes:
        num_classes: Number of classes.
        sub_centers: Number of sub-centres that each class had.
        images: Images of the data set.
        damaged: Images that could not be decoded.
        dominant: Images whose nearest sub-centre of their class is the dominant one.
        unseen: Classes without an image, of which the first sub-centre is left.
        left_out: Images on the list.
        unnamed: Images that should be on the list, and that no line can name.
    """

    num_classes: int
    sub_centers: int
    images: int
    damaged: int
    dominant: int
    unseen: int
    left_out: int
    unnamed: int


class _Counts(NamedTuple):
    """What the images say about the sub-centres.

    Attributes:
        cosines: Cosines of each image with the sub-centres of its class, [N, k] float32; NaN for damaged images.
        classes: The class of each image in the checkpoint, [N].
        dominant: The dominant sub-centre of each class, [C].
        seen: The number of images of each class, [C].
    """

    cosines: np.ndarray
    classes: np.ndarray
    dominant: np.ndarray
    seen: np.ndarray

    @property
    def is_damaged(self) -> np.ndarray:
        """Whether each image could not be decoded, [N]."""
        return np.isnan(self.cosines[:, 0])

    @property
    def angles(self) -> np.ndarray:
        """The angle of each image from the dominant sub-centre of its class, in degrees, [N]; NaN if damaged."""
        own = np.take_along_axis(self.cosines, self.dominant[self.classes][:, None], axis=1)[:, 0]
        return np.degrees(np.arccos(np.clip(own, -1.0, 1.0)))


def merge_sub_centers(config: Config, open_data: Callable[[], Records], wanted: Wanted) -> Report:
    """Writes a checkpoint with the dominant sub-centre of each class; all ranks call it together.

    The optimizer's state is left out, so that training can begin with the checkpoint, but not resume from it.

    Args:
        config: Prepared settings, which name the checkpoint.
        open_data: Opens the data set for rank 0 of 1.
        wanted: What is merged.

    Returns:
        What was done, the same on every rank.

    Raises:
        ConfigError: The target or the list exists, or the checkpoint has nothing to merge.
        CheckpointError: The checkpoint cannot be used, or the target cannot be written.
        DataError: The data cannot be read, or has classes that the checkpoint does not know.
    """
    source = parallel.together(lambda: _open(config, wanted), "the checkpoint")
    network, config = open_network("merge-sub-centers", config)
    records = parallel.together(open_data, "the data set")
    try:
        classes = parallel.together(
            lambda: _classes_of(source, records, config, wanted.data), "the classes of the data"
        )
        images = RecordImages(wanted.data, records)
        embedder = Embedder(network, config, config.augmentation.mirror, progress=True, skip_damaged=True)
        counts = _count(source, embedder.blocks(images), classes, wanted.output.absolute().parent)

        def write() -> Report:
            assert counts is not None
            lines = _far_images(images, counts, wanted.drop_beyond)
            if wanted.listed is not None:
                _write_list(wanted.listed, [line for line in lines if line is not None])
            _write(source, wanted.output, counts.dominant, config.checkpoint_weights)
            return _report(source, counts, lines)

        return parallel.from_rank_0(write, "the new checkpoint")
    finally:
        records.close()


def _open(config: Config, wanted: Wanted) -> Checkpoint:
    check_target("merge-sub-centers", wanted.output)
    for path in (wanted.output, wanted.listed):
        if path is not None and path.exists():
            raise ConfigError(f"{path}: already exists; name a new one")
    source = open_checkpoint(Path(config.checkpoint_dir))
    if source.sub_centers == 1:
        raise ConfigError(f"{source.folder}: has one centre for each class already, so there is nothing to merge")
    if len(source.heads) > 1:
        raise ConfigError(
            f"{source.folder}: has {len(source.heads)} heads, and merge-sub-centers takes only a single one; train on "
            "merged data sets, or keep the sub-centres, which every other command knows"
        )
    return source


def _classes_of(source: Checkpoint, records: Records, config: Config, where: Path) -> np.ndarray:
    """Returns the number of each image's class in the checkpoint: by name, or by label where either has no names.

    Raises:
        DataError: The checkpoint does not know a class of the data.
    """
    labels = records.labels()
    theirs = source.meta.get("class_names", ())
    ours = records.class_names if config.class_names is None else config.class_names
    if len(theirs) and len(ours):
        numbers = find_names(ours, theirs, str(source.folder))
        labels = numbers[labels]
        if len(labels) and labels.min() < 0:
            name = ours[int(records.labels()[int(labels.argmin())])]
            raise DataError(f"{where}: {source.folder} knows no class {quoted(name)}; give the data of its training")
    elif len(labels) and labels.max() >= source.meta["num_classes"]:
        raise DataError(
            f"{where}: has label {labels.max()}, and {source.folder} knows the classes 0 to "
            f"{source.meta['num_classes'] - 1}; give the data of its training"
        )
    return labels


def _count(source: Checkpoint, blocks: Iterator[np.ndarray], classes: np.ndarray, place: Path) -> Optional[_Counts]:
    """Compares all images with the sub-centres of their classes, on rank 0; returns None on the others.

    The class centres are mapped from a temporary file, so that memory stays bounded in whatever order images come.
    """
    with contextlib.ExitStack() as resources:
        centres = parallel.together(
            lambda: _map_centres(source, place, resources) if parallel.rank() == 0 else None, "the class centres"
        )
        cosines = np.empty((len(classes) if centres is not None else 0, source.sub_centers), "float32")
        first = 0
        for rows in blocks:
            if centres is not None:
                own = slice(first, first + len(rows))
                found = _compare(rows, centres[classes[own]])
                found[~rows.any(axis=1)] = np.nan
                cosines[own] = found
            first += len(rows)
    if parallel.rank() > 0:
        return None
    good = ~np.isnan(cosines[:, 0])
    places = classes[good] * source.sub_centers + cosines[good].argmax(axis=1)
    num_classes = source.meta["num_classes"]
    votes = np.bincount(places, minlength=num_classes * source.sub_centers).reshape(num_classes, source.sub_centers)
    return _Counts(cosines, classes, votes.argmax(axis=1), votes.sum(axis=1))


def _map_centres(source: Checkpoint, place: Path, resources: contextlib.ExitStack) -> np.ndarray:
    """Returns all sub-centres [C, k, D], mapped from a file in a folder that `resources` removes from `place`."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix=".plsc-centres-", dir=place)))
        write_centres(CheckpointCentres(source.folder), source.meta["emb_dim"], folder)
        return np.load(folder / CENTRES, mmap_mode="r")
    except OSError as problem:
        raise ConfigError(
            f"{place}: cannot be written ({problem.strerror}); free space, or name another OUTPUT"
        ) from None


def _compare(embeddings: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Returns the cosines of embeddings [n, D] and the sub-centres of their classes [n, k, D], as [n, k]."""
    units = unit_rows(centres.reshape(-1, centres.shape[-1])).reshape(centres.shape)
    return np.einsum("nd,nkd->nk", unit_rows(embeddings), units)


def _far_images(images: RecordImages, counts: _Counts, limit: Optional[float]) -> list[Optional[bytes]]:
    """Returns the lines of the list of images that are to be left out; None for one that no line can name."""
    if limit is None:
        return []
    lines = []
    angles, is_damaged = counts.angles, counts.is_damaged
    for i in np.flatnonzero(is_damaged | (angles > limit)).tolist():
        why = "cannot be decoded" if is_damaged[i] else f"{angles[i]:.1f} degrees from {images.class_title(i)}"
        lines.append(line_of(images.name(i), why))
    return lines


def _write_list(path: Path, lines: Sequence[bytes]) -> None:
    try:
        replace_file(path, b"".join(lines))
    except OSError as problem:
        raise ConfigError(f"{path}: cannot be written ({problem.strerror}); name another file with --list") from None


def _report(source: Checkpoint, counts: _Counts, lines: Sequence[Optional[bytes]]) -> Report:
    good = ~counts.is_damaged
    nearest = counts.cosines[good].argmax(axis=1)
    return Report(
        num_classes=source.meta["num_classes"],
        sub_centers=source.sub_centers,
        images=len(good),
        damaged=int((~good).sum()),
        dominant=int((nearest == counts.dominant[counts.classes[good]]).sum()),
        unseen=int((counts.seen == 0).sum()),
        left_out=sum(line is not None for line in lines),
        unnamed=sum(line is None for line in lines),
    )


def _write(source: Checkpoint, target: Path, dominant: np.ndarray, weights: str) -> None:
    """Writes the checkpoint, with as many head files as the old one has."""
    meta = source.meta
    changes = {
        "num_classes": meta["num_classes"],
        **({"class_names": meta["class_names"]} if "class_names" in meta else {}),
        "merged_sub_centers": source.sub_centers,
        "head_rows": source.head_rows,
    }

    def shards(head: HeadFiles) -> Iterator[Tensors]:
        lower = 0
        for count in source.head_rows:
            yield _shard(head, dominant[lower : lower + count], lower, meta["emb_dim"])
            lower += count

    write_derived(source, target, weights, shards, changes)


def _shard(head: HeadFiles, dominant: np.ndarray, lower: int, emb_dim: int) -> Tensors:
    """Returns the tensors of a head file with the dominant sub-centres of the classes from `lower` on."""

    def rows() -> Iterator[np.ndarray]:
        first = 0
        for part in head.rows("weight", lower, lower + len(dominant)):
            chosen = dominant[first : first + len(part)]
            yield part[np.arange(len(part)), chosen].astype("float32", copy=False)
            first += len(part)

    tensors = whole_tensors(head)
    if len(dominant):
        tensors["weight"] = Stream(kept_type(head, "weight"), (len(dominant), emb_dim), rows())
    return tensors
