"""Tests: embeddings of a set, measured by its protocol; on the sets of a data folder or on a reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import paddle

from plsc import parallel
from plsc.config import Config
from plsc.data.collection import ArrayImages, Collection
from plsc.data.readers import ReaderLoader
from plsc.data.verification import VerificationSet
from plsc.engine.embedder import Embedder
from plsc.metrics import pair_similarity, pairs_of_labels, verification_metrics
from plsc.vectors import unit_rows

_HARD_PAIRS = 12  # of each kind
_MAPPED = 1000  # images


class Evaluator:
    """Tests a backbone on verification sets, or on pairs of the images a reader gives.

    Args:
        sets: held as uint8.
        reader: gives labelled images, instead of sets: pairs are drawn from them, half of them of one class.
        config: how images are embedded; embeddings are averaged over the mirror image if training mirrors.
        pairs_dir: rank 0 leaves `<set>_pairs.npz` there, for `plsc report`; None leaves nothing.
    """

    def __init__(
        self,
        sets: Sequence[VerificationSet],
        reader: Optional[ReaderLoader],
        config: Config,
        pairs_dir: Optional[Path],
    ) -> None:
        self._sets = [(one.name, ArrayImages(one.name, one.images), one.issame) for one in sets]
        self._reader, self._config, self._pairs_dir = reader, config, pairs_dir

    def __call__(self, backbone: paddle.nn.Layer) -> dict[str, dict[str, Any]]:
        """{set name: what `verification_metrics` returns}, the same on every rank."""
        embedder = Embedder(backbone, self._config, flip=self._config.augmentation.mirror)
        if self._reader is not None:
            embeddings, labels = embedder.embed_reader(self._reader)
            pairs, issame = pairs_of_labels(labels)
            return {"test_reader": self._measure("test_reader", embeddings, pairs, issame, None)}
        return {
            name: self._measure(name, embedder.embed(images), images.rows.reshape(-1, 2), issame, images)
            for name, images, issame in self._sets
        }

    def _measure(
        self, name: str, embeddings: np.ndarray, pairs: np.ndarray, issame: np.ndarray, images: Optional[Collection]
    ) -> dict[str, Any]:
        if self._pairs_dir is not None and parallel.rank() == 0:
            self._pairs_dir.mkdir(parents=True, exist_ok=True)
            made: dict[str, Any] = _for_report(embeddings, pairs, issame, images, self._config.image_shape)
            np.savez(self._pairs_dir / f"{name}_pairs.npz", **made)
        return verification_metrics(embeddings, issame, pairs=pairs)


def _for_report(
    embeddings: np.ndarray,
    pairs: np.ndarray,
    issame: np.ndarray,
    images: Optional[Collection],
    image_shape: Sequence[int],
) -> dict[str, np.ndarray]:
    """Similarities, the pairs of each kind the model is most wrong about, and embeddings for a map of the first images."""
    similarity = pair_similarity(embeddings, pairs)
    made = {"similarity": similarity, "issame": issame}
    if images is not None:
        by_similarity = np.argsort(similarity, kind="stable")
        least_alike = by_similarity[issame[by_similarity]][:_HARD_PAIRS]
        most_alike = by_similarity[~issame[by_similarity]][: -_HARD_PAIRS - 1 : -1]
        made["hard_pairs"] = np.concatenate([least_alike, most_alike])
        rows = pairs[made["hard_pairs"]]
        made["hard_images"] = np.stack([[images.pixels(int(i), image_shape) for i in pair] for pair in rows])
        made["hard_names"] = np.array([[images.name(int(i)) for i in pair] for pair in rows], "U")
        made["map_embeddings"] = unit_rows(embeddings[:_MAPPED])
        made["map_identities"] = _identities(min(len(embeddings), _MAPPED), pairs[issame])
    return made


def _identities(count: int, same: np.ndarray) -> np.ndarray:
    """A name for each of the first `count` images, the same where pairs [S, 2] say that it is one identity: str [count].

    Names are the number of the identity's first image; an image nothing is known of has none.
    """
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
    return np.array([str(one) if one in known else "" for one in roots], "U")
