"""Checkpoints that are made without training."""

import numpy as np

from plsc import checkpoint
from plsc.checkpoint import tensor_file
from plsc.checkpoint.folder import META, write_meta


def make_checkpoint(folder, run="run", step=0, heads=2, written=1.0, seed=0, **entries):
    """Makes a checkpoint of `heads` ranks, and returns its meta.json, to which `entries` are added."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    names = [checkpoint.BACKBONE, checkpoint.OPTIMIZER, *map(checkpoint.head_file, range(heads))]
    tensors = {"a": rng.normal(size=(700, 3)).astype("float32")}
    files = {name: tensor_file.write_tensors(folder / name, tensors) for name in names}
    meta = {"run": run, "step": step, "num_classes": 4 * heads, "head_rows": [4] * heads, "written": written}
    meta.update(entries)
    write_meta(folder, meta, files)
    return (folder / META).read_bytes()


def same_files(folder, other):
    """Returns whether two folders hold the same files."""
    names = sorted(path.name for path in folder.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and all(
        (folder / name).read_bytes() == (other / name).read_bytes() for name in names
    )
