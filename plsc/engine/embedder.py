"""Embeds images: batches, what readers give, and collections, in their order, with the work shared by the ranks."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import numpy as np
import paddle
from tqdm import tqdm

from plsc import parallel
from plsc.config import Config
from plsc.data.collection import Collection
from plsc.data.prefetch import prefetch
from plsc.data.readers import ReaderLoader
from plsc.data.transforms import normalize
from plsc.embeddings import EmbeddingsWriter, open_embeddings
from plsc.errors import DataError
from plsc.version import __version__

logger = logging.getLogger("plsc")

_READ_AHEAD = 2  # batches, beyond those the workers are busy with


class Embedder:
    """Embeds collections with a network. All ranks call each method together, and get the same.

    Args:
        backbone: gives embeddings [B, D] of normalised images [B, C, H, W].
        config: `image_shape`, `emb_dim`, `test_batch_size` and `num_workers` are used.
        flip: average the embeddings of an image and its mirror image.
        progress: show a bar on a terminal.

    Attributes:
        model: the sha256 of the network's names and values.
    """

    def __init__(self, backbone: paddle.nn.Layer, config: Config, flip: bool, progress: bool = False) -> None:
        self._backbone, self._flip, self._progress = backbone, flip, progress
        self._image_shape, self._emb_dim = config.image_shape, config.emb_dim
        self._batch_size, self._num_workers = config.test_batch_size, config.num_workers
        parallel.broadcast_statistics(backbone)

    @functools.cached_property
    def model(self) -> str:
        found = hashlib.sha256()
        for name, value in sorted(self._backbone.state_dict().items()):
            found.update(f"{name} {value.dtype} {value.shape}\n".encode())
            found.update(np.ascontiguousarray(value.numpy()).data)
        return found.hexdigest()

    def embed(self, images: Collection) -> np.ndarray:
        """Embeddings [N, D] float32.

        Raises:
            DataError: an image that cannot be decoded, or whose embedding is not finite.
        """
        parts = list(self._shown(images, 0))
        return np.concatenate(parts) if parts else np.empty((0, self._emb_dim), "float32")

    def keep(self, images: Collection, folder: Path) -> np.ndarray:
        """Writes an embeddings folder, on rank 0; goes on where an interrupted call ended, and leaves a complete one.

        Returns:
            [N, D] float32, mapped from the file on ranks that see it.

        Raises:
            ConfigError: the folder holds something else, or cannot be written.
            DataError: as `embed`.
        """
        return self._keep(images, folder, parallel.from_rank_0(lambda: self._meta(images)))

    def embed_once(self, images: Collection, folder: Path) -> np.ndarray:
        """What an earlier call with the same images and network left below the folder, or else `keep` there."""
        meta = parallel.from_rank_0(lambda: self._meta(images))
        return self._keep(images, folder / hashlib.sha256(repr(meta).encode()).hexdigest()[:16], meta)

    def embed_reader(self, loader: ReaderLoader) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings [N, D] float32 and labels [N] of all a reader gives, the same on every rank.

        Ranks that read the same batches share the work and keep their order; otherwise the ranks' images follow each other.
        """
        batches = loader.epoch(0)
        first = next(batches)
        ranks, rank = parallel.world_size(), parallel.rank()
        same = ranks > 1 and len(set(parallel.all_gather_object(digest(first)))) == 1
        parts = [
            (number if same else rank, embed_batch(self._backbone, images, self._flip), labels)
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

    def _keep(self, images: Collection, folder: Path, meta: dict[str, Any]) -> np.ndarray:
        writer = parallel.together(lambda: EmbeddingsWriter(folder, meta) if parallel.rank() == 0 else None)
        first = parallel.from_rank_0(lambda: writer.rows)  # type: ignore[union-attr]
        if first:
            logger.info("%s: %d of %d embeddings are there already", folder, first, images.num_images)
        try:
            for rows in self._shown(images, first):
                parallel.together(lambda rows=rows: writer.append(rows) if writer else None)  # type: ignore[misc]
            names = ((images.name(i), images.identity(i)) for i in range(images.num_images))
            parallel.together(lambda: writer.finish(names) if writer else None)
        finally:
            if writer is not None:
                writer.close()
        return _of_rank_0(folder, meta)

    def _meta(self, images: Collection) -> dict[str, Any]:
        """What tells embeddings apart."""
        return {
            "count": images.num_images,
            "emb_dim": self._emb_dim,
            "source": str(images.root.absolute()),
            "images": images.fingerprint(),
            "model": self.model,
            "image_shape": list(self._image_shape),
            "flip": self._flip,
            "plsc": __version__,
        }

    def _shown(self, images: Collection, first: int) -> Iterator[np.ndarray]:
        """`_blocks` with a bar."""
        hidden = None if self._progress and parallel.rank() == 0 else True  # None shows it on a terminal only
        blocks = self._blocks(images, first)
        with tqdm(total=images.num_images, initial=first, unit="image", dynamic_ncols=True, disable=hidden) as bar:
            for rows in blocks:
                yield rows
                bar.update(len(rows))

    def _blocks(self, images: Collection, first: int) -> Iterator[np.ndarray]:
        """Embeddings from image `first` on, in order, some [n, D] at a time.

        In every round each rank takes one batch, one rank after the other.
        """
        ranks, rank, end = parallel.world_size(), parallel.rank(), images.num_images
        if first == end:
            return
        batch = min(self._batch_size, -(-(end - first) // ranks))
        rounds = range(first, end, batch * ranks)
        own = [range(start + rank * batch, min(start + (rank + 1) * batch, end)) for start in rounds]
        decoded = prefetch(
            lambda chosen: self._decode(images, chosen), own, self._num_workers, self._num_workers + _READ_AHEAD
        )
        try:
            for start, chosen in zip(rounds, own):
                rows = parallel.together(lambda chosen=chosen: self._embed(images, chosen, next(decoded)))  # type: ignore[misc]
                counts = [min(max(end - start - one * batch, 0), batch) for one in range(ranks)]
                yield parallel.all_gather_rows(paddle.to_tensor(rows), counts).numpy()
        finally:
            decoded.close()  # type: ignore[attr-defined]

    def _decode(self, images: Collection, chosen: range) -> Optional[np.ndarray]:
        if not chosen:
            return None
        return normalize(np.stack([images.pixels(i, self._image_shape) for i in chosen]))

    def _embed(self, images: Collection, chosen: range, batch: Optional[np.ndarray]) -> np.ndarray:
        if batch is None:
            return np.empty((0, self._emb_dim), "float32")
        rows = embed_batch(self._backbone, batch, self._flip)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            where = images.where(chosen[int(finite.argmin())])
            raise DataError(f"{where}: its embedding is not finite; training has diverged or the checkpoint is damaged")
        return rows


def _of_rank_0(folder: Path, meta: dict[str, Any]) -> np.ndarray:
    """The embeddings rank 0 has in a folder, on every rank: they need not share a disk."""
    made = None
    with contextlib.suppress(DataError):
        made = open_embeddings(folder)
    seen = made is not None and all(made.meta.get(key) == value for key, value in meta.items())
    if not parallel.any_rank(not seen):
        return made.vectors  # type: ignore[union-attr]
    given = parallel.from_rank_0(lambda: np.array(made.vectors))  # type: ignore[union-attr]
    return made.vectors if seen else given  # type: ignore[union-attr]


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
