"""Divides the head of a checkpoint for another number of ranks, or changes the type of its class centres.

No more than a block of the head is ever in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import numpy as np

from plsc.checkpoint.folder import AVERAGE, BACKBONE, OPTIMIZER, head_file, open_checkpoint, publishing, write_meta
from plsc.checkpoint.load import HeadFiles
from plsc.checkpoint.tensor_file import FileSum, Stream, TensorFile, write_tensors
from plsc.errors import ConfigError
from plsc.heads import shard_bounds
from plsc.machine.bfloat16 import BFLOAT16
from plsc.zoo import check_target

_ROUNDED = ("weight", "weight/velocity")  # what training keeps in the type of set_head_dtype


def convert(source: Path, target: Path, ranks: Optional[int] = None, head_dtype: Optional[str] = None) -> None:
    """Writes a copy of a checkpoint in the form in which `ranks` ranks would have saved it.

    Training can load a checkpoint of any number of ranks; this is for machines that hold only the files of their own
    ranks, and to resume a run with another `set_head_dtype`.

    Args:
        source: The checkpoint, which is only read.
        target: The folder of the copy, which must be new.
        ranks: The number of ranks; None keeps it.
        head_dtype: The type of the class centres and their momentum: 'float32', or 'bfloat16', to which they are
            rounded to the nearest. None keeps it.

    Raises:
        ConfigError: The target exists, or the head is not divided among ranks.
        CheckpointError: The source cannot be used, or the target cannot be written.
    """
    check_target("convert-checkpoint", target)
    checkpoint = open_checkpoint(source)
    if target.exists():
        raise ConfigError(f"{target}: already exists; name a new folder")
    if checkpoint.meta["sharded"] is False and ranks is not None:
        raise ConfigError(
            f"{source}: every rank holds the whole head (loss {checkpoint.meta['loss_type']}), "
            "so that it fits any number of ranks as it is"
        )
    meta = {**_plain(checkpoint.meta), **({} if head_dtype is None else {"head_dtype": head_dtype})}
    if ranks is not None:
        meta.update(ranks=ranks, rng=[])
    shards = len(checkpoint.head_rows) // len(checkpoint.heads) if ranks is None else ranks
    bounds = [[shard_bounds(classes, shards, rank) for rank in range(shards)] for classes in checkpoint.heads]
    rows = [upper - lower for of_head in bounds for lower, upper in of_head]
    files = dict[str, FileSum]()
    with publishing(target) as folder:
        for name in sorted({BACKBONE, OPTIMIZER, AVERAGE} & checkpoint.files.keys()):
            with TensorFile(checkpoint.folder / name, checkpoint.files[name]) as file:
                files[name] = write_tensors(folder / name, {key: file.read(key) for key in file})
        for number, of_head in enumerate(bounds):
            with HeadFiles(checkpoint, number) as head:
                for rank, (lower, upper) in enumerate(of_head, number * shards):
                    tensors = _shard(head, checkpoint.meta["by_rows"], lower, upper, head_dtype)
                    files[head_file(rank)] = write_tensors(folder / head_file(rank), tensors)
        write_meta(folder, {**meta, "head_rows": rows}, files)


def _shard(head: HeadFiles, by_rows: list[str], lower: int, upper: int, head_dtype: Optional[str]) -> dict[str, Stream]:
    """Returns the tensors of the shard of the classes [lower, upper).

    A shard without classes has no state of the optimizer, as in a checkpoint of a rank without rows.
    """
    tensors = {}
    for name in head:
        shape, dtype = head.shape(name), head.dtype(name)
        if head_dtype is not None and name in _ROUNDED:
            dtype = BFLOAT16 if head_dtype == "bfloat16" else np.dtype("float32")
        if name in by_rows and upper > lower:
            tensors[name] = Stream(dtype, (upper - lower, *shape[1:]), head.rows(name, lower, upper))
        elif name not in by_rows and (upper > lower or "/" not in name):
            tensors[name] = Stream(dtype, shape, [head.read(name)])
    return tensors


def _plain(meta: dict) -> dict:
    """Returns `meta.json` without the entries that are made for each folder."""
    return {
        key: value for key, value in meta.items() if key not in ("format", "block_bytes", "size", "sha256", "blocks")
    }
