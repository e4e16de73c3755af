"""Runs the files of an exported network, with Paddle's inference library or onnxruntime."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from plsc.errors import ConfigError
from plsc.inference.foreign import last_words
from plsc.machine.names import utf8_path
from plsc.machine.streams import discarded_output
from plsc.machine.threads import computing_threads

Run = Callable[[np.ndarray], np.ndarray]


def load(files: Sequence[Path], format: str) -> Run:
    """Loads an exported network.

    Args:
        files: The files of one export.
        format: 'paddle' or 'onnx'.

    Returns:
        A function from normalised images [B, C, H, W] float32, B above 0, to embeddings [B, D] float32. Threads may
        call it at the same time.

    Raises:
        ConfigError: The files cannot be run here.
    """
    try:
        return load_onnx(files[0]) if format == "onnx" else load_paddle(*files)
    except ConfigError:
        raise
    except Exception as problem:  # Both libraries raise exceptions of many types.
        words = last_words(str(problem), files[0].parent)
        raise ConfigError(f"{files[0]}: cannot be run here ({words}); export the network again") from None


def load_paddle(program: Path, parameters: Path) -> Run:
    """Loads files of Paddle's format; see `load`. Errors of Paddle are raised as they are."""
    import paddle
    from paddle import inference

    if program.suffix == ".json" and paddle.__version__.startswith("2."):  # Paddle 2 would end the process.
        raise ConfigError(
            f"{program}: Paddle 3 wrote it, and this is {paddle.__version__}; export the network with this version"
        )
    with utf8_path(program) as first, utf8_path(parameters) as second:
        return _run_of_paddle(inference.Config(str(first), str(second)))


def _run_of_paddle(config: Any) -> Run:
    """Returns the function of `load` for a configuration of Paddle's inference library."""
    import paddle
    from paddle import inference

    kind, _, number = paddle.device.get_device().partition(":")  # "cpu" for a GPU build on a machine without a GPU
    if kind == "gpu":
        config.enable_use_gpu(256, int(number))
    else:
        config.disable_gpu()
        config.set_cpu_math_library_num_threads(computing_threads())
    config.disable_glog_info()
    predictor = inference.create_predictor(config)
    entrance = predictor.get_input_handle(predictor.get_input_names()[0])
    exit = predictor.get_output_handle(predictor.get_output_names()[0])
    # The handles belong to the predictor, so calls must not overlap. A clone for each thread would be no faster: Paddle
    # 3.3 holds Python's global lock while it runs, and a call uses all cores that it may.
    lock = threading.Lock()
    # Paddle 3.3 chooses its kernels when it first runs, and prints the name of a function of its own for each mean.
    output: list[Any] = [discarded_output]

    def run(images: np.ndarray) -> np.ndarray:
        with lock:
            entrance.copy_from_cpu(np.ascontiguousarray(images))
            with output.pop()() if output else contextlib.nullcontext():
                predictor.run()
            return exit.copy_to_cpu()

    return run


def load_onnx(file: Path) -> Run:
    """Loads an ONNX file; see `load`. Errors of onnxruntime are raised as they are."""
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(
            f"{file}: an ONNX network needs onnxruntime; run pip install '.[onnx]' in the plsc clone"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = computing_threads()
    options.log_severity_level = 3  # Errors only.
    with utf8_path(file) as place:
        session: Any = onnxruntime.InferenceSession(
            str(place), options, providers=onnxruntime.get_available_providers()
        )
    name = session.get_inputs()[0].name

    def run(images: np.ndarray) -> np.ndarray:
        return session.run(None, {name: np.ascontiguousarray(images)})[0]

    return run
