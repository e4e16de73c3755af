"""Writes checkpoints that are made from another one without training: with more classes, or with fewer rows of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plsc.checkpoint import AVERAGE, BACKBONE, OPTIMIZER, Checkpoint, HeadFiles, Stream, head_file
from plsc.checkpoint.folder import publishing, write_meta
from plsc.checkpoint.tensor_file import FileSum, TensorFile, write_tensors
from plsc.data.pixels import IMAGE_RECORD
from plsc.machine.bfloat16 import BFLOAT16
from plsc.version import __version__

Tensors = dict[str, Stream]  # of a head file, by name


def write_derived(
    source: Checkpoint,
    target: Path,
    weights: str,
    shards: Callable[[HeadFiles], Iterable[Tensors]],
    changes: Mapping[str, Any],
) -> None:
    """Writes a checkpoint with the backbone of another one and a changed head.

    The optimizer's state is left out, so that training can begin with the checkpoint, but not resume from it.

    Args:
        source: The other checkpoint.
        target: New folder.
        weights: 'average' or 'plain'; see `read_backbone`.
        shards: Returns the tensors of each head file from the head of the other checkpoint.
        changes: What `meta.json` says of the new head: `num_classes`, `head_rows` and other entries.

    Raises:
        CheckpointError: The other checkpoint is damaged, or the target cannot be written.
    """
    meta = source.meta
    files: dict[str, FileSum] = {}
    with publishing(target) as folder, HeadFiles(source) as head:
        files[BACKBONE] = write_tensors(folder / BACKBONE, read_backbone(source, weights))
        files[OPTIMIZER] = write_tensors(folder / OPTIMIZER, {})
        for number, tensors in enumerate(shards(head)):
            files[head_file(number)] = write_tensors(folder / head_file(number), tensors)
        record: dict[str, Any] = {
            "plsc": __version__,
            "written": time.time(),
            "step": 0,
            **{key: meta[key] for key in ("emb_dim", "loss_type", "sharded", "model", "ranks")},
            **{key: meta[key] for key in ("image_shape", *IMAGE_RECORD) if key in meta},
            "dtype": "float32",
            "head_dtype": meta.get("head_dtype", "float32"),
            "by_rows": [key for key in ("weight", "bias") if key in head],
            "accumulators": {},
        }
        write_meta(folder, {**record, **changes}, files)


def kept_type(head: HeadFiles, name: str) -> np.dtype:
    """Returns the type in which a matrix is written: bfloat16 if it is read from that, else float32."""
    return BFLOAT16 if head.dtype(name) == BFLOAT16 else np.dtype("float32")


def read_backbone(source: Checkpoint, weights: str) -> dict[str, np.ndarray]:
    """Returns the backbone that a command has used: the average of its weights, or the plain ones.

    Args:
        source: The checkpoint.
        weights: 'average', where the checkpoint has one, or 'plain'.
    """
    with TensorFile(source.folder / BACKBONE, source.files[BACKBONE]) as file:
        found = {key: file.read(key) for key in file}
    if weights == "average" and AVERAGE in source.files:
        with TensorFile(source.folder / AVERAGE, source.files[AVERAGE]) as file:
            found.update({key: file.read(key).astype(found[key].dtype) for key in file})
    return found


def whole_tensors(head: HeadFiles) -> Tensors:
    """Returns the tensors of a head that have no rows, such as the statistics of a margin; none of the optimizer."""
    # The names of the optimizer's tensors have a slash.
    names = [name for name in head if name not in ("weight", "bias") and "/" not in name]
    return {name: Stream(head.dtype(name), head.shape(name), [head.read(name)]) for name in names}
