"""Makes the ONNX file of an export, and runs it. All of it is done by foreign tools, in a child process."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plsc.inference import foreign, runtime
from plsc.inference.precision import reduce_precision

_OPSET = 17
_IMAGES, _FOUND = "images.npy", "found.npy"
_ADVICE = "export with format 'paddle', or change that part of the network"


def make_onnx(
    program: Path, parameters: Path, precision: str, batches: Sequence[np.ndarray]
) -> tuple[Path, np.ndarray]:
    """Converts a network that `paddle.jit.save` wrote, and embeds images with the result.

    Args:
        program: The file with the program.
        parameters: The file with the parameters, in the same folder.
        precision: float32, float16 or int8.
        batches: Normalised images [b, C, H, W] float32. int8 takes the ranges of its numbers from them.

    Returns:
        The ONNX file, in the same folder, and the embeddings [N, D] of the images.

    Raises:
        ConfigError: A tool failed, crashed, or did not end.
        OSError: The images cannot be written.
    """
    folder = program.parent
    sizes = ",".join(str(len(batch)) for batch in batches)
    np.save(folder / _IMAGES, np.concatenate(batches))
    foreign.run_child(f"{__name__}:convert", [str(program), str(parameters), precision, sizes], folder, _ADVICE)
    return program.with_suffix(".onnx"), np.load(folder / _FOUND)


def convert(program: str, parameters: str, precision: str, sizes: str) -> None:
    """Does the work of `make_onnx`, in the child."""
    folder, network = Path(program).parent, Path(program).with_suffix(".onnx")
    images = np.load(folder / _IMAGES)
    foreign.begin("paddle2onnx")
    import paddle2onnx  # The import takes seconds, and the package is optional.

    with contextlib.suppress(UnboundLocalError):  # It follows an error that paddle2onnx has printed.
        paddle2onnx.export(program, parameters, str(network), opset_version=_OPSET, verbose=False)
    if not network.exists():
        sys.exit(1)
    if precision != "float32":
        foreign.begin(f"onnxruntime's converter to {precision}")
        reduce_precision(network, precision, images)
    foreign.begin("onnxruntime")
    run = runtime.load_onnx(network)
    lasts = np.cumsum([int(size) for size in sizes.split(",")])
    np.save(folder / _FOUND, np.concatenate([run(part) for part in np.split(images, lasts[:-1])]))
