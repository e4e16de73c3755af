"""Embeds collections of images and what readers yield, in order, with the work shared by the ranks."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from plsc import parallel
from plsc.config import Config
from plsc.data.collection import Collection, open_collection, titles_of_numbers
from plsc.data.damaged import NAMED, line_of_zeros, normalized
from plsc.data.pixels import PILLOW_RULE
from plsc.data.prefetch import prefetch
from plsc.data.readers import ReaderLoader
from plsc.errors import ConfigError, DataError, StoppedError, counted
from plsc.inference.networks import Network
from plsc.machine.names import to_text
from plsc.machine.streams import shows_bars
from plsc.search.embeddings import EmbeddingsWriter, open_embeddings
from plsc.version import __version__

logger = logging.getLogger("plsc")

_READ_AHEAD = 2  # Finished batches kept ready, in addition to those that the workers are preparing.
_LOG_SECONDS = 30.0


class Embedder:
    """A network that embeds whole collections. All ranks call each method together, and get the same result.

    Args:
        network: The network.
        config: Its `test_batch_size`, `num_workers` and `pixels` are used.
        flip: Whether to average the embeddings of an image and its mirror image.
        progress: Whether to show a bar on a terminal, or else log a line every half minute.
        skip_damaged: Whether an image that cannot be read or decoded gets zeros and a warning, instead of an error.
        is_stopping: Once it returns True on some rank, every rank raises a StoppedError.
    """

    def __init__(
        self,
        network: Network,
        config: Config,
        flip: bool,
        progress: bool = False,
        skip_damaged: bool = False,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._network, self._flip, self._progress, self._skip_damaged = network, flip, progress, skip_damaged
        self._is_stopping = is_stopping
        self._batch_size, self._num_workers, self._rule = config.test_batch_size, config.num_workers, config.pixels

    def embed(self, images: Collection) -> np.ndarray:
        """Returns the embeddings of a collection, [N, D] float32.

        Raises:
            ConfigError: The network gives embeddings of another size.
            DataError: An image cannot be read or decoded, or its embedding is not finite.
        """
        parts = list(self._shown(images, 0))
        return np.concatenate(parts) if parts else np.empty((0, self._network.emb_dim), "float32")

    def blocks(self, images: Collection) -> Iterator[np.ndarray]:
        """Yields the embeddings of a collection in order, some [n, D] float32 at a time; see `embed`."""
        return self._shown(images, 0)

    def keep(self, images: Collection, folder: Path, source: str = "") -> np.ndarray:
        """Embeds a collection into an embeddings folder, which rank 0 writes.

        An interrupted call resumes where it stopped. A complete folder stays unchanged.

        Args:
            images: The images.
            folder: The folder.
            source: What the folder records as the source of the images; by default their path.

        Returns:
            Embeddings [N, D] float32, mapped from the file on ranks that see it.

        Raises:
            ConfigError: The folder holds something else, or cannot be written; or as for `embed`.
            DataError: As for `embed`.
        """
        meta = self._meta_of_rank_0(images)
        return self._keep(images, folder, {**meta, "source": to_text(source)} if source else meta)

    def embed_once(self, images: Collection, folder: Path) -> np.ndarray:
        """Returns the embeddings that an earlier call with the same images and network left below the folder.

        If there are none, it embeds the images and keeps the result there; see `keep`.
        """
        meta = self._meta_of_rank_0(images)
        return self._keep(images, folder / hashlib.sha256(repr(meta).encode()).hexdigest()[:16], meta)

    def embed_reader(self, loader: ReaderLoader) -> tuple[np.ndarray, np.ndarray]:
        """Embeds all images that a reader yields.

        Ranks that read the same batches share the work, and the order of the batches stays. Otherwise the images of
        each rank follow those of the rank before.

        Returns:
            Embeddings [N, D] float32 and labels [N], the same on every rank.
        """
        self._network.expect(0)  # How many images come is unknown.
        batches = loader.epoch(0)
        first = parallel.together(lambda: next(batches), "the first batch of the reader")
        ranks, rank = parallel.world_size(), parallel.rank()
        what = "the first batch of the reader"
        same = ranks > 1 and len(set(parallel.all_gather_object(digest(first), what))) == 1
        what = "its embeddings of the reader"
        parts = parallel.together(
            lambda: [
                (number if same else rank, self._forward(images), labels)
                for number, (images, labels) in enumerate(itertools.chain([first], batches))
                if not same or number % ranks == rank
            ],
            what,
        )
        every = _parts_of_all_ranks(parts, self._network.emb_dim, what)
        every.sort(key=lambda part: part[0])
        embeddings, labels = (np.concatenate([part[k] for part in every]) for k in (1, 2))
        if loader.splits:  # Of n ranks, rank r had samples r, r + n, r + 2n, ...
            counts = [sum(len(part[2]) for part in every if part[0] == one) for one in range(ranks)]
            positions = np.concatenate([np.arange(count) * ranks + one for one, count in enumerate(counts)])
            order = np.argsort(positions)
            embeddings, labels = embeddings[order], labels[order]
        return embeddings, labels

    def _keep(self, images: Collection, folder: Path, meta: dict[str, Any]) -> np.ndarray:
        what = "the embeddings folder"
        writer = parallel.together(lambda: EmbeddingsWriter(folder, meta) if parallel.rank() == 0 else None, what)
        first = parallel.from_rank_0(lambda: writer.rows, what)  # type: ignore[union-attr]
        if first:
            logger.info("%s: %s of %s embeddings exist already", folder, f"{first:,}", f"{images.num_images:,}")
        try:
            for rows in self._shown(images, first):
                parallel.together(lambda rows=rows: writer.append(rows) if writer else None, what)  # type: ignore[misc]
            parallel.together(lambda: writer.finish(_names(images)) if writer else None, what)
        finally:
            if writer is not None:
                writer.close()
        return _of_rank_0(folder, meta)

    def _meta_of_rank_0(self, images: Collection) -> dict[str, Any]:
        return parallel.from_rank_0(lambda: self._meta(images), "the fingerprint of the images")

    def _meta(self, images: Collection) -> dict[str, Any]:
        """Returns everything that the embeddings depend on."""
        # Folders of earlier versions, which say nothing about pixels, hold embeddings of the rule of their time.
        newer = self._rule.number != PILLOW_RULE
        return {
            "count": images.num_images,
            "emb_dim": self._network.emb_dim,
            "source": to_text(images.source),
            "images": images.fingerprint(missing=self._skip_damaged),
            "model": self._network.model,
            "export": self._network.export,
            "image_shape": list(self._network.image_shape),
            **({"pixel_rule": self._rule.number, "image_ground": list(self._rule.ground)} if newer else {}),
            "flip": self._flip,
            "skip_damaged": self._skip_damaged,
            "plsc": __version__,
        }

    def _shown(self, images: Collection, first: int) -> Iterator[np.ndarray]:
        """Yields what `_blocks` does, and shows the progress."""
        hidden = not (self._progress and parallel.rank() == 0 and shows_bars())
        blocks, done, began = self._blocks(images, first), first, time.monotonic()
        logged = began
        with tqdm(total=images.num_images, initial=first, unit="image", dynamic_ncols=True, disable=hidden) as bar:
            for rows in blocks:
                yield rows
                bar.update(len(rows))
                done, now = done + len(rows), time.monotonic()
                if self._progress and bar.disable and now - logged >= _LOG_SECONDS:
                    speed, logged = (done - first) / (now - began), now
                    logger.info("%s of %s images embedded, %.1f images/s", f"{done:,}", f"{images.num_images:,}", speed)

    def _blocks(self, images: Collection, first: int) -> Iterator[np.ndarray]:
        """Yields the embeddings from image `first` on, in order, some [n, D] at a time.

        In each round every rank embeds one batch; the batches of the ranks follow each other.
        """
        ranks, rank, end = parallel.world_size(), parallel.rank(), images.num_images
        if first == end:
            return
        # The size does not depend on `first`, because the last bits of embeddings depend on the size.
        share = -(-end // ranks)
        batch = min(self._batch_size, share)
        rounds = range(first, end, batch * ranks)
        own = [range(min(start + rank * batch, end), min(start + (rank + 1) * batch, end)) for start in rounds]
        self._network.expect(share * (1 + self._flip))
        decoded = prefetch(
            functools.partial(self._decode, images),
            own,
            self._num_workers,
            self._num_workers + _READ_AHEAD,
            self._is_stopping,
        )
        damaged = 0
        try:
            for start, chosen in zip(rounds, own):
                embed = functools.partial(self._embed_next, images, chosen, decoded)
                rows, faults = parallel.together(embed, f"its share of images {start} to {start + batch * ranks}")
                counts = [min(max(end - start - one * batch, 0), batch) for one in range(ranks)]
                if self._skip_damaged:
                    damaged = _warn(damaged, parallel.all_gather_object(list(faults.values()), "its damaged images"))
                yield parallel.all_gather_rows(paddle.to_tensor(rows), counts).numpy()
            if damaged:
                _warn_once(line_of_zeros(damaged, end - first))
        finally:
            decoded.close()  # type: ignore[attr-defined]

    def _decode(self, images: Collection, chosen: range) -> tuple[np.ndarray, dict[int, str]]:
        """Returns normalised images [n, C, H, W], and for the rows of damaged ones what is wrong."""
        shape = self._network.image_shape
        return normalized(
            len(chosen), shape, lambda row: images.pixels(chosen[row], shape, self._rule), self._skip_damaged
        )

    def _forward(self, images: np.ndarray) -> np.ndarray:
        """Returns the embeddings [b, D] float32 of normalised images [b, C, H, W]."""
        if self._is_stopping():
            raise StoppedError("a signal has ended the test")
        rows = self._network.embed(images)
        if self._flip:
            rows = (rows + self._network.embed(images[..., ::-1])) / 2
        return rows

    def _embed_next(
        self, images: Collection, chosen: range, decoded: Iterator[tuple[np.ndarray, dict[int, str]]]
    ) -> tuple[np.ndarray, dict[int, str]]:
        """Returns the embeddings [n, D] of what `_decode` returns for the next batch, and the faults in it."""
        batch, faults = next(decoded)
        if not chosen:
            return np.empty((0, self._network.emb_dim), "float32"), faults
        rows = self._forward(batch)
        if rows.shape[1:] != (self._network.emb_dim,):
            raise ConfigError(
                f"set_emb_size({self._network.emb_dim}): the network gives embeddings {list(rows.shape)} for "
                f"{counted(len(chosen), 'image')}; set the size that the network has"
            )
        rows[list(faults)] = 0
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            where = images.where(chosen[int(finite.argmin())])
            cause = "training has diverged or the checkpoint is damaged"
            if self._network.export is not None:
                cause = "the exported network cannot embed it; export it in float32, or another checkpoint"
            raise DataError(f"{where}: its embedding is not finite; {cause}")
        return rows, faults


def _names(images: Collection) -> Iterator[tuple[str, str]]:
    """Yields the name and the identity of each image, for humans to read where numbers have names."""
    titles = titles_of_numbers(images)
    for i in range(images.num_images):
        identity = images.identity(i)
        yield images.name(i), titles[int(identity)] if titles and identity else identity


def open_together(path: Path) -> Collection:
    """Opens a collection on every rank; see `open_collection`.

    Raises:
        DataError: A rank cannot open it, or the ranks do not find the same images.
    """
    images = parallel.together(lambda: open_collection(path), "the list of the images to embed")
    if parallel.world_size() > 1:
        names = hashlib.sha256(ascii([to_text(images.name(i)) for i in range(images.num_images)]).encode())
        if len(set(parallel.all_gather_object(names.digest(), "the names of the images"))) > 1:
            raise DataError(f"{path}: the ranks find different images; give every machine the same ones")
    return images


def _warn(before: int, faults: list[list[str]]) -> int:
    """Logs the first damaged images, of which `before` were found earlier; returns how many there are now."""
    every = [fault for one in faults for fault in one]
    for fault in every[: max(NAMED - before, 0)]:
        _warn_once("%s; skipped", fault)
    return before + len(every)


def _warn_once(*words: Any) -> None:
    """Logs a warning on rank 0 alone."""
    if parallel.rank() == 0:
        logger.warning(*words)


def _of_rank_0(folder: Path, meta: dict[str, Any]) -> np.ndarray:
    """Returns the embeddings in a folder of rank 0 on every rank, also on those that do not share its disk."""
    what = "the embeddings"
    made = parallel.together(lambda: open_embeddings(folder) if parallel.rank() == 0 else None, what)
    if parallel.rank() > 0:
        with contextlib.suppress(DataError):
            made = open_embeddings(folder)
    seen = made is not None and all(made.meta.get(key) == value for key, value in meta.items())
    given = None
    if parallel.any_rank(not seen, what):
        own = made.vectors if parallel.rank() == 0 else np.empty((0, 0))  # type: ignore[union-attr]
        given = parallel.all_gather_arrays(own, what)[0]
    return made.vectors if seen else given  # type: ignore[union-attr, return-value]


def _parts_of_all_ranks(
    parts: list[tuple[int, np.ndarray, np.ndarray]], emb_dim: int, what: str
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Returns the (number, embeddings, labels) of all ranks, in rank order."""
    own = np.concatenate([np.empty((0, emb_dim), "float32"), *(rows for _, rows, _ in parts)])
    rows_of_ranks = parallel.all_gather_arrays(own, what)
    every = []
    labels_of_ranks = parallel.all_gather_object([(number, labels) for number, _, labels in parts], what)
    for rows, found in zip(rows_of_ranks, labels_of_ranks):
        ends = np.cumsum([len(labels) for _, labels in found])
        every += [(number, part, labels) for (number, labels), part in zip(found, np.split(rows, ends[:-1]))]
    return every


def digest(batch: tuple[np.ndarray, np.ndarray]) -> str:
    """Returns a digest of the images and labels of a batch."""
    return hashlib.sha256(batch[0].tobytes() + batch[1].tobytes()).hexdigest()
