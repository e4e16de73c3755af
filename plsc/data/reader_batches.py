"""Turns the batches that a user's reader yields into arrays, and checks them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Optional

import numpy as np
import paddle

from plsc.data.transforms import normalize
from plsc.errors import DataError

logger = logging.getLogger("plsc")

Batch = tuple[np.ndarray, np.ndarray]

_ARRAYS = (np.ndarray, paddle.Tensor)
_LARGEST_NORMALISED = 16.0


class BatchMaker:
    """Makes (images float32 [b, C, H, W], labels int64 [b]) of what a reader yields.

    Args:
        image_shape: Shape of one image, (C, H, W).
        num_classes: Number of classes, which labels must be below. With None the reader need not yield labels, and
            every label of the result is -1.
    """

    def __init__(self, image_shape: Sequence[int], num_classes: Optional[int]) -> None:
        self._image_shape = tuple(image_shape)
        self._num_classes = num_classes
        self._warned = False

    def __call__(self, samples: Any, where: str) -> Batch:
        """Converts one batch.

        Args:
            samples: A list of (image, label), or (images, labels) as arrays or tensors; see `readers.ReaderLoader`.
            where: Where the batch comes from, for error messages.

        Raises:
            DataError: The batch has another form, or its images or labels do not fit the settings.
        """
        if isinstance(samples, _ARRAYS) and self._num_classes is None:
            samples = (samples,)
        if isinstance(samples, (dict, *_ARRAYS)) or not isinstance(samples, Iterable):
            raise DataError(
                f"{where}: a batch must be a list of (image, label), or (images, labels); got {_kind(samples)}"
            )
        samples = list(samples)
        if not samples:
            raise DataError(f"{where}: the batch is empty; leave it out")
        if len(samples) <= 2 and all(isinstance(one, _ARRAYS) for one in samples):
            images, labels = self._arrays(samples, where)
        else:
            pairs = [self._sample(sample, f"{where}, sample {k}") for k, sample in enumerate(samples)]
            images, labels = np.stack([image for image, _ in pairs]), np.array([label for _, label in pairs], np.int64)
        if self._num_classes is not None:
            bad = np.flatnonzero((labels < 0) | (labels >= self._num_classes))
            if len(bad):
                raise DataError(
                    f"{where}, sample {bad[0]}: label {labels[bad[0]]} is outside [0, {self._num_classes}); correct "
                    "the reader or check set_class_num"
                )
        return self._normalised(images, where), labels

    def _arrays(self, arrays: Sequence[Any], where: str) -> Batch:
        """Converts images [b, ...] and labels [b] or [b, 1]."""
        raw, count = np.asarray(arrays[0]), len(arrays[0])
        images = self._images(raw, where, (count,))
        if self._num_classes is None:
            return images, np.full(count, -1, np.int64)
        if len(arrays) == 1:
            raise DataError(f"{where}: there are no labels; yield (images, labels)")
        labels = np.asarray(arrays[1])
        if labels.dtype.kind not in "iu" or labels.size != count:
            raise DataError(f"{where}: labels {_kind(labels)} do not fit {count} images; yield one integer per image")
        return images, labels.reshape(-1).astype(np.int64)

    def _sample(self, sample: Any, where: str) -> tuple[np.ndarray, int]:
        if self._num_classes is None:
            return self._images(sample[0] if isinstance(sample, (list, tuple)) and sample else sample, where), -1
        try:
            raw_image, raw_label = sample
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: the sample is not a pair; yield (image, label)") from error
        image, label = self._images(raw_image, where), np.asarray(raw_label)
        if label.size != 1 or label.dtype.kind not in "iu":
            raise DataError(f"{where}: label {raw_label!r:.60} is not an integer; yield (image, label)")
        return image, int(label.item())

    def _images(self, raw: Any, where: str, batch: tuple[int, ...] = ()) -> np.ndarray:
        """Returns images as uint8 or float32 [*batch, C, H, W]."""
        try:
            images = np.asarray(raw)
            if images.dtype != np.uint8:
                images = images.astype(np.float32, copy=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: the image is not an array of numbers; yield float32 or uint8, CHW") from error
        wanted = (*batch, *self._image_shape)
        if images.ndim == len(batch) + 1 and images.size == np.prod(wanted):
            images = images.reshape(wanted)
        if images.shape != wanted:
            raise DataError(
                f"{where}: image has shape {list(images.shape[len(batch) :])} but image_shape is "
                f"{list(self._image_shape)}; yield CHW or flat images, or call set_image_shape"
            )
        return images

    def _normalised(self, images: np.ndarray, where: str) -> np.ndarray:
        if images.dtype == np.uint8:
            return normalize(np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
        largest = float(np.abs(images).max())
        if largest > _LARGEST_NORMALISED and not self._warned:
            self._warned = True
            logger.warning(
                "%s: float images reach %.0f. They are used unchanged, but test images are normalised as "
                "(x - 127.5) / 128: normalise them in the reader too, or yield uint8, which plsc normalises",
                where,
                largest,
            )
        return images


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
