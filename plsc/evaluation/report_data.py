"""Selects what a test on pairs leaves for the report: similarities, the hardest pairs, and embeddings for the map."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Optional

import numpy as np

from plsc.data.collection import Collection
from plsc.data.pixels import NEWEST, PixelRule
from plsc.metrics import pair_similarity
from plsc.metrics.vectors import unit_rows
from plsc.report.pairs_file import PairArrays

_HARD_PAIRS = 12  # Of each kind.
_MAPPED = 1000  # Images on the map.


def pairs_for_report(
    embeddings: np.ndarray,
    pairs: np.ndarray,
    issame: np.ndarray,
    images: Optional[Collection],
    firsts: Optional[np.ndarray],
    image_shape: Sequence[int],
    rule: PixelRule = NEWEST,
) -> PairArrays:
    """Returns the arrays of one `<set>_pairs.npz`.

    Args:
        embeddings: Embeddings of images or templates, float [N, D].
        pairs: The two rows of the embeddings that form each pair, int [P, 2].
        issame: Whether the two are of one identity, bool [P].
        images: The images; None if they are gone, which leaves out hard pairs and map.
        firsts: For each embedding the image that stands for it, int [N]; None if that is the image of the same number.
        image_shape: (C, H, W), to which images are decoded.
        rule: What the pixels of image files mean.
    """
    made = PairArrays(similarity=pair_similarity(embeddings, pairs), issame=issame)
    if images is not None:
        shown = np.arange(len(embeddings)) if firsts is None else firsts
        made.hard_pairs = _hardest(made.similarity, pairs, issame)
        both = shown[pairs[made.hard_pairs]].tolist()
        made.hard_images = np.array([[images.pixels(i, image_shape, rule) for i in pair] for pair in both])
        made.hard_names = np.array([[images.name(i) for i in pair] for pair in both], "U")
        made.map_embeddings = unit_rows(embeddings[:_MAPPED])
        made.map_identities = _identities(images, shown, pairs, issame)
    return made


def _hardest(similarity: np.ndarray, pairs: np.ndarray, issame: np.ndarray) -> np.ndarray:
    """Returns the numbers of the pairs of each kind that the network is most wrong about, int [K]."""
    distinct = np.unique(np.sort(pairs, axis=1), axis=0, return_index=True)[1]
    by_similarity = distinct[np.argsort(similarity[distinct], kind="stable")]
    least_alike = by_similarity[issame[by_similarity]][:_HARD_PAIRS]
    most_alike = by_similarity[~issame[by_similarity]][: -_HARD_PAIRS - 1 : -1]
    return np.concatenate([least_alike, most_alike])


def _identities(images: Collection, shown: np.ndarray, pairs: np.ndarray, issame: np.ndarray) -> np.ndarray:
    """Returns a name for the identity of each of the first images of `shown`, as str [min(N, _MAPPED)].

    If the collection names no identities, images that pairs of one identity connect are of one identity, and so are the
    images of a folder that holds no pair of two. Its name is that of the folder, if it is in only one, and otherwise
    the number of its first image. An image that nothing connects with another gets ''.

    Args:
        images: The images.
        shown: The number of each image in the collection, int [N].
        pairs: Two rows of `shown` for each pair, int [P, 2].
        issame: Whether the two are of one identity, bool [P].
    """
    named = [images.identity(i) for i in shown[:_MAPPED].tolist()]
    if any(named):
        return np.array(named, "U")
    count = len(named)
    known = (pairs < count).all(axis=1)
    every = [os.path.dirname(images.name(i)) for i in shown.tolist()]
    folders, mixed = every[:count], _folders_of_two(every, pairs[~issame])
    first_of = {folder: i for i, folder in reversed(list(enumerate(folders))) if folder and folder not in mixed}
    inside = [[first_of[folder], i] for i, folder in enumerate(folders) if folder in first_of]
    roots = _first_of_each(count, pairs[known & issame].tolist() + inside)
    sizes, owners = Counter(roots), Counter(folder for folder, _ in set(zip(folders, roots)))
    of_root: dict[int, set[str]] = {}
    for folder, one in zip(folders, roots):
        of_root.setdefault(one, set()).add(folder)
    short = Counter(map(os.path.basename, first_of))

    def title(one: int) -> str:
        folder = min(of_root[one])
        if sizes[one] == 1 or len(of_root[one]) > 1 or not folder or owners[folder] > 1:
            return str(one) if sizes[one] > 1 else ""
        name = os.path.basename(folder)
        return name if short[name] <= 1 else folder

    return np.array([title(one) for one in roots], "U")


def _folders_of_two(folders: Sequence[str], different: np.ndarray) -> set[str]:
    """Returns the folders that hold both images of a pair `different` [P, 2], and so more than one identity.

    All images count, because the first of them may be those of pairs of one identity.
    """
    numbers: dict[str, int] = {}
    found = np.array([numbers.setdefault(folder, len(numbers)) for folder in folders], np.int64)[different]
    names = list(numbers)
    return {names[number] for number in np.unique(found[found[:, 0] == found[:, 1], 0]).tolist()}


def _first_of_each(count: int, links: Iterable[Sequence[int]]) -> list[int]:
    """Returns for each of `count` things the first of those that links [L, 2] connect it with."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for pair in links:
        one, other = sorted((root(pair[0]), root(pair[1])))
        parent[other] = one
    return [root(i) for i in range(count)]
