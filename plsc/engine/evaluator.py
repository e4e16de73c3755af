"""Tests on verification sets: flip-averaged embeddings, split over the ranks, LFW protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import numpy as np
import paddle

from plsc import parallel
from plsc.data.transforms import normalize
from plsc.data.verification import VerificationSet, find_verification_sets, load_verification
from plsc.heads import shard_bounds
from plsc.metrics import pair_similarity, verification_metrics


class Evaluator:
    """Holds the verification sets (as uint8) and tests a backbone on them.

    Args:
        dataset_dir: holds `<target>.bin` for each of `targets` (comma separated).
        image_shape: (C, H, W).
        batch_size: images a forward pass, per rank.
        flip: average the embeddings of an image and its mirror image.
        pairs_dir: rank 0 leaves `<target>_pairs.npz` (similarity, issame) there, for plots; None leaves nothing.
    """

    def __init__(
        self,
        dataset_dir: str,
        targets: str,
        image_shape: tuple[int, int, int],
        batch_size: int,
        flip: bool,
        pairs_dir: Optional[Path],
    ) -> None:
        self._sets = [load_verification(path, image_shape) for path in find_verification_sets(dataset_dir, targets)]
        self._batch_size, self._flip, self._pairs_dir = batch_size, flip, pairs_dir

    def __call__(self, backbone: paddle.nn.Layer) -> dict[str, dict[str, float]]:
        """{set name: {'accuracy', 'std', 'tar@1e-3', 'xnorm'}}, the same on every rank."""
        parallel.broadcast_statistics(backbone)
        return {one.name: self._test(backbone, one) for one in self._sets}

    def _test(self, backbone: paddle.nn.Layer, one: VerificationSet) -> dict[str, float]:
        lower, upper = shard_bounds(len(one.images), parallel.world_size(), parallel.rank())
        own = embed(backbone, one.images[lower:upper], self._batch_size, self._flip)
        # Through objects: a rank without images does not know the embedding size.
        embeddings = np.concatenate([part for part in parallel.all_gather_object(own) if len(part)])
        if self._pairs_dir is not None and parallel.rank() == 0:
            self._pairs_dir.mkdir(parents=True, exist_ok=True)
            np.savez(
                self._pairs_dir / f"{one.name}_pairs.npz", similarity=pair_similarity(embeddings), issame=one.issame
            )
        return verification_metrics(embeddings, one.issame)


@paddle.no_grad()
def embed(backbone: paddle.nn.Layer, images: np.ndarray, batch_size: int, flip: bool) -> np.ndarray:
    """Embeddings [N, D] float32 of uint8 images [N, H, W, C]; the last batch may be smaller."""
    was_training = backbone.training
    backbone.eval()
    parts = []
    for first in range(0, len(images), batch_size):
        batch = normalize(images[first : first + batch_size])
        embedding = backbone(paddle.to_tensor(batch))
        if flip:
            embedding = (embedding + backbone(paddle.to_tensor(np.ascontiguousarray(batch[..., ::-1])))) / 2
        parts.append(embedding.astype("float32").numpy())
    if was_training:
        backbone.train()
    return np.concatenate(parts) if parts else np.empty((0, 0), dtype="float32")
