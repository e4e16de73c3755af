"""Adds classes to the head of a checkpoint without training: their centres are the mean embeddings of their images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from plsc.checkpoint import Checkpoint, HeadFiles, Stream, open_checkpoint
from plsc.config import MOST_NAMES, Config
from plsc.data.class_names import find_names
from plsc.data.records import Records
from plsc.engine.build import open_source
from plsc.engine.derived import Tensors, kept_type, whole_tensors, write_derived
from plsc.engine.new_centres import Scale, mean_directions, scale_of
from plsc.errors import CheckpointError, ConfigError, DataError
from plsc.evaluation.trained import open_network
from plsc.heads import shard_bounds
from plsc.inference.classes import check_names
from plsc.inference.networks import Network
from plsc.machine.json_files import LARGEST
from plsc.machine.names import class_title
from plsc.zoo import check_target

_FLOAT32 = np.dtype("float32")


@dataclass(frozen=True)
class Report:
    """What `add_classes` did.

    Attributes:
        num_classes: Number of classes of the new checkpoint.
        known: How many of them the old one has.
        added: How many are new; their numbers follow those of the others.
        left_out: Classes that the data names, but has no image of.
    """

    num_classes: int
    known: int
    added: int
    left_out: Sequence[str]


@dataclass(frozen=True)
class _Choice:
    """The new classes.

    Attributes:
        classes: Their numbers in the data, int64.
        names: Names of all classes of the new checkpoint; empty if they have none.
        left_out: Names of classes without images.
    """

    classes: np.ndarray
    names: Sequence[str]
    left_out: Sequence[str]


def add_classes(config: Config, target: Path, names: Optional[Sequence[str]] = None) -> Report:
    """Writes a checkpoint whose head knows the classes of a data set too, after those that it knew.

    The head is copied part by part, and the new centres are written as they are made. The optimizer's state is left
    out, so that training can begin with the checkpoint, but not resume from it.

    Args:
        config: Prepared settings, which name the checkpoint and the data; they do not say how many classes there are.
        target: New folder of the checkpoint.
        names: Names of the classes of the old checkpoint; None takes those that it records.

    Returns:
        What was done.

    Raises:
        ConfigError: The target exists, names are missing, or the data has no new class.
        CheckpointError: The checkpoint cannot be used, or the target cannot be written.
        DataError: The data cannot be read.
    """
    check_target("add-classes", target)
    if target.exists():
        raise ConfigError(f"{target}: already exists; name a new folder")
    source = open_checkpoint(Path(config.checkpoint_dir))
    if len(source.heads) > 1:
        raise ConfigError(
            f"{source.folder}: has {len(source.heads)} heads, and add-classes extends only a single one; begin with "
            "its centres by set_head_init('from-embeddings')"
        )
    if source.sub_centers > 1:
        raise ConfigError(
            f"{source.folder}: has {source.sub_centers} sub-centres for each class; leave one of each with plsc "
            "merge-sub-centers, and add the classes to its output"
        )
    network, config = open_network("add-classes", config)
    records = open_source(config)
    assert records is not None
    try:
        known = names or source.meta.get("class_names", ())
        check_names(known, source.meta["num_classes"], "--names" if names else str(source.folder))
        choice = _choose(source, known, config.class_names or (), records, ", ".join(config.data_sets))
        _check_length(choice.names)
        rows = _NewRows(network, config, records, choice, scale_of(source, source.meta["emb_dim"]))
        _write(source, target, rows, choice, config.checkpoint_weights)
    finally:
        records.close()
    count, added = source.meta["num_classes"], len(choice.classes)
    return Report(count + added, count, added, choice.left_out)


def _choose(source: Checkpoint, theirs: Sequence[str], ours: Sequence[str], records: Records, where: str) -> _Choice:
    """Finds the classes of the data that the checkpoint does not have: by name, or by number where neither has names.

    Args:
        source: The checkpoint.
        theirs: The names of its classes.
        ours: The names of the classes in the data.
        records: The data.
        where: What to call the data in messages.
    """
    count, labels = source.meta["num_classes"], records.labels()
    images = np.bincount(labels, minlength=max(records.num_classes, count))
    if count and bool(theirs) != bool(ours):
        if ours:
            raise CheckpointError(
                f"{source.folder}: records no class names, and the data has names, so that it is not known which "
                "classes are new; name those of the checkpoint with --names FILE"
            )
        raise ConfigError(
            f"{where}: does not name its classes, and the checkpoint has names, so that it is not known which classes "
            "are new; name them with a classes.txt or --set class_names=FILE"
        )
    if ours:
        is_new = find_names(ours, theirs, str(source.folder)) < 0
        has_images = images[: len(ours)] > 0
        classes = np.flatnonzero(is_new & has_images)
        left_out = [ours[k] for k in np.flatnonzero(is_new & ~has_images).tolist()]
        choice = _Choice(classes, [*theirs, *(ours[k] for k in classes.tolist())], left_out)
    else:
        classes = np.arange(count, max(count, records.num_classes))
        for k in classes[images[classes] == 0].tolist():
            raise DataError(f"{where}: has no image of class {k}; number the new classes from {count} on, without gaps")
        choice = _Choice(classes, (), ())
    if not len(choice.classes):
        known = (
            "names no class that" if ours else f"neither has names, and no label is above those {count:,} classes that"
        )
        raise ConfigError(f"{where}: {known} {source.folder} does not know already; give images of new classes")
    return choice


def _check_length(names: Sequence[str]) -> None:
    if len(names) > MOST_NAMES or len(json.dumps(list(names))) > LARGEST // 2:
        raise ConfigError(f"the names of {len(names):,} classes are too long to keep; use shorter names")


class _NewRows:
    """The centres of the new classes, which are made while they are written.

    Args:
        network: The network.
        config: The settings.
        records: The images.
        choice: The classes.
        scale: The scale of the centres.

    Attributes:
        scale: The scale of the centres.
        count: Number of classes.
    """

    def __init__(self, network: Network, config: Config, records: Records, choice: _Choice, scale: Scale) -> None:
        self.scale, self.count, self._choice = scale, len(choice.classes), choice
        self._names = config.class_names or ()
        self._blocks = mean_directions(network, config, records, choice.classes)
        self._left = np.empty((0, network.emb_dim), "float32")
        self._made = 0

    def take(self, count: int) -> Iterator[np.ndarray]:
        """Yields the next centres, [n, D] float32 each, `count` in all.

        Raises:
            DataError: A class has no image that can be used.
        """
        while count:
            if not len(self._left):
                self._left = next(self._blocks) * np.float32(self.scale.length)
                empty = np.flatnonzero(~self._left.any(axis=1))
                if len(empty):
                    title = class_title(int(self._choice.classes[self._made + int(empty[0])]), self._names)
                    raise DataError(f"{title}: none of its images can be used; replace them, or leave it out")
                self._made += len(self._left)
            part, self._left = self._left[:count], self._left[count:]
            count -= len(part)
            yield part


def _write(source: Checkpoint, target: Path, new: _NewRows, choice: _Choice, weights: str) -> None:
    """Writes the checkpoint, with as many head files as the old one has."""
    meta, ranks = source.meta, len(source.head_rows)
    total = meta["num_classes"] + new.count
    bounds = [shard_bounds(total, ranks, rank) for rank in range(ranks)]
    changes = {
        "num_classes": total,
        **({"class_names": list(choice.names)} if choice.names else {}),
        "added_classes": new.count,
        "head_rows": [upper - lower for lower, upper in bounds],
    }

    def shards(head: HeadFiles) -> Iterator[Tensors]:
        return (_shard(head, meta, lower, upper, new) for lower, upper in bounds)

    write_derived(source, target, weights, shards, changes)


def _shard(head: HeadFiles, meta: dict[str, Any], lower: int, upper: int, new: _NewRows) -> Tensors:
    """Returns the tensors of the classes [lower, upper), of which those that the old head has come first."""
    count = meta["num_classes"]
    end, added = min(upper, count), upper - max(lower, count)
    tensors = whole_tensors(head)
    shape = (upper - lower, meta["emb_dim"])
    tensors["weight"] = Stream(kept_type(head, "weight"), shape, _weights(head, lower, end, new, added))
    if "bias" in head:
        tensors["bias"] = Stream(_FLOAT32, shape[:1], _biases(head, lower, end, new.scale, added))
    return tensors


def _weights(head: HeadFiles, lower: int, end: int, new: _NewRows, added: int) -> Iterator[np.ndarray]:
    if lower < end:
        yield from (part.astype("float32", copy=False) for part in head.rows("weight", lower, end))
    yield from new.take(max(added, 0))


def _biases(head: HeadFiles, lower: int, end: int, scale: Scale, added: int) -> Iterator[np.ndarray]:
    if lower < end:
        yield from (part.astype("float32", copy=False) for part in head.rows("bias", lower, end))
    yield np.full(max(added, 0), scale.bias or 0.0, "float32")
