"""Tests: embeddings of a set, measured by its protocol; on the sets of a data folder or on a reader."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import paddle

from plsc import parallel
from plsc.config import Config
from plsc.data.collection import Collection
from plsc.data.pair_sets import PairSet
from plsc.data.readers import ReaderLoader
from plsc.data.test_sets import EvaluationSet, GallerySet, IdentitySet
from plsc.errors import ConfigError
from plsc.evaluation.embedder import Embedder
from plsc.heads import shard_bounds
from plsc.inference.networks import Network
from plsc.machine.files import temporary
from plsc.metrics import (
    all_pairs_metrics,
    average_templates,
    count_different,
    identification_rates,
    mates_of,
    mean_norm,
    pair_similarity,
    pairs_of_labels,
    search_gallery,
    verification_metrics,
)
from plsc.metrics.vectors import unit_rows

_HARD_PAIRS = 12  # of each kind
_MAPPED = 1000  # images


class Evaluator:
    """Tests a network on sets, or on the images a reader gives.

    Args:
        sets: `.bin` sets are held as uint8; images of others are read anew for each test.
        reader: gives labelled images, instead of sets.
        config: how images are embedded; embeddings are averaged over the mirror image if training mirrors.
        pairs_dir: rank 0 leaves `<set>_pairs.npz` there, for `plsc report`; None leaves nothing.
        kept_dir: embeddings of sets are kept there, and taken from there when images and network are the same; None
            embeds anew.
    """

    def __init__(
        self,
        sets: Sequence[EvaluationSet],
        reader: Optional[ReaderLoader],
        config: Config,
        pairs_dir: Optional[Path],
        kept_dir: Optional[Path] = None,
    ) -> None:
        self._sets, self._reader, self._config = sets, reader, config
        self._pairs_dir, self._kept_dir = pairs_dir, kept_dir

    def __call__(self, network: Network) -> dict[str, dict[str, Any]]:
        """{set name: what `verification_metrics` or `identification_metrics` returns}, the same on every rank."""
        embedder = Embedder(network, self._config, flip=self._config.augmentation.mirror)
        if self._reader is not None:
            return {"test_reader": self._all_pairs("test_reader", *embedder.embed_reader(self._reader), None)}
        return {one.name: self._test(embedder, one) for one in self._sets}

    def _test(self, embedder: Embedder, one: EvaluationSet) -> dict[str, Any]:
        if isinstance(one, GallerySet):
            return self._identify(embedder, one)
        embeddings = self._embed(embedder, one.images)
        if isinstance(one, IdentitySet):
            return self._all_pairs(one.name, embeddings, one.labels, one.images)
        return self._pairs(one, embeddings)

    def _embed(self, embedder: Embedder, images: Collection) -> np.ndarray:
        return embedder.embed(images) if self._kept_dir is None else embedder.embed_once(images, self._kept_dir)

    def _pairs(self, one: PairSet, embeddings: np.ndarray) -> dict[str, Any]:
        norm, firsts = None, None
        if one.templates is not None:
            norm = mean_norm(embeddings)
            embeddings = average_templates(embeddings, one.templates)
            firsts = np.unique(one.templates, return_index=True)[1]
        self._leave_for_report(one.name, embeddings, one.pairs, one.issame, one.images, firsts)
        folds = 10 if one.folds is None else one.folds
        result = verification_metrics(embeddings, one.issame, folds, one.pairs, self._config.test_fars)
        return result if norm is None else {**result, "xnorm": norm}

    def _all_pairs(
        self, name: str, embeddings: np.ndarray, labels: np.ndarray, images: Optional[Collection]
    ) -> dict[str, Any]:
        self._leave_for_report(name, embeddings, *pairs_of_labels(labels), images)
        own = count_different(embeddings, labels, parallel.rank(), parallel.world_size())
        counts = parallel.all_reduce_sum(paddle.to_tensor(own)).numpy()
        return all_pairs_metrics(embeddings, labels, counts, self._config.test_fars)

    def _identify(self, embedder: Embedder, one: GallerySet) -> dict[str, Any]:
        gallery = average_templates(self._embed(embedder, one.gallery), one.gallery_templates)
        probes = average_templates(self._embed(embedder, one.probes), one.probe_templates)
        own = mates_of(gallery, one.gallery_identities, probes, one.probe_identities)
        lower, upper = shard_bounds(len(probes), parallel.world_size(), parallel.rank())
        found = parallel.all_gather_object(search_gallery(gallery, probes[lower:upper], own[lower:upper]))
        rank, best = (np.concatenate(parts) for parts in zip(*found))
        return identification_rates(own, rank, best, len(gallery))

    def _leave_for_report(
        self,
        name: str,
        embeddings: np.ndarray,
        pairs: np.ndarray,
        issame: np.ndarray,
        images: Optional[Collection],
        firsts: Optional[np.ndarray] = None,
    ) -> None:
        """`firsts` int [N] are the images that stand for the embeddings, if they are others than those of the same number."""
        if self._pairs_dir is None:
            return
        place = self._pairs_dir / f"{name}_pairs.npz"

        def leave() -> None:
            made: dict[str, Any] = {"similarity": pair_similarity(embeddings, pairs), "issame": issame}
            if images is not None:
                shown = np.arange(len(embeddings)) if firsts is None else firsts
                made |= _hard_pairs(made["similarity"], pairs, issame, images, shown, self._config.image_shape)
                made["map_embeddings"] = unit_rows(embeddings[:_MAPPED])
                made["map_identities"] = _identities(images, shown[:_MAPPED], pairs[issame])
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                with temporary(place) as written:
                    with open(written, "wb") as stream:
                        np.savez(stream, **made)
                    os.replace(written, place)
            except OSError as problem:
                raise ConfigError(
                    f"{place}: cannot be written ({problem.strerror}); free space, or name another folder"
                ) from None

        parallel.from_rank_0(leave)


def _hard_pairs(
    similarity: np.ndarray,
    pairs: np.ndarray,
    issame: np.ndarray,
    images: Collection,
    shown: np.ndarray,
    image_shape: Sequence[int],
) -> dict[str, np.ndarray]:
    """The pairs of each kind the model is most wrong about: their numbers [K], pixels and names [K, 2]."""
    distinct = np.unique(np.sort(pairs, axis=1), axis=0, return_index=True)[1]
    by_similarity = distinct[np.argsort(similarity[distinct], kind="stable")]
    least_alike = by_similarity[issame[by_similarity]][:_HARD_PAIRS]
    most_alike = by_similarity[~issame[by_similarity]][: -_HARD_PAIRS - 1 : -1]
    hard = np.concatenate([least_alike, most_alike])
    both = shown[pairs[hard]].tolist()
    return {
        "hard_pairs": hard,
        "hard_images": np.array([[images.pixels(i, image_shape) for i in pair] for pair in both]),
        "hard_names": np.array([[images.name(i) for i in pair] for pair in both], "U"),
    }


def _identities(images: Collection, shown: np.ndarray, same: np.ndarray) -> np.ndarray:
    """A name for each of the images `shown` [N], the same for one identity: str [N].

    Where the collection names none, names are the number of the first image of those that pairs `same` [S, 2] join; an
    image nothing is known of has none.
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
    return np.array([str(one) if one in known else "" for one in roots], "U")
