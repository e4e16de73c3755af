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
        made.map_identities = _identities(images, shown[:_MAPPED], pairs[issame])
    return made


def _hardest(similarity: np.ndarray, pairs: np.ndarray, issame: np.ndarray) -> np.ndarray:
    """Returns the numbers of the pairs of each kind that the network is most wrong about, int [K]."""
    distinct = np.unique(np.sort(pairs, axis=1), axis=0, return_index=True)[1]
    by_similarity = distinct[np.argsort(similarity[distinct], kind="stable")]
    least_alike = by_similarity[issame[by_similarity]][:_HARD_PAIRS]
    most_alike = by_similarity[~issame[by_similarity]][: -_HARD_PAIRS - 1 : -1]
    return np.concatenate([least_alike, most_alike])


def _identities(images: Collection, shown: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Returns a name for the identity of each of the images `shown` [N], as str [N].

    If the collection names no identities, images that the pairs `same` [S, 2] connect are of one identity. Its name is
    that of their folder if they share one with no other identity, and otherwise the number of the first of them.
    An image in no such pair gets ''.
    """
    named = [images.identity(i) for i in shown.tolist()]
    if any(named):
        return np.array(named, "U")
    count = len(shown)
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for pair in same[(same < count).all(axis=1)].tolist():
        one, other = sorted((root(pair[0]), root(pair[1])))
        parent[other] = one
    roots = [root(i) for i in range(count)]
    known = {one for i, one in enumerate(roots) if one != i}
    titles = _titles([images.name(i) for i in shown.tolist()], roots, known)
    return np.array([titles[one] if one in known else "" for one in roots], "U")


def _titles(names: Sequence[str], roots: Sequence[int], known: Iterable[int]) -> dict[int, str]:
    """Returns the name of each identity `known`, by its root; see `_identities`.

    Args:
        names: The names of the images.
        roots: The first image of the identity of each image.
        known: The identities of several images.
    """
    titles = {one: str(one) for one in known}
    folders: dict[int, set[str]] = {one: set() for one in known}
    for name, one in zip(names, roots):
        if one in folders:
            folders[one].add(os.path.dirname(name))
    owners = Counter(folder for of_one in folders.values() for folder in of_one)
    alone = {one: min(of_one) for one, of_one in folders.items() if len(of_one) == 1 and owners[min(of_one)] == 1}
    short = Counter(map(os.path.basename, alone.values()))
    for one, folder in alone.items():
        name = os.path.basename(folder)
        titles[one] = (name if short[name] == 1 else folder) or titles[one]
    return titles
