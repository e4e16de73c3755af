"""`Predictor`: embeddings of images from an exported network, without any training code."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Union

import numpy as np
from PIL import Image

from plsc.data.transforms import decode, from_pixels, normalize
from plsc.errors import ConfigError, DataError

Picture = Union[str, Path, bytes, Image.Image, np.ndarray]


class Predictor:
    """Embeds images with what `Entry.convert_for_prediction` or `python -m plsc export` wrote.

    Args:
        path: the folder of the export.
        batch_size: images a forward pass.
        flip: average the embeddings of an image and its mirror image, as tests of faces do.

    Attributes:
        image_shape: (C, H, W); images of other sizes are resized.
        emb_dim: D.

    Raises:
        ConfigError: there is no export, or it cannot be run here.

    Example:
        >>> from plsc import Predictor
        >>> predictor = Predictor("exported")  # doctest: +SKIP
        >>> predictor.compare(predictor.embed(["a.jpg"]), predictor.embed(["b.jpg"]))  # doctest: +SKIP
    """

    def __init__(self, path: Union[str, Path], batch_size: int = 64, flip: bool = False) -> None:
        manifest = Path(path) / "inference_meta.json"
        try:
            meta = json.loads(manifest.read_text(encoding="utf-8"))
            self.image_shape: tuple[int, int, int] = tuple(meta["image_shape"])
            self.emb_dim = int(meta["emb_dim"])
            files = [Path(path) / name for name in meta["files"]]
            format = meta["format"]
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise ConfigError(
                f"{manifest}: no exported network there ({type(problem).__name__}); make one with python -m plsc export"
            ) from None
        for file in files:
            if not file.exists():
                raise ConfigError(f"{file}: is missing; export the network again")
        self._batch_size, self._flip = batch_size, flip
        self._run = _onnx(files[0]) if format == "onnx" else _paddle(*files)

    def embed(self, images: Sequence[Picture]) -> np.ndarray:
        """Embeddings [N, D] float32 of images: paths, encoded bytes, Pillow images, or uint8 arrays [H, W, C] (RGB).

        Raises:
            DataError: one of them is no image.
        """
        parts = []
        for first in range(0, len(images), self._batch_size):
            pixels = [
                self._pixels(image, first + k) for k, image in enumerate(images[first : first + self._batch_size])
            ]
            parts.append(self.embed_batch(normalize(np.stack(pixels))))
        return np.concatenate(parts) if parts else np.zeros((0, self.emb_dim), "float32")

    def embed_batch(self, images: np.ndarray) -> np.ndarray:
        """Embeddings [B, D] float32 of normalised images [B, C, H, W] float32."""
        embeddings = self._run(images)
        if self._flip:
            embeddings = (embeddings + self._run(np.ascontiguousarray(images[..., ::-1]))) / 2
        return embeddings

    def compare(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Cosines of embeddings: [N, D] and [M, D] -> [N, M] float32."""
        return _unit(one) @ _unit(other).T

    def _pixels(self, image: Picture, number: int) -> np.ndarray:
        where = f"image {number}"
        if isinstance(image, (str, Path)):
            where = str(image)
            try:
                image = Path(image).read_bytes()
            except OSError as problem:
                raise DataError(f"{where}: cannot be read ({problem.strerror})") from None
        if isinstance(image, bytes):
            return decode(image, self.image_shape, where)
        if isinstance(image, Image.Image):
            image = np.asarray(image.convert("RGB"))
        return from_pixels(np.asarray(image), self.image_shape, where)


def _unit(embeddings: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.where(length > 0, length, 1)


def _paddle(program: Path, parameters: Path) -> Callable[[np.ndarray], np.ndarray]:
    import paddle
    from paddle import inference

    config = inference.Config(str(program), str(parameters))
    if paddle.is_compiled_with_cuda():
        config.enable_use_gpu(256, int(paddle.device.get_device().rpartition(":")[2]))
    else:
        config.disable_gpu()
        config.set_cpu_math_library_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    config.disable_glog_info()
    predictor = inference.create_predictor(config)
    entrance = predictor.get_input_handle(predictor.get_input_names()[0])
    exit = predictor.get_output_handle(predictor.get_output_names()[0])

    def run(images: np.ndarray) -> np.ndarray:
        entrance.copy_from_cpu(np.ascontiguousarray(images, dtype="float32"))
        predictor.run()
        return exit.copy_to_cpu()

    return run


def _onnx(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(
            "this network is ONNX and needs onnxruntime: pip install '.[onnx]' in the plsc clone"
        ) from None
    session: Any = onnxruntime.InferenceSession(str(file), providers=onnxruntime.get_available_providers())
    name = session.get_inputs()[0].name

    def run(images: np.ndarray) -> np.ndarray:
        return session.run(None, {name: np.ascontiguousarray(images, dtype="float32")})[0]

    return run
