"""Makes the ONNX file of an export, and runs it. All of it is done by foreign tools, in a child process."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plsc.inference import foreign, runtime
from plsc.inference.precision import reduce_precision

_OPSET = 17
_IMAGES, _FOUND, _CONVERTED = "images.npy", "found.npy", "converted.npy"
FEW = 2  # Batches on which the conversion is run before its precision is reduced.
_ADVICE = "export with format 'paddle', or change that part of the network"


def make_onnx(
    program: Path, parameters: Path, precision: str, batches: Sequence[np.ndarray]
) -> tuple[Path, np.ndarray, np.ndarray]:
    """Converts a network that `paddle.jit.save` wrote, and embeds images with the result.

    Args:
        program: The file with the program.
        parameters: The file with the parameters, in the same folder.
        precision: float32, float16 or int8.
        batches: Normalised images [b, C, H, W] float32. int8 takes the ranges of its numbers from them.

    Returns:
        The ONNX file, in the same folder; the embeddings [N, D] of the images; and those [M, D] that the conversion
        gives in float32, before its precision is reduced, to the images of the first `FEW` batches.

    Raises:
        ConfigError: A tool failed, crashed, or did not end.
        OSError: The images cannot be written.
    """
    folder = program.parent
    sizes = ",".join(str(len(batch)) for batch in batches)
    np.save(folder / _IMAGES, np.concatenate(batches))
    foreign.run_child(f"{__name__}:convert", [str(program), str(parameters), precision, sizes], folder, _ADVICE)
    return program.with_suffix(".onnx"), np.load(folder / _FOUND), np.load(folder / _CONVERTED)


def convert(program: str, parameters: str, precision: str, sizes: str) -> None:
    """Does the work of `make_onnx`, in the child."""
    with tempfile.TemporaryDirectory(dir=Path(program).parent) as place:
        tempfile.tempdir = place  # paddle2onnx leaves a folder behind
        _convert(program, parameters, precision, sizes)


def _convert(program: str, parameters: str, precision: str, sizes: str) -> None:
    folder, network = Path(program).parent, Path(program).with_suffix(".onnx")
    images = np.load(folder / _IMAGES)
    foreign.begin("paddle2onnx")
    import paddle2onnx  # The import takes seconds, and the package is optional.

    with contextlib.suppress(UnboundLocalError):  # It follows an error that paddle2onnx has printed.
        paddle2onnx.export(program, parameters, str(network), opset_version=_OPSET, verbose=False)
    if not network.exists():
        sys.exit(1)
    lasts = np.cumsum([int(size) for size in sizes.split(",")])
    batches = np.split(images, lasts[:-1])
    foreign.begin("onnxruntime")
    found = _embed(network, batches if precision == "float32" else batches[:FEW])
    np.save(folder / _CONVERTED, found)
    if precision != "float32":
        foreign.begin(f"onnxruntime's converter to {precision}")
        reduce_precision(network, precision, images)
        foreign.begin("onnxruntime")
        found = _embed(network, batches)
    np.save(folder / _FOUND, found)


def _embed(network: Path, batches: Sequence[np.ndarray]) -> np.ndarray:
    run = runtime.load_onnx(network)
    return np.concatenate([run(batch) for batch in batches])
