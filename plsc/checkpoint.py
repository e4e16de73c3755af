"""Checkpoints: a folder of safetensors files and meta.json, written beside and renamed, never pickle.

Layout (format 1): `meta.json`, `backbone.safetensors`, `optimizer.safetensors`, and for each rank
`dist@head@rank@00000.safetensors` with its rows of `weight`, `bias` and `<parameter>/<accumulator>`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Optional

import numpy as np
import paddle
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from plsc import parallel
from plsc.errors import CheckpointError
from plsc.heads import ClassifierHead

FORMAT = 1
BACKBONE = "backbone.safetensors"
OPTIMIZER = "optimizer.safetensors"


def head_file(rank: int) -> str:
    """Name of the head shard of `rank`."""
    return f"dist@head@rank@{rank:05d}.safetensors"


def save(
    folder: Path,
    backbone: paddle.nn.Layer,
    head: ClassifierHead,
    optimizer_state: dict[str, dict[str, paddle.Tensor]],
    meta: dict[str, Any],
) -> None:
    """Writes a checkpoint; every rank calls it. `folder` appears whole or not at all.

    Args:
        folder: final place; a checkpoint that stands there is replaced after the new one is complete.
        optimizer_state: {parameter: {accumulator: tensor}}; `head.*` parameters are this rank's rows.
        meta: what `meta.json` records besides the format, shapes and checksums.
    """
    temporary = folder.with_name(f".{folder.name}.writing")
    error: Optional[str] = None
    checksums: dict[str, str] = {}
    shapes: dict[str, Any] = {}
    try:
        if parallel.rank() == 0:
            _remove_own(temporary)
        parallel.barrier()
        temporary.mkdir(parents=True, exist_ok=True)
        if head.sharded or parallel.rank() == 0:
            name = head_file(parallel.rank())
            checksums[name] = _write(temporary / name, _head_tensors(head, optimizer_state))
        if parallel.rank() == 0:
            tensors = {name: _array(tensor) for name, tensor in backbone.state_dict().items()}
            shapes = {name: list(array.shape) for name, array in tensors.items()}
            checksums[BACKBONE] = _write(temporary / BACKBONE, tensors)
            checksums[OPTIMIZER] = _write(
                temporary / OPTIMIZER,
                {
                    f"{parameter}/{accumulator}": _array(tensor)
                    for parameter, accumulators in optimizer_state.items()
                    if not parameter.startswith("head.")
                    for accumulator, tensor in accumulators.items()
                },
            )
    except OSError as problem:
        error = f"{folder}: the checkpoint could not be written: {problem.strerror or problem}; free space or choose another folder with set_model_save_dir"
    results = parallel.all_gather_object((error, checksums))
    errors = [problem for problem, _ in results if problem]
    if not errors and parallel.rank() == 0:
        meta = {
            "format": FORMAT,
            "num_classes": head.num_classes,
            "emb_dim": head.emb_dim,
            "head_files": parallel.world_size() if head.sharded else 1,
            "shapes": shapes,
            "dtype": "float32",
            **meta,
            "sha256": {name: digest for _, files in results for name, digest in files.items()},
        }
        try:
            _publish(temporary, folder, meta)
        except OSError as problem:
            errors = [f"{folder}: the checkpoint could not be put in place: {problem.strerror or problem}"]
    errors = [problem for problem in parallel.all_gather_object(errors[0] if errors else None) if problem]
    if errors:
        if parallel.rank() == 0:
            _remove_own(temporary)
        raise CheckpointError(errors[0])


def _publish(temporary: Path, folder: Path, meta: dict[str, Any]) -> None:
    with open(temporary / "meta.json", "w", encoding="utf-8") as stream:
        json.dump(meta, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    _sync(temporary)
    if folder.exists():
        if not (folder / "meta.json").exists():
            raise OSError("a folder that is not a checkpoint stands there; move it away")
        previous = folder.with_name(f".{folder.name}.replaced")
        _remove_own(previous)
        os.rename(folder, previous)
        os.rename(temporary, folder)
        _remove_own(previous)
    else:
        os.rename(temporary, folder)
    _sync(folder.parent)


def remove(folder: Path) -> None:
    """Removes a checkpoint this run wrote (rank 0 does it): hidden first, so that it is whole or gone."""
    if parallel.rank() == 0 and (folder / "meta.json").is_file():
        hidden = folder.with_name(f".{folder.name}.removed")
        os.rename(folder, hidden)
        _remove_own(hidden)


def read_meta(folder: Path) -> dict[str, Any]:
    """`meta.json` of a checkpoint, with the files it names checked for presence and content."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        checksums = dict(meta["sha256"])
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: no checkpoint there (meta.json is missing); give the folder of one epoch, such as output/0"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise CheckpointError(f"{folder / 'meta.json'}: unreadable ({problem}); use another checkpoint") from None
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / 'meta.json'}: format {meta.get('format')!r}, this plsc reads format {FORMAT}; update plsc"
        )
    for name in checksums:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: missing from the checkpoint; copy it whole or use another one")
    return meta


