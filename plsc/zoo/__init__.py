"""Small trained networks that come with plsc, so that its commands can be tried before any training.

Wherever plsc takes the folder of a checkpoint or of an export, `zoo:glyphs` stands for the checkpoint in the folder
`glyphs` of this package. tools/make_zoo.py makes it, with its card and some images.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Union

from plsc.errors import ConfigError
from plsc.machine.json_files import as_object, read_json

PREFIX = "zoo:"
CARD, SAMPLES = "card.json", "samples.zip"
_HERE = Path(__file__).parent


def names() -> list[str]:
    """Returns the names of the networks."""
    return sorted(path.parent.name for path in _HERE.glob(f"*/{CARD}"))


def place_of(folder: Path) -> Path:
    """Returns the folder of a network of the zoo for `zoo:NAME`, and any other path as it is.

    Raises:
        ConfigError: The zoo has no network of that name.
    """
    text = str(folder)
    if not text.startswith(PREFIX):
        return folder
    name = text[len(PREFIX) :]
    if name not in names():
        known = ", ".join(PREFIX + one for one in names())
        raise ConfigError(f"{text}: the zoo has no such network; it has {known}")
    return _HERE / name


def check_target(where: str, folder: Union[str, Path]) -> None:
    """Checks a path to write to, because readers would not look for `zoo:NAME` on the disk.

    Args:
        where: The option or setter that names the path, for the message.
        folder: The path.

    Raises:
        ConfigError: It is the name of a network of the zoo.
    """
    if str(folder).startswith(PREFIX):
        raise ConfigError(f"{where}: {folder} is a name in the zoo, which is only read; name a folder to write to")


def card_of(name: str) -> dict[str, Any]:
    """Returns the card of a network: what it was trained on, its figures, its files, and what it is for.

    Raises:
        ConfigError: The zoo has no network of that name.
    """
    return as_object(read_json(place_of(Path(PREFIX + name)) / CARD))


def write_samples(name: str, folder: Path) -> int:
    """Writes the sample images of a network into a new folder, and returns their number.

    Raises:
        ConfigError: The zoo has no network of that name, or the folder exists or cannot be written.
    """
    place = place_of(Path(PREFIX + name)) / SAMPLES
    check_target("--samples", folder)
    try:
        folder.mkdir(parents=True)
        with zipfile.ZipFile(place) as archive:
            archive.extractall(folder)
            return len(archive.namelist())
    except FileExistsError:
        raise ConfigError(f"{folder}: exists; name a new folder") from None
    except OSError as problem:
        raise ConfigError(f"{folder}: cannot be written ({problem.strerror or problem}); name another folder") from None
