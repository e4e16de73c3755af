"""Exports a trained backbone as files that other programs run: Paddle's inference format, or ONNX."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import paddle

from plsc import parallel
from plsc.data.pixels import NEWEST, PixelRule
from plsc.errors import ConfigError
from plsc.inference import runtime
from plsc.inference.classes import ClassCentres, write_centres
from plsc.inference.comparison import cosines, disagreement, images_for_check
from plsc.inference.export_folder import MANIFEST
from plsc.inference.foreign import last_words
from plsc.inference.networks import digest_of, embed_batch
from plsc.inference.onnx_file import FEW, make_onnx
from plsc.inference.precision import check_precision
from plsc.inference.program import for_program, save_program
from plsc.machine import processor
from plsc.machine.files import sha256_of, sync
from plsc.machine.locks import lock_folder
from plsc.machine.names import utf8_path
from plsc.version import __version__

FORMATS = ("paddle", "onnx")
_BATCH = 16
_FREE_BYTES = 64 << 20  # With less free space, a full disk may be the cause of a failure.

logger = logging.getLogger("plsc")


def export(
    backbone: paddle.nn.Layer,
    folder: Path,
    image_shape: tuple[int, int, int],
    format: str = "paddle",
    precision: str = "float32",
    calibration: Optional[Path] = None,
    *,
    force: bool = False,
    class_names: Sequence[str] = (),
    centres: Optional[ClassCentres] = None,
    rule: PixelRule = NEWEST,
    mirror: Optional[bool] = None,
) -> Path:
    """Exports the network from normalised images [B, C, H, W] float32 to embeddings [B, D], for any B. Rank 0 does it.

    The export is `inference.json` (Paddle 2: `inference.pdmodel`) and `inference.pdiparams`, or `inference.onnx`. The
    files replace those of an earlier export once they are complete, have been run, and agree with the network.
    `inference_meta.json`, which `plsc.Predictor` reads, comes last. Nothing else in the folder is touched.

    Args:
        backbone: The trained network.
        folder: Folder of the export, created if necessary.
        image_shape: Shape of one image, (C, H, W).
        format: 'paddle' or 'onnx'.
        precision: 'float32', or for ONNX also 'float16' or 'int8'.
        calibration: Folder or label file of images, on which the export is compared with the network, and from which
            int8 takes the ranges of its numbers. None compares on noise.
        force: Whether an export that disagrees with the network gives a warning instead of an error.
        class_names: Name of each class; empty if they are unknown.
        centres: The class centres that the export is to hold, for `Predictor.classify`; None leaves them out.
        rule: What the pixels of image files mean to the network.
        mirror: Whether tests average the embeddings of an image and its mirror image; None records nothing.

    Returns:
        `folder`.

    Raises:
        ConfigError: The tools of the format are missing or cannot make the export, its embeddings differ too much from
            those of the network, or the folder cannot be written.
        DataError: An image of `calibration` cannot be read.
    """
    if format not in FORMATS:
        raise ConfigError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    check_precision(format, precision, calibration is not None)
    if format == "onnx" and not all(map(importlib.util.find_spec, ("paddle2onnx", "onnxruntime"))):
        raise ConfigError(
            "export to ONNX needs paddle2onnx and onnxruntime; run pip install '.[onnx]' in the plsc clone"
        )

    def make() -> None:
        images = images_for_check(calibration, image_shape, rule)
        with _workspace(folder) as temporary:
            files, meta = _write(
                backbone,
                temporary,
                image_shape=image_shape,
                format=format,
                precision=precision,
                images=images,
                source="random" if calibration is None else str(calibration),
                force=force,
            )
            meta["class_names"] = list(class_names)
            if centres is not None:
                with _writing(folder):
                    written, meta["classes"] = write_centres(centres, meta["emb_dim"], temporary)
                files += written
            meta.update(pixel_rule=rule.number, image_ground=list(rule.ground))
            meta.update({} if mirror is None else {"mirror": mirror})
            _publish(files, meta, temporary, folder)

    parallel.from_rank_0(make, "the export")
    return folder


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns the errors of the file system into a ConfigError. Other things are not to be done inside."""
    try:
        yield
    except OSError as problem:
        raise ConfigError(
            f"{folder}: cannot be written ({problem.strerror or problem}); choose another folder"
        ) from None


def _publish(files: list[Path], meta: dict[str, Any], temporary: Path, folder: Path) -> None:
    """Writes the manifest, and puts it and the files into the folder."""
    with _writing(folder):
        manifest = temporary / MANIFEST
        manifest.write_text(json.dumps(meta, indent=1), encoding="utf-8")
        _replace([*files, manifest], folder)
        sync(folder)


def _replace(files: list[Path], folder: Path) -> None:
    """Moves all files into the folder, or none.

    If the process is killed between two renames, the digests in the manifest reveal it to `plsc.Predictor`.
    """
    for file in files:
        sync(file)
        if (folder / file.name).is_dir():
            raise ConfigError(
                f"{folder / file.name}: is a folder, where a file of the export goes; choose another folder"
            )
    for file in files:
        os.replace(file, folder / file.name)


