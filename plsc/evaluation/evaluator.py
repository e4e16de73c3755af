"""Tests a network on the sets of a data folder, or on the images that a reader yields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from plsc.evaluation.checks import check_identities, check_images, check_reader
from plsc.evaluation.embedder import Embedder
from plsc.evaluation.report_data import pairs_for_report
from plsc.heads import shard_bounds
from plsc.inference.networks import Network
from plsc.metrics import (
    all_pairs_metrics,
    average_templates,
    count_different,
    identification_rates,
    mates_of,
    mean_norm,
    pairs_of_labels,
    search_gallery,
    verification_metrics,
)
from plsc.report.pairs_file import write_pairs


class Evaluator:
    """A test of networks on sets, or on the images that a reader yields.

    Args:
        sets: Test sets. Those of `.bin` files hold their images in memory as uint8; images of others are read for each
            test.
        reader: Yields labelled images, which replace the sets; None tests on the sets.
        config: How to embed images. Embeddings are averaged over the mirror image if training mirrors images.
        pairs_dir: Folder in which rank 0 leaves `<set>_pairs.npz` for `plsc report`; None leaves nothing.
        kept_dir: Folder in which embeddings of sets are kept, and from which they are taken if images and network are
            the same; None embeds the images in every test.

    Raises:
        DataError: The identities of a set give nothing to test.
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
        self._is_stopping: Callable[[], bool] = lambda: False
        for one in sets:
            check_identities(one)

    def end_waiting_if(self, is_stopping: Callable[[], bool]) -> None:
        """Has a test end with a StoppedError, on every rank, as soon as `is_stopping` returns True on one of them."""
        self._is_stopping = is_stopping
        if self._reader is not None:
            self._reader.end_waiting_if(is_stopping)

    def check(self) -> None:
        """Checks as far as that is cheap that the images can be read, before the training that the test is for.

        Raises:
            DataError: They cannot; on every rank.
        """
        for one in self._sets:
            check_images(one, self._config.pixels)
        # A reader that training reads as well is checked there.
        if self._reader is not None and self._config.test_reader is not self._config.train_reader:
            check_reader(self._reader)

    def __call__(self, network: Network) -> dict[str, dict[str, Any]]:
        """Tests a network.

        Returns:
            For each set name what `verification_metrics` or `identification_metrics` returns, the same on every rank.

        Raises:
            StoppedError: The test has been ended; see `end_waiting_if`.
        """
        embedder = Embedder(network, self._config, flip=self._config.augmentation.mirror, is_stopping=self._is_stopping)
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
        self._leave_for_report(one.name, embeddings, (one.pairs, one.issame), one.images, firsts)
        folds = 10 if one.folds is None else one.folds
        result = verification_metrics(embeddings, one.issame, folds, one.pairs, self._config.test_fars)
        return result if norm is None else {**result, "xnorm": norm}

    def _all_pairs(
        self, name: str, embeddings: np.ndarray, labels: np.ndarray, images: Optional[Collection]
    ) -> dict[str, Any]:
        drawn = pairs_of_labels(labels)
        self._leave_for_report(name, embeddings, drawn, images)
        own = count_different(embeddings, labels, parallel.rank(), parallel.world_size())
        parallel.meet(f"its share of the pairs of {name}")
        counts = parallel.all_reduce_sum(paddle.to_tensor(own)).numpy()
        return all_pairs_metrics(embeddings, labels, counts, self._config.test_fars, drawn)

    def _identify(self, embedder: Embedder, one: GallerySet) -> dict[str, Any]:
        gallery = average_templates(self._embed(embedder, one.gallery), one.gallery_templates)
        probes = average_templates(self._embed(embedder, one.probes), one.probe_templates)
        own = mates_of(gallery, one.gallery_identities, probes, one.probe_identities)
        lower, upper = shard_bounds(len(probes), parallel.world_size(), parallel.rank())
        answers = search_gallery(gallery, probes[lower:upper], own[lower:upper])
        found = parallel.all_gather_object(answers, f"its share of the probes of {one.name}")
        rank, best = (np.concatenate(parts) for parts in zip(*found))
        return identification_rates(own, rank, best, len(gallery))

    def _leave_for_report(
        self,
        name: str,
        embeddings: np.ndarray,
        pairs_and_issame: tuple[np.ndarray, np.ndarray],
        images: Optional[Collection],
        firsts: Optional[np.ndarray] = None,
    ) -> None:
        folder, shape, rule = self._pairs_dir, self._config.image_shape, self._config.pixels
        if folder is None:
            return
        parallel.from_rank_0(
            lambda: write_pairs(
                folder, name, pairs_for_report(embeddings, *pairs_and_issame, images, firsts, shape, rule=rule)
            ),
            f"the pairs of {name} for the report",
        )
