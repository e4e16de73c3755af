"""Verification sets: `.bin` files of image pairs, as used for LFW, CFP-FP and AgeDB-30."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plsc.data.image_pickle import RefusedError, load_pickle, unwrap
from plsc.data.pixels import NEWEST, PixelRule
from plsc.data.transforms import decode, from_pixels
from plsc.errors import DataError, counted
from plsc.machine.files import advice_on, replace_file
from plsc.machine.memory import usable_memory

# The first bytes of JPEG, PNG, BMP, GIF, WebP and TIFF files.
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")


@dataclass
class VerificationSet:
    """The pairs of one `.bin` file.

    Attributes:
        name: Name of the file without its suffix.
        images: Decoded images, uint8 [2P, H, W, C]; pair i is in rows 2i and 2i+1.
        issame: Whether the two images of a pair are of one identity, bool [P].
    """

    name: str
    images: np.ndarray
    issame: np.ndarray


def load_verification(path: str, image_shape: Sequence[int], rule: PixelRule = NEWEST) -> VerificationSet:
    """Reads a `.bin` file of pairs, which is a pickle of (2P encoded images, P bools) from Python 2 or 3.

    Args:
        path: The file.
        image_shape: (C, H, W), to which the images are decoded and resized.
        rule: What the pixels of encoded images mean.

    Raises:
        DataError: The file has any other content. A pickle that asks to run code is refused.
    """
    try:
        content = load_pickle(path)
    except OSError as error:
        advice = advice_on(error, "check the path")
        raise DataError(f"{path}: cannot read the verification set ({error.strerror or error}); {advice}") from error
    except RefusedError as error:
        raise DataError(
            f"{path}: refused, because the pickle asks for {error}, which a verification set never needs; "
            "get the file from a source you trust"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: not a verification set ({error}); copy or make the file again") from error
    encoded, issame = _check_content(path, content)
    channels, height, width = image_shape
    images = _room_for(path, (len(encoded), height, width, channels))
    for i, item in enumerate(encoded):
        images[i] = _decode_item(unwrap(item), image_shape, f"{path}: image {i}", rule)
    name = os.path.basename(path)
    name = name[:-4] if name.endswith(".bin") else name
    return VerificationSet(name, images, issame)  # type: ignore[call-arg]  # mypy skips the stubs of dataclasses


def _room_for(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns an array for the decoded images. A small file can name one image millions of times."""
    size, limit = math.prod(shape), usable_memory()
    try:
        if limit is not None and size > limit:
            raise MemoryError
        return np.empty(shape, np.uint8)
    except MemoryError:
        raise DataError(
            f"{path}: its {shape[0]:,} images need {size / 1e9:,.1f} GB of memory, which this machine does not have; "
            "divide the set, or give smaller images with set_image_shape"
        ) from None


def _check_content(path: str, content: Any) -> tuple[Any, np.ndarray]:
    """Returns the sequence of encoded images, and `issame` as bool [P]."""
    if not isinstance(content, (list, tuple)) or len(content) != 2:
        raise DataError(f"{path}: not a verification set; expected a pickle of (images, issame)")
    encoded, raw_issame = (unwrap(part) for part in content)
    if isinstance(raw_issame, np.ndarray) and _is_line(raw_issame):
        raw_issame = raw_issame.reshape(-1)
    if not all(isinstance(part, (list, tuple)) or _is_array(part) for part in (encoded, raw_issame)):
        raise DataError(f"{path}: not a verification set; expected lists of images and of bools")
    if len(raw_issame) == 0:
        raise DataError(f"{path}: the verification set has no pairs; make the file again")
    if len(encoded) != 2 * len(raw_issame):
        raise DataError(
            f"{path}: {counted(len(encoded), 'image')} for {counted(len(raw_issame), 'pair')} (two each); make the "
            "file again"
        )
    for i, value in enumerate(raw_issame):
        if not isinstance(value, (int, np.bool_, np.integer)) or value not in (0, 1):
            raise DataError(f"{path}: issame of pair {i} is not a bool; make the file again")
    return encoded, np.array([bool(value) for value in raw_issame], dtype=bool)


def _decode_item(item: Any, image_shape: Sequence[int], where: str, rule: PixelRule) -> np.ndarray:
    if isinstance(item, np.ndarray):
        if not _is_line(item):
            return from_pixels(item, image_shape, where)
        # The item is an encoded file as an array of bytes.
        if item.ndim > 1 and not item.tobytes().startswith(_BEGINNINGS):
            raise DataError(
                f"{where}: an array of shape {list(item.shape)} that does not begin as an image file does may be "
                "pixels or a damaged file; give encoded images as bytes, or pixels as uint8 HWC"
            )
        item = item.tobytes()
    if not isinstance(item, (bytes, bytearray)):
        raise DataError(f"{where}: {type(item).__name__} is not an encoded image; make the file again")
    return decode(bytes(item), image_shape, where, rule)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim > 0


def _is_line(array: np.ndarray) -> bool:
    """Returns whether all elements lie along one dimension, as in [N], [N, 1] and [1, N]."""
    return array.ndim > 0 and array.size == max(array.shape)


def save_verification(path: str, encoded_images: list[bytes], issame: list[bool]) -> None:
    """Writes 2P encoded images and P bools as a `.bin` file, which replaces `path` in one step."""
    if len(encoded_images) != 2 * len(issame):
        raise DataError(
            f"{path}: {counted(len(encoded_images), 'image')} for {counted(len(issame), 'pair')}; give two per pair"
        )
    content = ([bytes(data) for data in encoded_images], [bool(value) for value in issame])
    replace_file(path, pickle.dumps(content, protocol=4))


def find_verification_sets(dataset_dir: str, targets: str) -> list[str]:
    """Returns the path of `dataset_dir/NAME.bin` for each of the comma separated names in `targets`.

    Raises:
        DataError: A file does not exist.
    """
    paths = []
    for target in (part.strip() for part in targets.split(",")):
        if not target:
            continue
        file_name = target if target.endswith(".bin") else f"{target}.bin"
        path = os.path.join(dataset_dir, file_name)
        if not os.path.isfile(path):
            raise DataError(f"{path}: no such verification set; {describe_sets(dataset_dir)}")
        paths.append(path)
    return paths


def describe_sets(dataset_dir: str) -> str:
    """Returns a sentence about which sets a folder holds, for error messages."""
    try:
        found = sorted(name[:-4] for name in os.listdir(dataset_dir) if name.endswith(".bin"))
    except OSError as error:
        return f"{dataset_dir} cannot be listed ({error.strerror or error}); check the directory"
    if not found:
        return f"{dataset_dir} holds no .bin files; check the directory"
    return f"choose from the sets in the directory: {', '.join(found)}"
