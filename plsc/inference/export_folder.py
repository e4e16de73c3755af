"""The folder of an export: its manifest, and how to open it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from plsc.errors import ConfigError
from plsc.inference.runtime import Run, load
from plsc.machine.files import sha256_of

MANIFEST = "inference_meta.json"  # `export` writes it, and it names the other files.


@dataclass(frozen=True)
class Export:
    """An exported network, loaded.

    Attributes:
        image_shape: Shape of one image, (C, H, W).
        emb_dim: Size of an embedding, D.
        precision: float32, float16 or int8.
        digests: The sha256 of each file.
        run: Function that embeds a batch; see `runtime.load`.
    """

    image_shape: tuple[int, int, int]
    emb_dim: int
    precision: str
    digests: list[str]
    run: Run


def open_export(folder: Path) -> Export:
    """Loads what `Entry.convert_for_prediction` or `plsc export` wrote.

    Raises:
        ConfigError: There is no export; or a file of it is damaged, belongs to another export, or cannot be run here.
    """
    manifest = folder / MANIFEST
    try:
        meta = json.loads(manifest.read_text(encoding="utf-8"))
        channels, height, width = meta["image_shape"]
        emb_dim, precision, format = int(meta["emb_dim"]), str(meta["precision"]), meta["format"]
        digests = {folder / name: str(digest) for name, digest in meta["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ConfigError(
            f"{manifest}: no exported network there ({type(problem).__name__}); make one with plsc export"
        ) from None
    for file, digest in digests.items():
        _check(file, digest)
    return Export((channels, height, width), emb_dim, precision, list(digests.values()), load(list(digests), format))


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
