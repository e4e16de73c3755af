"""`Predictor` embeds images with an exported network, without any training code."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Optional, Union

import numpy as np
from PIL import Image

from plsc.config import CHECKPOINT_WEIGHTS, LARGEST_PIXELS, Config, check_bool, check_choice, check_int
from plsc.data.damaged import NAMED, line_of_zeros, normalized
from plsc.data.encoded_image import interpret_opened
from plsc.data.pixels import MOST_PIXELS, PixelRule
from plsc.data.prefetch import prefetch
from plsc.data.transforms import decode, decode_file, from_pixels
from plsc.errors import ConfigError, DataError
from plsc.inference.classes import Answer, ClassCentres, check_names, classify
from plsc.inference.export_folder import open_centres, open_export
from plsc.machine.uncaught import shorten_errors
from plsc.metrics.vectors import unit_rows

logger = logging.getLogger("plsc")

Picture = Union[str, Path, bytes, Image.Image, np.ndarray]

_pillow = threading.Lock()  # Pillow loads an image when it is first used, and a list may hold an image twice.


class Predictor:
    """A trained network that embeds images: an export that `plsc export` or `Entry` wrote, or a checkpoint.

    Threads may share one: with ONNX they run at the same time, and with Paddle's format one after the other.

    Args:
        path: Folder of the export, or of the checkpoint of a built-in model; `zoo:glyphs` comes with plsc.
        batch_size: Images per forward pass.
        flip: Whether to average the embeddings of an image and its mirror image, as tests on faces do.
        num_workers: Threads that decode images while others are embedded; 0 decodes in between.
        max_image_pixels: Most pixels that an image may have; see `set_max_image_pixels`.
        weights: Which weights of a checkpoint to take: 'average', where `set_ema` has made one, or 'plain'.

    Attributes:
        image_shape: Shape of one image, (C, H, W); images of other sizes are resized.
        emb_dim: Size of an embedding, D.
        precision: float32, float16 or int8.
        network: The sha256 of the trained network that the export was made from; None if it does not record it.
        digest: The sha256 of the export, or of the network in a checkpoint.

    Raises:
        ConfigError: The folder holds no export, or it cannot be run here.
        CheckpointError: The checkpoint cannot be used.

    Example:
        >>> from plsc import Predictor
        >>> predictor = Predictor("exported")  # doctest: +SKIP
        >>> predictor.compare(predictor.embed(["a.jpg"]), predictor.embed(["b.jpg"]))  # doctest: +SKIP
    """

    def __init__(
        self,
        path: Union[str, Path],
        batch_size: int = 64,
        flip: bool = False,
        num_workers: int = 2,
        max_image_pixels: int = MOST_PIXELS,
        weights: str = "average",
    ) -> None:
        shorten_errors()
        if not isinstance(path, (str, Path)):
            raise ConfigError(f"Predictor: path={path!r}: expected the folder of an export")
        check_int("Predictor: batch_size", batch_size, 1)
        check_int("Predictor: num_workers", num_workers, 0)
        check_int("Predictor: max_image_pixels", max_image_pixels, 1, LARGEST_PIXELS)
        export = open_export(Path(path), check_choice("Predictor: weights", weights, CHECKPOINT_WEIGHTS))
        self.image_shape, self.emb_dim, self.precision = export.image_shape, export.emb_dim, export.precision
        self._run, self.network, self.digest = export.run, export.network, export.digest
        self._rule = dataclasses.replace(export.pixels, most_pixels=max_image_pixels)
        self._folder, self._export = Path(path), export
        self._centres: Optional[ClassCentres] = None
        self._class_names: Optional[Sequence[str]] = None
        self._batch_size, self._flip, self._num_workers = batch_size, flip, num_workers

    def embed(self, images: Sequence[Picture], skip_damaged: bool = False) -> np.ndarray:
        """Embeds images.

        Args:
            images: Paths, encoded bytes, Pillow images, or uint8 arrays [H, W, C] (RGB). A Pillow image as `Image.open`
                returned it is read like its file; one that Pillow made from it is not turned or changed in colour.
            skip_damaged: Whether an image that cannot be read or decoded gets zeros and a warning, instead of an error.

        Returns:
            Embeddings [N, D] float32.

        Raises:
            DataError: One of them is not an image.
        """
        if isinstance(images, (str, bytes)) or not isinstance(images, (Sequence, np.ndarray)):
            raise DataError(
                f"embed: expected a list of images, got {type(images).__name__}; put a single one in a list"
            )
        check_bool("embed: skip_damaged", skip_damaged)
        parts, skipped = [np.zeros((0, self.emb_dim), "float32")], 0
        for batch, faults in self._batches(images, skip_damaged):
            rows = np.array(self.embed_batch(batch))
            rows[list(faults)] = 0
            parts.append(rows)
            for fault in list(faults.values())[: max(NAMED - skipped, 0)]:
                logger.warning("%s; skipped", fault)
            skipped += len(faults)
        if skipped:
            logger.warning(line_of_zeros(skipped, len(images)))
        return np.concatenate(parts)

    def classify(self, images: Sequence[Picture], top: int = 5, skip_damaged: bool = False) -> list[list[Answer]]:
        """Returns the classes that images most probably show, of those that the network was trained on.

        An export must hold the class centres: `plsc export --with-classes`. Checkpoints always do.

        Args:
            images: As for `embed`.
            top: Number of answers for each image.
            skip_damaged: Whether an image that cannot be read or decoded gets no answers and a warning, instead of an
                error.

        Returns:
            For each image its answers (`number`, `name`, `cosine`), the best first.

        Raises:
            ConfigError: The export holds no class centres, or names for more or fewer classes.
            DataError: One of them is not an image.
        """
        check_int("classify: top", top, 1)
        if self._centres is None:
            centres = open_centres(self._folder, self._export)
            centres.names = centres.names if self._class_names is None else self._class_names
            check_names(centres.names, centres.count)
            self._centres = centres
        return classify(self.embed(images, skip_damaged), self._centres, top)

    def embed_batch(self, images: np.ndarray) -> np.ndarray:
        """Embeds normalised images, [B, C, H, W] float32 -> [B, D] float32.

        Raises:
            DataError: The array has another shape or holds integers, or an image or an embedding is not finite.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != self.image_shape or not np.issubdtype(images.dtype, np.floating):
            wanted = ", ".join(map(str, self.image_shape))
            raise DataError(
                f"embed_batch: got a {images.dtype} array of shape {list(images.shape)}, but expected normalised "
                f"images [B, {wanted}] float32; embed() takes images that are not normalised"
            )
        if not len(images):
            return np.zeros((0, self.emb_dim), "float32")
        images = images.astype("float32", copy=False)
        # Some libraries turn NaN into ordinary numbers on the way to the embedding.
        finite = np.isfinite(images).all(axis=(1, 2, 3))
        if not finite.all():
            raise DataError(
                f"embed_batch: image {int(finite.argmin())} of {len(images)} holds values that are not finite; look "
                "for NaN and infinity where it is made"
            )
        embeddings = self._run(images)
        if self._flip:
            embeddings = (embeddings + self._run(images[..., ::-1])) / 2
        finite = np.isfinite(embeddings).all(axis=1)
        if not finite.all():
            advice = "" if self.precision == "float32" else f", or export in float32 instead of {self.precision}"
            raise DataError(
                f"embed_batch: the embedding of image {int(finite.argmin())} of {len(images)} is not finite; look for "
                f"huge values in the image{advice}"
            )
        return embeddings

    def compare(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Compares embeddings [N, D] and [M, D]; returns their cosines [N, M] float32.

        Raises:
            DataError: An array has another shape.
        """
        shapes = [np.shape(embeddings) for embeddings in (one, other)]
        if any(len(shape) != 2 or shape[1] != self.emb_dim for shape in shapes):
            raise DataError(
                f"compare: expected embeddings [N, {self.emb_dim}] and [M, {self.emb_dim}], got "
                f"{', '.join(map(str, shapes))}"
            )
        return unit_rows(np.asarray(one, "float32")) @ unit_rows(np.asarray(other, "float32")).T

    def _batches(self, images: Sequence[Picture], skip_damaged: bool) -> Iterator[tuple[np.ndarray, dict[int, str]]]:
        """Yields normalised images [B, C, H, W], and for the rows of damaged ones what is wrong.

        Threads decode them while the ones before are embedded.
        """
        firsts = range(0, len(images), self._batch_size)
        num_workers = self._num_workers if len(firsts) > 1 else 0
        return prefetch(lambda first: self._batch(images, first, skip_damaged), firsts, num_workers, num_workers + 1)

    def _batch(self, images: Sequence[Picture], first: int, skip_damaged: bool) -> tuple[np.ndarray, dict[int, str]]:
        chosen = images[first : first + self._batch_size]
        return normalized(
            len(chosen), self.image_shape, lambda row: self._pixels(chosen[row], first + row), skip_damaged
        )

    def _pixels(self, image: Picture, number: int) -> np.ndarray:
        where = f"image {number}"
        if isinstance(image, (str, Path)):
            return decode_file(Path(image), self.image_shape, rule=self._rule)
        if isinstance(image, bytes):
            return decode(image, self.image_shape, where, self._rule)
        if isinstance(image, Image.Image):
            with _pillow:
                image = np.asarray(interpret_opened(image, "RGB", where, self._rule))
        return from_pixels(np.asarray(image), self.image_shape, where)


def predictor_of(
    config: Config, flip: bool = False, images: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Predictor, PixelRule]:
    """Opens the export of the settings, for commands that need nothing else: one in ONNX works without Paddle.

    Args:
        config: Settings that name an export.
        flip: Whether to average the embeddings of an image and its mirror image.
        images: What wins over what the export records about its images; see `Config.with_images_of`.

    Returns:
        A predictor that reads images, and names classes, as the settings say; and what the pixels of images mean to it.

    Raises:
        ConfigError: The folder holds no export, or it cannot be run here.
    """
    made = Predictor(
        config.export_dir,
        config.test_batch_size,
        flip,
        num_workers=config.num_workers,
        max_image_pixels=config.max_image_pixels,
    )
    made._rule, made._class_names = config.with_images_of({**made._export.images, **images}).pixels, config.class_names
    return made, made._rule
