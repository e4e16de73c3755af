"""Runs an exported network: Paddle's inference library, or onnxruntime."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np

from plsc.errors import ConfigError
from plsc.machine.files import sha256_of

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Export:
    """An exported network, loaded.

    Attributes:
        image_shape: (C, H, W).
        emb_dim: D.
        precision: float32, float16 or int8.
        digests: the sha256 of each file.
        run: see `load`.
    """

    image_shape: tuple[int, int, int]
    emb_dim: int
    precision: str
    digests: list[str]
    run: Run


def open_export(folder: Path) -> Export:
    """Loads what `Entry.convert_for_prediction` or `python -m plsc export` wrote.

    Raises:
        ConfigError: there is no export, a file of it is damaged or of another one, or it cannot be run here.
    """
    manifest = folder / "inference_meta.json"
    try:
        meta = json.loads(manifest.read_text(encoding="utf-8"))
        channels, height, width = meta["image_shape"]
        emb_dim, precision, format = int(meta["emb_dim"]), str(meta["precision"]), meta["format"]
        digests = {folder / name: str(digest) for name, digest in meta["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ConfigError(
            f"{manifest}: no exported network there ({type(problem).__name__}); make one with python -m plsc export"
        ) from None
    for file, digest in digests.items():
        _check(file, digest)
    return Export((channels, height, width), emb_dim, precision, list(digests.values()), load(list(digests), format))


def load(files: Sequence[Path], format: str) -> Run:
    """A function of normalised images [B, C, H, W] float32, B above 0, that gives embeddings [B, D] float32.

    Raises:
        ConfigError: the files, those of one export, cannot be run here.
    """
    try:
        return _onnx(files[0]) if format == "onnx" else _paddle(*files)
    except ConfigError:
        raise
    except Exception as problem:  # both libraries raise what they like
        reason = str(problem).strip().splitlines()
        raise ConfigError(
            f"{files[0]}: cannot be run here ({type(problem).__name__}: {reason[-1] if reason else ''}); export the network again"
        ) from None


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", "1"))  # plsc.machine.threads sets it


def _paddle(program: Path, parameters: Path) -> Run:
    import paddle
    from paddle import inference

    if program.suffix == ".json" and paddle.__version__.startswith("2."):  # which would end the process
        raise ConfigError(
            f"{program}: Paddle 3 wrote it, and this is {paddle.__version__}; export the network with this one"
        )
    config = inference.Config(str(program), str(parameters))
    if paddle.is_compiled_with_cuda():
        config.enable_use_gpu(256, int(paddle.device.get_device().rpartition(":")[2]))
    else:
        config.disable_gpu()
        config.set_cpu_math_library_num_threads(_threads())
    config.disable_glog_info()
    predictor = inference.create_predictor(config)
    entrance = predictor.get_input_handle(predictor.get_input_names()[0])
    exit = predictor.get_output_handle(predictor.get_output_names()[0])

    def run(images: np.ndarray) -> np.ndarray:
        entrance.copy_from_cpu(np.ascontiguousarray(images))
        predictor.run()
        return exit.copy_to_cpu()

    return run


def _onnx(file: Path) -> Run:
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(
            "this network is ONNX and needs onnxruntime: pip install '.[onnx]' in the plsc clone"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    options.log_severity_level = 3  # errors
    session: Any = onnxruntime.InferenceSession(str(file), options, providers=onnxruntime.get_available_providers())
    name = session.get_inputs()[0].name

    def run(images: np.ndarray) -> np.ndarray:
        return session.run(None, {name: np.ascontiguousarray(images)})[0]

    return run


def _check(file: Path, digest: str) -> None:
    try:
        found = sha256_of(file)
    except OSError as problem:
        raise ConfigError(f"{file}: cannot be read ({problem.strerror}); export the network again") from None
    if found != digest:
        raise ConfigError(
            f"{file}: is not the file that was exported with its inference_meta.json, but damaged, or of another export; "
            "export the network again"
        )
