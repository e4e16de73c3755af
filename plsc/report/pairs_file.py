"""The file `<set>_pairs.npz`, which a test leaves in the folder of its run for the report.

A test on pairs writes one for each set; a test on a gallery has no pairs and writes none. `PairArrays` defines what is
in the file. All its arrays but the first two may be missing.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import numpy as np

from plsc.errors import ConfigError
from plsc.machine.files import replacing
from plsc.report.markup import clean

SUFFIX = "_pairs.npz"


@dataclass
class PairArrays:
    """The arrays in the file.

    Attributes:
        similarity: Cosine of the two embeddings of each pair, float [P].
        issame: Whether the two are of one identity, bool [P].
        hard_pairs: Numbers of the pairs that the network is most wrong about, int [K], hardest first in each kind.
        hard_images: Images of those pairs, uint8 [K, 2, H, W, C].
        hard_names: Names of those images, str [K, 2].
        map_embeddings: Embeddings for the map, float32 [M, D].
        map_identities: Identity of each of them, str [M]; '' if unknown.
    """

    similarity: np.ndarray
    issame: np.ndarray
    hard_pairs: Optional[np.ndarray] = None
    hard_images: Optional[np.ndarray] = None
    hard_names: Optional[np.ndarray] = None
    map_embeddings: Optional[np.ndarray] = None
    map_identities: Optional[np.ndarray] = None


@dataclass
class HardPair:
    """Two images of one identity that the network finds unlike, or of two identities that it finds alike.

    Attributes:
        number: Number of the pair in its set.
        is_same: Whether the two are of one identity.
        similarity: Cosine of their embeddings.
        names: What the images are called; may be ''.
        images: The two images, uint8 [2, H, W, C].
    """

    number: int
    is_same: bool
    similarity: float
    names: tuple[str, str]
    images: np.ndarray


@dataclass
class PairScores:
    """What the report shows of one file.

    Attributes:
        similarity: Cosine of each pair, float64 [P], all finite.
        issame: Whether the two are of one identity, bool [P].
        hard: The hardest pairs, hardest first in each kind.
        embeddings: Embeddings for the map, float32 [M, D]; empty if there is no map.
        identities: Identity of each embedding; '' if unknown.
    """

    similarity: np.ndarray
    issame: np.ndarray
    hard: list[HardPair] = field(default_factory=list)
    embeddings: np.ndarray = field(default_factory=lambda: np.empty((0, 0), "float32"))
    identities: list[str] = field(default_factory=list)


def write_pairs(folder: Path, set_name: str, arrays: PairArrays) -> None:
    """Writes the file of a set, which replaces an earlier one in one step.

    Raises:
        ConfigError: The file cannot be written.
    """
    place = folder / f"{set_name}{SUFFIX}"
    content = {one.name: getattr(arrays, one.name) for one in dataclasses.fields(arrays)}
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as written, open(written, "wb") as stream:
            np.savez(stream, **{name: value for name, value in content.items() if value is not None})
    except OSError as problem:
        raise ConfigError(
            f"{place}: cannot be written ({problem.strerror}); free space, or name another folder"
        ) from None


def read_pairs(path: Path, notes: list[str]) -> PairScores:
    """Reads one file. A part that does not fit is left out, and becomes a note.

    Args:
        path: The file.
        notes: Gets a sentence for each part that is left out.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
                raise ValueError("it is compressed")  # a small file could fill the memory
        return _read_arrays(path, notes)
    except (OSError, ValueError):
        raise
    except Exception as problem:  # zipfile and NumPy raise exceptions of many types for damaged files.
        raise ValueError(f"no {problem}" if isinstance(problem, KeyError) else "it is damaged") from None


def _read_arrays(path: Path, notes: list[str]) -> PairScores:
    with np.load(path) as content:
        similarity, issame = content["similarity"].astype(np.float64), content["issame"].astype(bool)
        if similarity.ndim != 1 or similarity.shape != issame.shape:
            raise ValueError(f"similarity {list(similarity.shape)} does not fit issame {list(issame.shape)}")
        finite = np.isfinite(similarity)
        pairs = PairScores(similarity[finite], issame[finite])
        if not finite.all():
            notes.append(
                f"{clean(path.name)}: {int((~finite).sum())} pairs have no finite similarity and are left out."
            )
        if {"hard_pairs", "hard_images"} <= set(content.files):
            pairs.hard = _hard_pairs(path, content, similarity, issame, notes)
        if "map_embeddings" in content.files:
            _read_map(path, content, pairs, notes)
    return pairs


def _hard_pairs(
    path: Path, content: Mapping[str, np.ndarray], similarity: np.ndarray, issame: np.ndarray, notes: list[str]
) -> list[HardPair]:
    numbers, images = content["hard_pairs"], content["hard_images"]
    names = content["hard_names"] if "hard_names" in content else np.full((len(numbers), 2), "")
    fits = (
        numbers.ndim == 1
        and images.dtype == np.uint8
        and images.ndim == 5
        and images.shape[:2] == (len(numbers), 2)
        and images.shape[4] in (1, 3)
        and names.shape == (len(numbers), 2)
        and (not len(numbers) or (numbers.min() >= 0 and numbers.max() < len(issame)))
    )
    if not fits:
        notes.append(f"{clean(path.name)}: the arrays of hard pairs do not fit together and are left out.")
        return []
    return [
        HardPair(int(one), bool(issame[one]), float(similarity[one]), (clean(str(name[0])), clean(str(name[1]))), two)
        for one, name, two in zip(numbers, names, images)
    ]


def _read_map(path: Path, content: Mapping[str, np.ndarray], pairs: PairScores, notes: list[str]) -> None:
    embeddings = content["map_embeddings"]
    identities = content["map_identities"] if "map_identities" in content else np.full(len(embeddings), "")
    if embeddings.ndim != 2 or identities.shape != (len(embeddings),) or not np.isfinite(embeddings).all():
        notes.append(f"{clean(path.name)}: the arrays of the map do not fit together and are left out.")
        return
    pairs.embeddings, pairs.identities = embeddings.astype("float32"), [clean(str(one)) for one in identities]
