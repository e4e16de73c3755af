"""Divides the head of a checkpoint for another number of ranks, and holds no more than a block of it in memory."""

from __future__ import annotations

from pathlib import Path

from plsc.checkpoint.folder import AVERAGE, BACKBONE, OPTIMIZER, head_file, open_checkpoint, publishing, write_meta
from plsc.checkpoint.load import HeadFiles
from plsc.checkpoint.tensor_file import FileSum, Stream, TensorFile, write_tensors
from plsc.errors import ConfigError
from plsc.heads import shard_bounds
from plsc.zoo import check_target


def convert(source: Path, target: Path, ranks: int) -> None:
    """Writes a copy of a checkpoint in the form in which `ranks` ranks would have saved it.

    Training can load a checkpoint of any number of ranks; this is for machines that hold only the files of their own
    ranks.

    Args:
        source: The checkpoint, which is only read.
        target: The folder of the copy, which must be new.
        ranks: The number of ranks.

    Raises:
        ConfigError: The target exists, or the head is not divided among ranks.
        CheckpointError: The source cannot be used, or the target cannot be written.
    """
    check_target("convert-checkpoint", target)
    checkpoint = open_checkpoint(source)
    if target.exists():
        raise ConfigError(f"{target}: already exists; name a new folder")
    if checkpoint.meta["sharded"] is False:
        raise ConfigError(
            f"{source}: every rank holds the whole head (loss {checkpoint.meta['loss_type']}), "
            "so that it fits any number of ranks as it is"
        )
    bounds = [[shard_bounds(classes, ranks, rank) for rank in range(ranks)] for classes in checkpoint.heads]
    rows = [upper - lower for of_head in bounds for lower, upper in of_head]
    files = dict[str, FileSum]()
    with publishing(target) as folder:
        for name in sorted({BACKBONE, OPTIMIZER, AVERAGE} & checkpoint.files.keys()):
            with TensorFile(checkpoint.folder / name, checkpoint.files[name]) as file:
                files[name] = write_tensors(folder / name, {key: file.read(key) for key in file})
        for number, of_head in enumerate(bounds):
            with HeadFiles(checkpoint, number) as head:
                for rank, (lower, upper) in enumerate(of_head, number * ranks):
                    tensors = _shard(head, checkpoint.meta["by_rows"], lower, upper)
                    files[head_file(rank)] = write_tensors(folder / head_file(rank), tensors)
        write_meta(folder, {**_plain(checkpoint.meta), "ranks": ranks, "head_rows": rows, "rng": []}, files)


def _shard(head: HeadFiles, by_rows: list[str], lower: int, upper: int) -> dict[str, Stream]:
    """Returns the tensors of the shard of the classes [lower, upper).

    A shard without classes has no state of the optimizer, as in a checkpoint of a rank without rows.
    """
    tensors = {}
    for name in head:
        shape, dtype = head.shape(name), head.dtype(name)
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
