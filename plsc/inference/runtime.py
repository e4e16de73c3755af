"""Runs the files of an exported network, with Paddle's inference library or onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from plsc.errors import ConfigError

Run = Callable[[np.ndarray], np.ndarray]


def load(files: Sequence[Path], format: str) -> Run:
    """Loads an exported network.

    Args:
        files: The files of one export.
        format: 'paddle' or 'onnx'.

    Returns:
        A function from normalised images [B, C, H, W] float32, B above 0, to embeddings [B, D] float32.

    Raises:
        ConfigError: The files cannot be run here.
    """
    try:
        return _onnx(files[0]) if format == "onnx" else _paddle(*files)
    except ConfigError:
        raise
    except Exception as problem:  # Both libraries raise exceptions of many types.
        reason = str(problem).strip().splitlines()
        raise ConfigError(
            f"{files[0]}: cannot be run here ({type(problem).__name__}: {reason[-1] if reason else ''}); "
            "export the network again"
        ) from None


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", "1"))  # plsc.machine.threads sets the variable.


def _paddle(program: Path, parameters: Path) -> Run:
    import paddle
    from paddle import inference

    if program.suffix == ".json" and paddle.__version__.startswith("2."):  # Paddle 2 would end the process.
        raise ConfigError(
            f"{program}: Paddle 3 wrote it, and this is {paddle.__version__}; export the network with this version"
        )
    config = inference.Config(str(program), str(parameters))
    kind, _, number = paddle.device.get_device().partition(":")  # "cpu" for a GPU build on a machine without a GPU
    if kind == "gpu":
        config.enable_use_gpu(256, int(number))
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
            f"{file}: an ONNX network needs onnxruntime; run pip install '.[onnx]' in the plsc clone"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    options.log_severity_level = 3  # Errors only.
    session: Any = onnxruntime.InferenceSession(str(file), options, providers=onnxruntime.get_available_providers())
    name = session.get_inputs()[0].name

    def run(images: np.ndarray) -> np.ndarray:
        return session.run(None, {name: np.ascontiguousarray(images)})[0]

    return run
