"""Turns the batches that a user's reader yields into arrays, and checks them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Optional

import numpy as np
import paddle

from plsc.data.augmentation import Augmentation, augment
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
        augmentation: Random changes to uint8 images; None changes none.
    """

    def __init__(
        self, image_shape: Sequence[int], num_classes: Optional[int], augmentation: Optional[Augmentation] = None
    ) -> None:
        self._image_shape = tuple(image_shape)
        self._num_classes = num_classes
        self._augmentation = augmentation
        self._warned = False

    def __call__(
        self, samples: Any, where: str, are_samples: bool = False, seed: Optional[Sequence[int]] = None
    ) -> Batch:
        """Converts one batch.

        Args:
            samples: A list of (image, label), or (images, labels) as arrays or tensors; see `readers.ReaderLoader`. The
                dimensions of the first array tell them apart, never the length of the list.
            where: Where the batch comes from, for error messages.
            are_samples: Whether the batch is known to be a list of samples.
            seed: Seed of the random changes to this batch; None changes nothing.

        Raises:
            DataError: The batch has another form, or its images or labels do not fit the settings.
        """
        if isinstance(samples, _ARRAYS) and self._num_classes is None:
            samples = (samples,)
            if not _is_stack(samples[0]):
                raise DataError(f"{where}: {_kind(samples[0])} is a single image; yield batches, such as [image]")
        if isinstance(samples, (dict, *_ARRAYS)) or not isinstance(samples, Iterable):
            raise DataError(
                f"{where}: a batch must be a list of (image, label), or (images, labels); got {_kind(samples)}"
            )
        samples = list(samples)
        if not samples:
            raise DataError(f"{where}: the batch is empty; leave it out")
        if _is_stack(samples[0]) and not are_samples:
            images, labels = self._arrays(samples, where)
        else:
            images, labels = self._samples(samples, where)
        if self._num_classes is not None:
            bad = np.flatnonzero((labels < 0) | (labels >= self._num_classes))
            if len(bad):
                label = labels[bad[0]]
                problem = "is negative; correct the reader: labels count from 0"
                if label >= 0:
                    problem = (
                        f"is outside [0, {self._num_classes}), and the largest label of the batch is {labels.max()}; "
                        f"call set_class_num with at least {labels.max() + 1}, or correct the reader"
                    )
                raise DataError(f"{where}, sample {bad[0]}: label {label} {problem}")
        if self._augmentation is not None and seed is not None:
            images = self._augmented(images, where, seed)
        return self._normalised(images, where), labels

    def _augmented(self, images: np.ndarray, where: str, seed: Sequence[int]) -> np.ndarray:
        """Returns randomly changed images, uint8 [b, C, H, W]."""
        assert self._augmentation is not None
        if images.dtype != np.uint8:
            raise DataError(
                f"{where}: set_augmentation changes uint8 images, and these are float32; yield uint8 pixels, which "
                "plsc normalises, or augment in the reader and leave set_augmentation out"
            )
        rng = np.random.default_rng(seed)
        pixels = images.transpose(0, 2, 3, 1)
        return np.stack([augment(one, self._augmentation, rng) for one in pixels]).transpose(0, 3, 1, 2)

    def _arrays(self, arrays: Sequence[Any], where: str) -> Batch:
        """Converts images [b, ...] and labels [b] or [b, 1]."""
        count, others = len(arrays[0]), arrays[1:]
        images = self._images(arrays[0], where, (count,))
        if any(_is_stack(one) and one.size in (images.size, images[0].size * len(one)) for one in others):
            raise DataError(f"{where}: the batch has {len(arrays)} arrays of images; yield one batch at a time")
        if self._num_classes is None:
            return images, np.full(count, -1, np.int64)
        if len(others) != 1:
            found = f"there are {len(others)} arrays after the images" if others else "there are no labels"
            raise DataError(f"{where}: {found}; yield (images, labels)")
        labels = np.asarray(others[0])
        if labels.dtype.kind not in "iu" or labels.size != count or max(labels.shape, default=1) != count:
            raise DataError(f"{where}: labels {_kind(labels)} do not fit {count} images; yield one integer per image")
        return images, labels.reshape(-1).astype(np.int64)

    def _samples(self, samples: Sequence[Any], where: str) -> Batch:
        """Converts a list of (image, label), or of bare images where labels are not needed."""
        if isinstance(samples[0], _ARRAYS) and len(samples) == 2 and np.ndim(samples[1]) == 0:
            raise DataError(f"{where}: this is a single sample; yield batches, for instance with paddle.batch")
        pairs = [self._sample(sample, f"{where}, sample {k}") for k, sample in enumerate(samples)]
        if len({image.dtype for image, _ in pairs}) > 1:
            raise DataError(
                f"{where}: some images are uint8 pixels and others are float32, which is used unchanged; yield one "
                "kind of them"
            )
        return np.stack([image for image, _ in pairs]), np.array([label for _, label in pairs], np.int64)

    def _sample(self, sample: Any, where: str) -> tuple[np.ndarray, int]:
        if isinstance(sample, dict):
            raise DataError(f"{where}: the sample is a dict ({', '.join(map(str, sample))}); yield (image, label)")
        if self._num_classes is None:
            return self._images(sample[0] if isinstance(sample, (list, tuple)) and sample else sample, where), -1
        try:
            if isinstance(sample, _ARRAYS):
                raise TypeError
            raw_image, raw_label = sample
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: the sample is not a pair; yield (image, label)") from error
        image, label = self._images(raw_image, where), np.asarray(raw_label)
        if label.size != 1 or label.dtype.kind not in "iu":
            raise DataError(f"{where}: label {raw_label!r:.60} is not an integer; yield (image, label)")
        return image, int(label.item())

    def _images(self, raw: Any, where: str, batch: tuple[int, ...] = ()) -> np.ndarray:
        """Returns images as uint8 or float32 [*batch, C, H, W]."""
        if isinstance(raw, paddle.Tensor) and raw.dtype == paddle.bfloat16:
            raw = raw.astype("float32")  # NumPy would be given its bits as uint16.
        try:
            images = np.asarray(raw)
            if images.dtype.kind not in "biuf":
                raise TypeError
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: the image is not an array of numbers; yield float32 or uint8, CHW") from error
        if images.dtype != np.uint8:
            images = images.astype(np.float32, copy=False)
        wanted = (*batch, *self._image_shape)
        if images.ndim == len(batch) + 1 and images.size == np.prod(wanted):
            images = images.reshape(wanted)
        if images.shape != wanted:
            channels, *sides = self._image_shape
            shape = list(images.shape[len(batch) :])
            hint = "transpose it to CHW" if shape == [*sides, channels] else "yield CHW or flat images"
            raise DataError(
                f"{where}: image has shape {shape} but image_shape is {list(self._image_shape)}; {hint}, or call "
                "set_image_shape"
            )
        return images

    def _normalised(self, images: np.ndarray, where: str) -> np.ndarray:
        if images.dtype == np.uint8:
            return normalize(np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
        lowest, highest = float(images.min()), float(images.max())
        are_fractions = lowest >= 0 and lowest < highest <= 1
        if (max(-lowest, highest) > _LARGEST_NORMALISED or are_fractions) and not self._warned:
            self._warned = True
            logger.warning(
                "%s: float images are from %.3g to %.3g. They are used unchanged, but test images are normalised as "
                "(x - 127.5) / 128: normalise them in the reader too, or yield uint8, which plsc normalises",
                where,
                lowest,
                highest,
            )
        return images


def _is_stack(value: Any) -> bool:
    """Returns whether a value is an array of several images, which has a dimension more than an image or a flat one."""
    return isinstance(value, _ARRAYS) and value.ndim in (2, 4)


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
