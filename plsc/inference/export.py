"""Exports a trained backbone as files that other programs run: Paddle's inference format, or ONNX."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import numpy as np
import paddle

from plsc import parallel
from plsc.errors import ConfigError
from plsc.inference import runtime
from plsc.inference.comparison import cosines, images_for_check
from plsc.inference.export_folder import MANIFEST
from plsc.inference.networks import embed_batch
from plsc.inference.precision import check_precision, reduce_precision
from plsc.machine.files import sha256_of, sync
from plsc.machine.locks import lock_folder
from plsc.version import __version__

FORMATS = ("paddle", "onnx")
_NAME = "inference"
_OPSET = 17
_BATCH = 16
_PARITY = 0.9999  # A float32 export with a lower cosine gets a warning.

logger = logging.getLogger("plsc")


def export(
    backbone: paddle.nn.Layer,
    folder: Path,
    image_shape: tuple[int, int, int],
    format: str = "paddle",
    precision: str = "float32",
    calibration: Optional[Path] = None,
) -> Path:
    """Exports the network from normalised images [B, C, H, W] float32 to embeddings [B, D], for any B. Rank 0 does it.

    The export is `inference.json` (Paddle 2: `inference.pdmodel`) and `inference.pdiparams`, or `inference.onnx`. The
    files replace those of an earlier export once they are complete and have been run. `inference_meta.json`, which
    `plsc.Predictor` reads, comes last. Nothing else in the folder is touched.

    Args:
        backbone: The trained network.
        folder: Folder of the export, created if necessary.
        image_shape: Shape of one image, (C, H, W).
        format: 'paddle' or 'onnx'.
        precision: 'float32', or for ONNX also 'float16' or 'int8'.
        calibration: Folder or label file of images, on which the export is compared with the network, and from which
            int8 takes the ranges of its numbers. None compares on noise.

    Returns:
        `folder`.

    Raises:
        ConfigError: The tools of the format are missing or cannot make the export, or the folder cannot be written.
        DataError: An image of `calibration` cannot be read.
    """
    if format not in FORMATS:
        raise ConfigError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    check_precision(format, precision, calibration is not None)
    if format == "onnx" and not all(map(importlib.util.find_spec, ("paddle2onnx", "onnxruntime"))):
        raise ConfigError(
            "export to ONNX needs paddle2onnx and onnxruntime; run pip install '.[onnx]' in the plsc clone"
        )
    if parallel.rank() == 0:
        images = images_for_check(calibration, image_shape)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _workspace(folder) as temporary:
                files, meta = _write(
                    backbone, temporary, image_shape=image_shape, format=format, precision=precision, images=images
                )
                meta["cosine_with_network"]["images"] = "random" if calibration is None else str(calibration)
                manifest = temporary / MANIFEST
                manifest.write_text(json.dumps(meta, indent=1), encoding="utf-8")
                _replace([*files, manifest], folder)
            sync(folder)
        except OSError as problem:
            raise ConfigError(f"{folder}: cannot be written ({problem.strerror}); choose another folder") from None
        _report(meta)
    parallel.meet("the export")
    return folder


def _replace(files: list[Path], folder: Path) -> None:
    """Moves all files into the folder, or none.

    If the process is killed between two renames, the digests in the manifest reveal it to `plsc.Predictor`.
    """
    for file in files:
        sync(file)
        if (folder / file.name).is_dir():
            raise ConfigError(
                f"{folder / file.name}: is a folder, where a file of the export goes; choose another folder"
            )
    for file in files:
        os.replace(file, folder / file.name)


@contextlib.contextmanager
def _workspace(folder: Path) -> Iterator[Path]:
    """Makes a hidden folder in `folder`, and removes it at the end, together with those that killed exports left."""
    advice = "choose another folder"
    for left in folder.glob(".export-*"):
        with contextlib.suppress(ConfigError), lock_folder(left, advice) as is_protected:
            if is_protected:
                shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
    try:
        # Another export may look at the new folder, and remove it, before it is locked; the lock then makes it again.
        with lock_folder(temporary, advice, patience=60):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _report(meta: dict[str, Any]) -> None:
    found = meta["cosine_with_network"]
    low = meta["precision"] == "float32" and found["lowest"] < _PARITY
    logger.log(
        logging.WARNING if low else logging.INFO,
        "%s export, cosine of its embeddings with the network's on %d images (%s): mean %.5f, lowest %.5f",
        meta["precision"],
        found["count"],
        found["images"],
        found["mean"],
        found["lowest"],
    )


def _write(
    backbone: paddle.nn.Layer,
    folder: Path,
    image_shape: tuple[int, int, int],
    format: str,
    precision: str,
    images: np.ndarray,
) -> tuple[list[Path], dict[str, Any]]:
    """Writes the network; returns its files and the content of the manifest."""
    network = copy.deepcopy(backbone)
    network.eval()
    _complete_norms(network)
    batches = [images[first : first + _BATCH] for first in range(0, len(images), _BATCH)]
    wanted = np.concatenate([embed_batch(network, batch) for batch in batches])
    spec = paddle.static.InputSpec([None, *image_shape], "float32", "images")
    paddle.jit.save(network, str(folder / _NAME), input_spec=[spec])
    program = next(path for path in (folder / f"{_NAME}.json", folder / f"{_NAME}.pdmodel") if path.exists())
    files = [program, folder / f"{_NAME}.pdiparams"]
    if format == "onnx":
        files = [_to_onnx(*files)]
    if precision != "float32":
        reduce_precision(files[0], precision, images)
    run = _tried(files, format)
    meta: dict[str, Any] = {
        "format": format,
        "precision": precision,
        "files": {file.name: sha256_of(file) for file in files},
        "image_shape": list(image_shape),
        "emb_dim": wanted.shape[1],
        "pixels": f"{'grey' if image_shape[0] == 1 else 'RGB'}, (x - 127.5) / 128",
        "cosine_with_network": {
            **cosines(np.concatenate([run(batch) for batch in batches]), wanted),
            "count": len(images),
        },
        "model": type(backbone).__name__,
        "plsc": __version__,
        "paddle": paddle.__version__,
    }
    return files, meta


def _tried(files: list[Path], format: str) -> runtime.Run:
    """Loads the files as a user will. Paddle and paddle2onnx report no error if the disk is full."""
    try:
        return runtime.load(files, format)
    except ConfigError as problem:
        free = shutil.disk_usage(files[0].parent).free // 2**20
        raise ConfigError(
            f"{files[0].parent}: the exported network cannot be run; is the disk full ({free} MB left)? {problem}"
        ) from None


def _complete_norms(network: paddle.nn.Layer) -> None:
    """Gives batch normalisations without scale or bias a scale of 1 or a bias of 0.

    Paddle 3's inference library needs both on a CPU.
    """
    for layer in network.sublayers(include_self=True):
        if isinstance(layer, paddle.nn.layer.norm._BatchNormBase):
            for name, value in (("weight", 1.0), ("bias", 0.0)):
                if getattr(layer, name) is None:
                    fill = paddle.ParamAttr(initializer=paddle.nn.initializer.Constant(value), trainable=False)
                    setattr(layer, name, layer.create_parameter([layer._num_features], attr=fill))


def _to_onnx(program: Path, parameters: Path) -> Path:
    import paddle2onnx  # The import takes seconds, and the package is optional.

    target = program.parent / f"{_NAME}.onnx"
    with contextlib.redirect_stdout(io.StringIO()):  # It draws on the terminal.
        paddle2onnx.export(str(program), str(parameters), str(target), opset_version=_OPSET, verbose=False)
    if not target.exists():
        raise ConfigError(
            "export to ONNX: paddle2onnx does not support an operator of the network; export with format 'paddle'"
        )
    return target