def load_backbone(folder: Path, backbone: paddle.nn.Layer) -> None:
    """Sets every parameter and statistic of `backbone` from the checkpoint.

    Raises:
        CheckpointError: a file is damaged, or names or shapes differ from the model's.
    """
    meta = read_meta(folder)
    arrays = _read(folder, BACKBONE, meta)
    state = backbone.state_dict()
    for name in sorted(set(arrays) ^ set(state)):
        holder = "the checkpoint" if name in arrays else "the model"
        raise CheckpointError(
            f"{folder / BACKBONE}: {name} is only in {holder}: it was saved from another model; check set_model"
        )
    for name, tensor in state.items():
        if list(arrays[name].shape) != list(tensor.shape):
            raise CheckpointError(
                f"{folder / BACKBONE}: {name} has shape {list(arrays[name].shape)}, the model has {list(tensor.shape)}; "
                "check set_emb_size, set_image_shape and set_model"
            )
        tensor.set_value(arrays[name])


def load_head(folder: Path, head: ClassifierHead) -> None:
    """Sets this rank's rows from a checkpoint of any number of ranks, reading just those rows."""
    meta = read_meta(folder)
    for name, setter in (("num_classes", "set_class_num"), ("emb_dim", "set_emb_size")):
        if meta[name] != getattr(head, name):
            raise CheckpointError(
                f"{folder}: the checkpoint has {name} {meta[name]}, {setter} says {getattr(head, name)}; make them agree"
            )
    for name, parameter in (("weight", head.weight), ("bias", head.bias)):
        if parameter is not None:
            parameter.set_value(_rows(folder, meta, name, head.lower, head.upper))
    if head.margin_state is not None:
        head.margin_state.set_value(_margin_state(folder))


def _margin_state(folder: Path) -> np.ndarray:
    path = folder / head_file(0)  # the same in every shard
    try:
        with safe_open(str(path), framework="numpy") as stream:
            return stream.get_tensor("margin_state")
    except SafetensorError as problem:
        raise CheckpointError(
            f"{path}: no margin_state in it ({problem}): it was saved with another loss; check set_loss_type"
        ) from None


def _rows(folder: Path, meta: dict[str, Any], name: str, lower: int, upper: int) -> np.ndarray:
    parts = []
    first = 0
    for rank in range(meta["head_files"]):
        path = folder / head_file(rank)
        try:
            with safe_open(str(path), framework="numpy") as stream:
                rows = int(stream.metadata()["rows"])
                begin, end = max(lower, first), min(upper, first + rows)
                if begin < end:
                    if name not in stream.keys():  # noqa: SIM118 - not a mapping
                        raise CheckpointError(
                            f"{path}: no {name} in it: it was saved with another loss; check set_loss_type"
                        )
                    parts.append(stream.get_slice(name)[begin - first : end - first])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as problem:
            raise CheckpointError(f"{path}: damaged ({problem}); use another checkpoint") from None
        first += rows
    if sum(len(part) for part in parts) != upper - lower:
        raise CheckpointError(f"{folder}: the head has {first} rows, {meta['num_classes']} expected; use another one")
    return np.concatenate(parts)


def _head_tensors(head: ClassifierHead, optimizer_state: dict[str, dict[str, paddle.Tensor]]) -> dict[str, np.ndarray]:
    tensors = {name: _array(tensor) for name, tensor in head.state_dict().items()}
    for parameter, accumulators in optimizer_state.items():
        if parameter.startswith("head."):
            for accumulator, tensor in accumulators.items():
                tensors[f"{parameter[len('head.') :]}/{accumulator}"] = _array(tensor)
    return tensors


def _array(tensor: paddle.Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.numpy())


def _write(path: Path, tensors: dict[str, np.ndarray]) -> str:
    """Writes and fsyncs one file; returns its sha256."""
    rows = len(tensors["weight"]) if "weight" in tensors else 0
    try:
        save_file(tensors, str(path), metadata={"format": "np", "rows": str(rows)})
    except SafetensorError as problem:  # how the library reports a full disk
        raise OSError(str(problem)) from None
    with open(path, "rb+") as stream:
        os.fsync(stream.fileno())
    return _digest(path)


def _read(folder: Path, name: str, meta: dict[str, Any]) -> dict[str, np.ndarray]:
    path = folder / name
    if _digest(path) != meta["sha256"].get(name):
        raise CheckpointError(f"{path}: its sha256 differs from meta.json: the file is damaged; use another checkpoint")
    with safe_open(str(path), framework="numpy") as stream:
        return {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a mapping


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_own(folder: Path) -> None:
    """Removes a folder this module made (they start with a dot), and nothing else."""
    if folder.name.startswith(".") and folder.is_dir():
        shutil.rmtree(folder)
