"""The folder of an export: its manifest, and how to open it. Loads Paddle only for networks that need it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from plsc.data.pixels import IMAGE_RECORD, PILLOW_RULE, WHITE, PixelRule
from plsc.errors import ConfigError
from plsc.inference.classes import CheckpointCentres, ClassCentres, ExportedCentres
from plsc.inference.precision import PRECISIONS
from plsc.inference.runtime import Run, load
from plsc.machine.files import sha256_of
from plsc.machine.json_files import as_integer, as_integers, as_list, as_object, as_text, read_json
from plsc.zoo import place_of

MANIFEST = "inference_meta.json"  # `export` writes it, and it names the other files.
_META = "meta.json"  # of a checkpoint
_FILES = {
    "onnx": [["inference.onnx"]],
    "paddle": [["inference.json", "inference.pdiparams"], ["inference.pdiparams", "inference.pdmodel"]],
}


@dataclass(frozen=True)
class Export:
    """An exported network, or that of a checkpoint, loaded.

    Attributes:
        images: What the manifest records about the images: `image_shape` and, unless an earlier version wrote it, the
            entries of `IMAGE_RECORD`.
        emb_dim: Size of an embedding, D.
        precision: float32, float16 or int8.
        digests: The sha256 of each file.
        run: Function that embeds a batch; see `runtime.load`.
        network: The sha256 of the trained network that it was made from; None if it does not record it.
        class_names: Name of each class; empty if they are unknown.
        classes: What the manifest records of the class centres; None without them.
        checkpoint: Folder of the checkpoint whose network it is; None for an export.
    """

    images: dict[str, Any]
    emb_dim: int
    precision: str
    digests: list[str]
    run: Run
    network: Optional[str] = None
    class_names: Sequence[str] = ()
    classes: Optional[dict[str, Any]] = None
    checkpoint: Optional[Path] = None

    @property
    def digest(self) -> str:
        """The sha256 of all files that embed."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        channels, height, width = self.images["image_shape"]
        return channels, height, width

    @property
    def pixels(self) -> PixelRule:
        """What the pixels of image files mean to the network."""
        return PixelRule(self.images.get("pixel_rule", PILLOW_RULE), tuple(self.images.get("image_ground", WHITE)))


def is_checkpoint(folder: Path) -> bool:
    """Returns whether a folder holds a checkpoint and no export."""
    place = place_of(folder)
    # Unlike the methods of Path these are quiet about names that are too long.
    return os.path.isfile(place / _META) and not os.path.exists(place / MANIFEST)


def open_export(folder: Path, weights: str = "average") -> Export:
    """Loads what `Entry.convert_for_prediction` or `plsc export` wrote, or the checkpoint of a built-in network.

    Args:
        folder: The folder, or `zoo:NAME`.
        weights: Which weights of a checkpoint to take, 'average' or 'plain'; see `load_backbone`.

    Raises:
        ConfigError: There is no export; or a file of it is damaged, belongs to another export, or cannot be run here.
        CheckpointError: The checkpoint cannot be used.
    """
    if is_checkpoint(folder):
        from plsc.inference.networks import open_trained

        return open_trained(folder, weights)
    if weights != "average":
        raise ConfigError(f"{folder}: weights={weights!r} is for checkpoints; this folder holds no checkpoint")
    manifest = folder / MANIFEST
    try:
        meta = as_object(read_json(manifest))
        images = {"image_shape": as_integers(meta["image_shape"], 1, 3)}
        images.update({name: check(meta[name]) for name, check in IMAGE_RECORD.items() if name in meta})
        emb_dim, format, precision = as_integer(meta["emb_dim"], 1), meta["format"], meta["precision"]
        digests = {folder / name: as_text(digest) for name, digest in as_object(meta["files"]).items()}
        if sorted(meta["files"]) not in _FILES.get(as_text(format), ()) or precision not in PRECISIONS:
            raise ValueError("its files, format or precision are not those of an export")
        network = None if meta.get("network") is None else as_text(meta["network"])
        names = [as_text(one) for one in as_list(meta.get("class_names", []))]
        classes = None if meta.get("classes") is None else as_object(meta["classes"])
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(folder) from None
    except OSError as problem:
        raise ConfigError(f"{manifest}: cannot be read ({problem.strerror}); export the network again") from None
    except (ValueError, KeyError) as problem:
        words = f"no {problem}" if isinstance(problem, KeyError) else problem
        raise ConfigError(f"{manifest}: damaged ({words}); export the network again") from None
    for file, digest in digests.items():
        _check(file, digest)
    return Export(
        images=images,
        emb_dim=emb_dim,
        precision=precision,
        digests=list(digests.values()),
        run=load(list(digests), format),
        network=network,
        class_names=names,
        classes=classes,
    )


def open_centres(folder: Path, export: Export) -> ClassCentres:
    """Opens the class centres of an export, or of the checkpoint that replaces one.

    Raises:
        ConfigError: The export holds none, or they are damaged.
        CheckpointError: The checkpoint is damaged, or does not hold all of them.
    """
    if export.checkpoint is not None:
        return CheckpointCentres(export.checkpoint)
    if export.classes is None:
        raise ConfigError(
            f"{folder}: holds no class centres, so it cannot tell which class an image shows; export the network with "
            "plsc export --with-classes"
        )
    try:
        return ExportedCentres(folder, export.classes, export.class_names)
    except (ValueError, KeyError) as problem:
        raise ConfigError(f"{folder / MANIFEST}: damaged (classes: {problem}); export the network again") from None


def _missing(folder: Path) -> ConfigError:
    """Returns the error for a folder without a manifest."""
    advice = "name the folder of an export, which plsc export makes, or of a checkpoint, such as output/19"
    if not folder.is_dir():
        what = "is a file and not a folder" if folder.exists() else "there is no such folder"
        return ConfigError(f"{folder}: {what}; {advice}")
    return ConfigError(f"{folder / MANIFEST}: no exported network there; {advice}")


def _check(file: Path, digest: str) -> None:
    try:
        found = sha256_of(file)
    except OSError as problem:
        raise ConfigError(f"{file}: cannot be read ({problem.strerror}); export the network again") from None
    if found != digest:
        raise ConfigError(
            f"{file}: is not the file that was exported with its {MANIFEST}: it is damaged, or of another export; "
            "export the network again"
        )
