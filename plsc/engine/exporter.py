"""Turns a trained backbone into files other programs run: Paddle's inference format, or ONNX."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import paddle

from plsc import parallel
from plsc.errors import ConfigError
from plsc.files import sync
from plsc.version import __version__

FORMATS = ("paddle", "onnx")
MANIFEST = "inference_meta.json"
_NAME = "inference"
_OPSET = 17


def export(backbone: paddle.nn.Layer, folder: Path, image_shape: tuple[int, int, int], format: str = "paddle") -> Path:
    """Writes the network from normalised images [B, C, H, W] float32 to embeddings [B, D], for any B; rank 0 does it.

    `inference.json` (Paddle 2: `inference.pdmodel`) and `inference.pdiparams`, or `inference.onnx`, replace those of an
    earlier export once they are whole; `inference_meta.json`, which `plsc.Predictor` reads, comes last. Nothing else in the
    folder is touched.

    Raises:
        ConfigError: the format's tools are missing, or nothing can be written there.
    """
    if format not in FORMATS:
        raise ConfigError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    if format == "onnx" and importlib.util.find_spec("paddle2onnx") is None:
        raise ConfigError("export to ONNX needs paddle2onnx: pip install '.[onnx]' in the plsc clone")
    if parallel.rank() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
        except OSError as problem:
            raise ConfigError(f"{folder}: cannot write there ({problem.strerror}); choose another folder") from None
        try:
            files = _write(backbone, temporary, image_shape, format)
            for file in files:
                os.replace(file, folder / file.name)
            sync(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    parallel.barrier()
    return folder


def _write(backbone: paddle.nn.Layer, folder: Path, image_shape: tuple[int, int, int], format: str) -> list[Path]:
    network = copy.deepcopy(backbone)
    network.eval()
    _complete_norms(network)
    spec = paddle.static.InputSpec([None, *image_shape], "float32", "images")
    paddle.jit.save(network, str(folder / _NAME), input_spec=[spec])
    with paddle.no_grad():
        emb_dim = int(network(paddle.zeros([1, *image_shape])).shape[1])
    program = next(path for path in (folder / f"{_NAME}.json", folder / f"{_NAME}.pdmodel") if path.exists())
    files = [program, folder / f"{_NAME}.pdiparams"]
    if format == "onnx":
        files = [_to_onnx(*files)]
    meta: dict[str, Any] = {
        "format": format,
        "files": [file.name for file in files],
        "image_shape": list(image_shape),
        "emb_dim": emb_dim,
        "pixels": "RGB, (x - 127.5) / 128",
        "model": type(backbone).__name__,
        "plsc": __version__,
        "paddle": paddle.__version__,
    }
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps(meta, indent=1), encoding="utf-8")
    return [*files, manifest]


def _complete_norms(network: paddle.nn.Layer) -> None:
    """Gives batch normalisations the scale 1 and the bias 0 they were made without: Paddle 3's CPU library needs both."""
    for layer in network.sublayers(include_self=True):
        if isinstance(layer, paddle.nn.layer.norm._BatchNormBase):
            for name, value in (("weight", 1.0), ("bias", 0.0)):
                if getattr(layer, name) is None:
                    fill = paddle.ParamAttr(initializer=paddle.nn.initializer.Constant(value), trainable=False)
                    setattr(layer, name, layer.create_parameter([layer._num_features], attr=fill))


def _to_onnx(program: Path, parameters: Path) -> Path:
    import paddle2onnx  # takes seconds, and is an extra

    target = program.parent / f"{_NAME}.onnx"
    with contextlib.redirect_stdout(io.StringIO()):  # it draws on the terminal
        paddle2onnx.export(str(program), str(parameters), str(target), opset_version=_OPSET, verbose=False)
    if not target.exists():
        raise ConfigError(
            "export to ONNX: paddle2onnx has no counterpart for an operator of the network; export to Paddle"
        )
    return target