@contextlib.contextmanager
def _workspace(folder: Path) -> Iterator[Path]:
    """Makes a hidden folder in `folder`, and removes it at the end, together with those that killed exports left."""
    advice = "choose another folder"
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".export-*"):
            with contextlib.suppress(ConfigError), lock_folder(left, advice) as is_protected:
                if is_protected:
                    shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
    try:
        # Another export may look at the new folder, and remove it, before it is locked; the lock then makes it again.
        with lock_folder(temporary, advice, patience=60), utf8_path(temporary) as place:
            yield place
    except ConfigError as error:
        free = shutil.disk_usage(folder).free  # Paddle and paddle2onnx report no error if the disk is full.
        remark = f"; is the disk of {folder} full ({free >> 20} MB left)?" if free < _FREE_BYTES else ""
        raise ConfigError(f"{error}{remark}") from error.__cause__
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _judge(what: str, found: dict[str, Any], precision: str, advice: str, force: bool) -> None:
    """Logs how well an export, or the conversion that it is made from, agrees with the network.

    Args:
        what: What was compared with the network.
        found: Its entry of the manifest, 'cosine_with_network'.
        precision: Its precision.
        advice: What to export instead if it does not agree.
        force: Whether a disagreement gives a warning instead of an error.

    Raises:
        ConfigError: It does not agree, and `force` is False.
    """
    wrong = disagreement(precision, found)
    measured = (
        f"{what}, cosine of its embeddings with the network's on {found['count']} images "
        f"({found['images']}), {found['measured_with']}: mean {found['mean']:.5f}, lowest {found['lowest']:.5f}"
    )
    if wrong is None:
        logger.info("%s", measured)
    elif force:
        logger.warning("%s; %s; written because it was forced", measured, wrong)
    else:
        raise ConfigError(f"{measured}; {wrong}; nothing was replaced; export with {advice}, or force it")


def _write(
    backbone: paddle.nn.Layer,
    folder: Path,
    image_shape: tuple[int, int, int],
    format: str,
    precision: str,
    images: np.ndarray,
    source: str,
    force: bool,
) -> tuple[list[Path], dict[str, Any]]:
    """Writes the network and judges the result; returns its files and the content of the manifest."""
    network = for_program(backbone)
    # The first batch is a single image: an export must work with batches of any size.
    batches = [images[max(0, first) : first + _BATCH] for first in range(1 - _BATCH, len(images), _BATCH)]
    wanted = np.concatenate([embed_batch(network, batch) for batch in batches])
    if not np.isfinite(wanted).all():
        raise ConfigError(
            "the network itself gives embeddings that are not finite; look for NaN in its parameters, or export an "
            "earlier checkpoint"
        )

    def measure(found: np.ndarray, count: int) -> dict[str, Any]:
        measured_with = f"{_library(format)} on {processor.describe()}"
        return {**cosines(found, wanted[:count]), "count": count, "measured_with": measured_with, "images": source}

    files = save_program(network, folder, image_shape)
    advice = "format 'paddle'" if format == "onnx" else "format 'onnx'"
    if format == "onnx":
        with _writing(folder.parent):
            file, found, converted = make_onnx(files[0], files[1], precision, batches)
        files = [file]
        if precision != "float32":
            # The wider bound of a smaller precision must not hide an error of the conversion.
            what = f"conversion to ONNX, before it is turned into {precision}"
            _judge(what, measure(converted, sum(map(len, batches[:FEW]))), "float32", advice, force)
            advice = "precision 'float32'"
    else:
        found = _tried(files, batches)
    agreement = measure(found, len(images))
    _judge(f"{precision} export", agreement, precision, advice, force)
    meta: dict[str, Any] = {
        "format": format,
        "precision": precision,
        "files": {file.name: sha256_of(file) for file in files},
        "image_shape": list(image_shape),
        "emb_dim": wanted.shape[1],
        "pixels": f"{'grey' if image_shape[0] == 1 else 'RGB'}, (x - 127.5) / 128",
        "cosine_with_network": agreement,
        "network": digest_of(backbone),
        "model": type(backbone).__name__,
        "plsc": __version__,
        "paddle": paddle.__version__,
    }
    return files, meta


def _tried(files: list[Path], batches: Sequence[np.ndarray]) -> np.ndarray:
    """Embeds images with the files of Paddle's format, as a user will."""
    try:
        run = runtime.load_paddle(*files)
        return np.concatenate([run(batch) for batch in batches])
    except Exception as problem:  # Paddle raises exceptions of many types.
        folder = files[0].parent
        words = last_words(str(problem), folder)
        raise ConfigError(
            f"Paddle's inference library cannot run the exported network ({words}); "
            "export with format 'onnx', or change that part of the network"
        ) from None


def _library(format: str) -> str:
    """Returns the name and the version of the library that runs a format."""
    if format == "paddle":
        return f"Paddle {paddle.__version__}"
    return f"onnxruntime {importlib.import_module('onnxruntime').__version__}"
