"""Tests: flip-averaged embeddings, split over the ranks, LFW protocol; on verification sets or on a reader."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import paddle

from plsc import parallel
from plsc.data.readers import ReaderLoader
from plsc.data.transforms import normalize
from plsc.data.verification import VerificationSet
from plsc.heads import shard_bounds
from plsc.metrics import pair_similarity, pairs_of_labels, verification_metrics
from plsc.vectors import unit_rows

_HARD_PAIRS = 12  # of each kind
_MAPPED = 1000  # images


class Evaluator:
    """Tests a backbone on verification sets, or on pairs of the images a reader gives.

    Args:
        sets: held as uint8.
        reader: gives labelled images, instead of sets: pairs are drawn from them, half of them of one class.
        batch_size: images a forward pass, per rank.
        flip: average the embeddings of an image and its mirror image.
        pairs_dir: rank 0 leaves `<set>_pairs.npz` there, for `plsc report`; None leaves nothing.
    """

    def __init__(
        self,
        sets: Sequence[VerificationSet],
        reader: Optional[ReaderLoader],
        batch_size: int,
        flip: bool,
        pairs_dir: Optional[Path],
    ) -> None:
        self._sets, self._reader = sets, reader
        self._batch_size, self._flip, self._pairs_dir = batch_size, flip, pairs_dir

    def __call__(self, backbone: paddle.nn.Layer) -> dict[str, dict[str, Any]]:
        """{set name: what `verification_metrics` returns}, the same on every rank."""
        parallel.broadcast_statistics(backbone)
        if self._reader is not None:
            embeddings, labels = embed_reader(backbone, self._reader, self._flip)
            pairs, issame = pairs_of_labels(labels)
            return {"test_reader": self._measure("test_reader", embeddings[pairs.reshape(-1)], issame, None)}
        return {one.name: self._test(backbone, one) for one in self._sets}

    def _test(self, backbone: paddle.nn.Layer, one: VerificationSet) -> dict[str, Any]:
        lower, upper = shard_bounds(len(one.images), parallel.world_size(), parallel.rank())
        own = embed(backbone, one.images[lower:upper], self._batch_size, self._flip)
        # Through objects: a rank without images does not know the embedding size.
        embeddings = np.concatenate([part for part in parallel.all_gather_object(own) if len(part)])
        return self._measure(one.name, embeddings, one.issame, one.images)

    def _measure(
        self, name: str, embeddings: np.ndarray, issame: np.ndarray, images: Optional[np.ndarray]
    ) -> dict[str, Any]:
        if self._pairs_dir is not None and parallel.rank() == 0:
            self._pairs_dir.mkdir(parents=True, exist_ok=True)
            made: dict[str, Any] = _for_report(embeddings, issame, images)
            np.savez(self._pairs_dir / f"{name}_pairs.npz", **made)
        return verification_metrics(embeddings, issame)


def _for_report(embeddings: np.ndarray, issame: np.ndarray, images: Optional[np.ndarray]) -> dict[str, np.ndarray]:
    """Similarities, the pairs of each kind the model is most wrong about, and embeddings for a map of the first images."""
    similarity = pair_similarity(embeddings)
    made = {"similarity": similarity, "issame": issame}
    if images is not None:
        by_similarity = np.argsort(similarity, kind="stable")
        least_alike = by_similarity[issame[by_similarity]][:_HARD_PAIRS]
        most_alike = by_similarity[~issame[by_similarity]][: -_HARD_PAIRS - 1 : -1]
        made["hard_pairs"] = np.concatenate([least_alike, most_alike])
        rows = np.stack([2 * made["hard_pairs"], 2 * made["hard_pairs"] + 1], axis=1)
        made["hard_images"] = images[rows]
        made["hard_names"] = np.char.add("image ", rows.astype("U"))
        made["map_embeddings"] = unit_rows(embeddings[:_MAPPED])
        made["map_identities"] = _identities(images[:_MAPPED], issame)
    return made


def _identities(images: np.ndarray, issame: np.ndarray) -> np.ndarray:
    """A name for each image, the same where pairs and repeated images say that it is one identity: str [N].

    Names are the number of the identity's first image; an image nothing is known of has none.
    """
    first_of: dict[bytes, int] = {}
    parent = [first_of.setdefault(hashlib.sha256(image.tobytes()).digest(), i) for i, image in enumerate(images)]

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for pair in np.flatnonzero(issame[: len(images) // 2]):
        one, other = sorted((root(2 * int(pair)), root(2 * int(pair) + 1)))
        parent[other] = one
    roots = [root(i) for i in range(len(images))]
    known = {one for i, one in enumerate(roots) if one != i}
    return np.array([str(one) if one in known else "" for one in roots], "U")


def embed(backbone: paddle.nn.Layer, images: np.ndarray, batch_size: int, flip: bool) -> np.ndarray:
    """Embeddings [N, D] float32 of uint8 images [N, H, W, C]; the last batch may be smaller."""
    parts = [
        embed_batch(backbone, normalize(images[first : first + batch_size]), flip)
        for first in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts) if parts else np.empty((0, 0), dtype="float32")


def embed_reader(backbone: paddle.nn.Layer, loader: ReaderLoader, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [N, D] float32 and labels [N] of all a reader gives, the same on every rank.

    Ranks that read the same batches share the work and keep their order; otherwise the ranks' images follow each other.
    """
    batches = loader.epoch(0)
    first = next(batches)
    ranks, rank = parallel.world_size(), parallel.rank()
    same = ranks > 1 and len(set(parallel.all_gather_object(digest(first)))) == 1
    parts = [
        (number if same else rank, embed_batch(backbone, images, flip), labels)
        for number, (images, labels) in enumerate(itertools.chain([first], batches))
        if not same or number % ranks == rank
    ]
    every = [part for parts in parallel.all_gather_object(parts) for part in parts]
    every.sort(key=lambda part: part[0])
    embeddings, labels = (np.concatenate([part[k] for part in every]) for k in (1, 2))
    if loader.splits:  # rank r had every n-th sample from r on
        counts = [sum(len(part[2]) for part in every if part[0] == one) for one in range(ranks)]
        positions = np.concatenate([np.arange(count) * ranks + one for one, count in enumerate(counts)])
        order = np.argsort(positions)
        embeddings, labels = embeddings[order], labels[order]
    return embeddings, labels


def digest(batch: tuple[np.ndarray, np.ndarray]) -> str:
    """The same for the same images and labels."""
    return hashlib.sha256(batch[0].tobytes() + batch[1].tobytes()).hexdigest()


@paddle.no_grad()
def embed_batch(backbone: paddle.nn.Layer, images: np.ndarray, flip: bool) -> np.ndarray:
    """Embeddings [b, D] float32 of normalised images [b, C, H, W]."""
    was_training = backbone.training
    backbone.eval()
    embedding = backbone(paddle.to_tensor(images))
    if flip:
        embedding = (embedding + backbone(paddle.to_tensor(np.ascontiguousarray(images[..., ::-1])))) / 2
    if was_training:
        backbone.train()
    return embedding.astype("float32").numpy()
