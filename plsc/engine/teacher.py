"""The teacher of `set_teacher`: what it says of each image, and what follows for a step.

A teacher that is a network embeds the images of each batch, without gradients and before the student does, so that it
and the activations of the student are never in memory together. Embeddings that `predict` wrote are read by the threads
that load the images.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Optional, Union

import numpy as np
import paddle

from plsc import parallel
from plsc.checkpoint import BACKBONE
from plsc.config import Config, Teaching
from plsc.data.loader import ImageLoader
from plsc.data.readers import ReaderLoader
from plsc.data.records import Records
from plsc.errors import ConfigError, DataError
from plsc.heads import HeadOutput
from plsc.heads.distillation import LESSONS
from plsc.heads.labels import MicroBatchLabels
from plsc.inference.export_folder import MANIFEST, is_checkpoint, open_export
from plsc.inference.networks import digest_of, embed_batch
from plsc.machine.names import quoted
from plsc.models.base_model import build
from plsc.search.embeddings import holds_embeddings, open_embeddings
from plsc.zoo import place_of

logger = logging.getLogger("plsc")

_DIGITS = 16  # of the digest that checkpoints keep
# What a folder of embeddings was made from; where its images lay makes no difference.
_MADE_OF = ("count", "emb_dim", "images", "model", "export", "image_shape", "pixel_rule", "image_ground", "flip")


class KnownImages:
    """Embeddings that `predict` wrote, found by the names of images in a data set.

    Args:
        folder: The folder of the embeddings.
        source: The images of the training.

    Attributes:
        emb_dim: Size of an embedding.
        flip: Whether they are means over an image and its mirror image.
        digest: A digest of what they were made from.

    Raises:
        DataError: The folder is incomplete or damaged.
    """

    def __init__(self, folder: Path, source: Records) -> None:
        made = open_embeddings(folder)
        self._folder, self._source, self._vectors = folder, source, made.vectors
        self.emb_dim, self.flip = made.vectors.shape[1], bool(made.meta.get("flip"))
        # Python's hashes take 8 bytes for a name; that two of 100 million names share one by chance is unlikely.
        hashes = np.fromiter((hash(name) for name in made.names), np.int64, len(made.names))
        self._rows = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._rows]
        self._example = made.names[0] if len(made.names) else ""
        told = json.dumps({name: made.meta.get(name) for name in _MADE_OF})
        self.digest = hashlib.sha256(told.encode()).hexdigest()

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the embeddings of images, int64 [b] -> float32 [b, E]. Threads may call it at the same time.

        Raises:
            DataError: The folder does not have one of the images.
        """
        rows = self._rows_of(numbers)
        if (rows < 0).any():
            raise self._missing(numbers[rows < 0], len(numbers))
        return self._vectors[rows]

    def check(self) -> None:
        """Checks that the folder has this rank's share of all images of the training, whatever an epoch draws.

        Raises:
            DataError: It does not.
        """
        own, ranks = len(self._source.labels()), parallel.world_size()
        # A rank that has its own part of the data knows no other images.
        numbers = np.arange(own) if own < self._source.num_images else np.arange(parallel.rank(), own, ranks)
        rows = self._rows_of(numbers)
        if (rows < 0).any():
            raise self._missing(numbers[rows < 0], len(numbers))

    def _rows_of(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the rows of images, -1 for those that the folder does not have."""
        wanted = np.fromiter((hash(self._source.name(int(i))) for i in numbers), np.int64, len(numbers))
        if not len(self._hashes):
            return np.full(len(numbers), -1)
        places = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
        return np.where(self._hashes[places] == wanted, self._rows[places], -1)

    def _missing(self, missing: np.ndarray, count: int) -> DataError:
        name = self._source.name(int(missing.min()))
        example = f", while it has {quoted(self._example)}" if self._example else ""
        return DataError(
            f"{self._folder}: has no embeddings of {len(missing)} of {count} images of the data, such as "
            f"{quoted(name)}{example}; embed the same data with plsc predict --input, from the same folder"
        )


@dataclasses.dataclass(frozen=True)
class Teacher:
    """An open teacher.

    Attributes:
        settings: The arguments of `set_teacher`.
        name: What messages call it.
        emb_dim: Size of its embeddings, E.
        digest: A digest of its weights, of its files, or of what its embeddings were made from.
        run: Function that embeds a batch of normalised images; None if the embeddings are known.
        known: The embeddings that are known; None if `run` computes them.
    """

    settings: Teaching
    name: str
    emb_dim: int
    digest: str
    run: Optional[Callable[[np.ndarray], np.ndarray]] = None
    known: Optional[KnownImages] = None

    def check_images(self, loader: Union[ImageLoader, ReaderLoader], config: Config) -> None:
        """Checks that known embeddings are those of the images of the training; every rank calls it.

        Raises:
            DataError: Embeddings are missing; on every rank.
        """
        if self.known is None or not isinstance(loader, ImageLoader):
            return
        if not config.remote_data:  # otherwise the names of images may be in files that are not here yet
            parallel.together(self.known.check, "the teacher's embeddings")

    def targets(self, images: np.ndarray, known: Sequence[np.ndarray]) -> paddle.Tensor:
        """Returns what the teacher says of a batch, [b, E] float32.

        Args:
            images: Normalised images [b, C, H, W].
            known: The embeddings, if the loader has read them.
        """
        return paddle.to_tensor(known[0] if self.run is None else self.run(images))

    @paddle.no_grad()
    def teach(
        self,
        output: HeadOutput,
        embedding: paddle.Tensor,
        targets: paddle.Tensor,
        micro_batches: Sequence[MicroBatchLabels],
        part: int,
    ) -> HeadOutput:
        """Adds the teacher's loss and gradient to those of the head; every rank calls it.

        Args:
            output: What the head says of the micro-batch.
            embedding: [b, D] The student's embeddings.
            targets: [b, E] The teacher's embeddings.
            micro_batches: The labels of all micro-batches of the step.
            part: The number of the micro-batch.
        """
        counts = micro_batches[part].counts
        samples = sum(sum(one.counts) for one in micro_batches)
        lesson = LESSONS[self.settings.kind](embedding, targets, counts)
        loss = float(parallel.all_reduce_sum(lesson.loss_b.astype("float64").sum()))
        factor = self.settings.weight / samples
        problem = None if np.isfinite(loss) else _problem(loss, student=embedding, teacher=targets)
        parts = output.of_heads
        if self.settings.head and not parts:
            parts = {"head": (output.loss * samples, output.samples)}
        title = "teacher" if "teacher" not in parts else "set_teacher"  # a data set may have that name
        return HeadOutput(
            loss=output.loss + factor * loss,
            embedding_grad=output.embedding_grad + lesson.embedding_grad * factor,
            correct=output.correct,
            samples=output.samples,
            problem=problem,
            of_heads={**parts, title: (loss, sum(counts))},
        )


def _problem(loss: float, **embeddings: paddle.Tensor) -> str:
    """Returns one line that says what each rank finds in the embeddings of student and teacher."""
    found = []
    for whose, rows in embeddings.items():
        bad = int(paddle.logical_not(paddle.isfinite(rows).all(axis=1)).sum())
        if bad:
            found.append(f"{bad} of {rows.shape[0]} embeddings of the {whose} are not finite")
    of_ranks = parallel.all_gather_object("; ".join(found), "the verdict on a step")
    words = [f"rank {rank}: {text}" for rank, text in enumerate(of_ranks) if text]
    return "; ".join([*words, f"the loss of the teacher is {loss}"])


def open_teacher(config: Config, source: Optional[Records]) -> Optional[Teacher]:
    """Opens the teacher of the settings, the same on all ranks, which call it together; None without one.

    Its digest goes into the settings.

    Args:
        config: The settings.
        source: The images of the training; None for those of a reader.

    Raises:
        ConfigError: It cannot be opened, does not fit the student, or differs between the ranks.
        CheckpointError: Its checkpoint cannot be used.
        DataError: Its embeddings are damaged.
    """
    config.teacher_digest = None
    if config.teacher is None:
        return None
    settings = config.teacher
    teacher = parallel.together(lambda: _open(config, settings, source), "the teacher")
    parallel.check_same({"the teacher": teacher.digest}, "give all ranks the same set_teacher")
    if settings.kind == "cosine" and teacher.emb_dim != config.emb_dim:
        raise ConfigError(
            f"set_teacher({teacher.name}): its embeddings have {teacher.emb_dim} numbers and those of "
            f"set_emb_size({config.emb_dim}) do not; choose kind='relation', which compares any sizes, or "
            f"set_emb_size({teacher.emb_dim})"
        )
    config.teacher_digest = teacher.digest[:_DIGITS]
    logger.info("teacher %s, embedding size %d, %s", teacher.name, teacher.emb_dim, settings)
    return teacher


def check_place(teacher: Teaching) -> None:
    """Checks that there is a teacher where the settings say.

    Raises:
        ConfigError: There is none.
    """
    if isinstance(teacher.source, paddle.nn.Layer):
        return
    folder = Path(teacher.source)
    if not (holds_embeddings(folder) or is_checkpoint(folder) or (folder / MANIFEST).exists()):
        raise ConfigError(
            f"set_teacher({quoted(str(folder))}): holds no export, no checkpoint and no embeddings; name the folder of "
            "one, such as output/19"
        )


def _open(config: Config, settings: Teaching, source: Optional[Records]) -> Teacher:
    if isinstance(settings.source, paddle.nn.Layer):
        return _of_layer(config, settings)
    folder = Path(settings.source)
    check_place(settings)
    if holds_embeddings(folder):
        return _of_embeddings(config, settings, source, folder)
    export = open_export(folder)
    if export.image_shape != config.image_shape:
        raise ConfigError(
            f"set_teacher({quoted(str(folder))}): takes images of shape {list(export.image_shape)}, and "
            f"set_image_shape({list(config.image_shape)}) gives others; embed the training images with plsc predict, "
            "and name the folder of the embeddings"
        )
    if export.pixels.number != config.pixel_rule:
        logger.warning(
            "set_teacher(%s): was trained by pixel rule %d, and this training reads images by rule %d, which the "
            "teacher sees too; they differ for images with orientation, transparency or colour profiles: see "
            "set_pixel_rule",
            quoted(str(folder)),
            export.pixels.number,
            config.pixel_rule,
        )
    digest = export.network if export.checkpoint is not None and export.network else export.digest
    return Teacher(settings, str(folder), export.emb_dim, digest, run=export.run)


def _of_layer(config: Config, settings: Teaching) -> Teacher:
    layer = settings.source
    name = type(layer).__name__
    own = {id(one) for one in config.model.state_dict().values()} if config.model is not None else set()
    if layer is config.model or any(id(one) in own for one in layer.state_dict().values()):
        raise ConfigError(f"set_teacher({name}): shares weights with the model of set_model; give it a copy")
    emb_dim = build(layer, config.image_shape)
    return Teacher(settings, name, emb_dim, digest_of(layer), run=functools.partial(embed_batch, layer))


def _of_embeddings(config: Config, settings: Teaching, source: Optional[Records], folder: Path) -> Teacher:
    if source is None:
        raise ConfigError(
            f"set_teacher({quoted(str(folder))}): holds embeddings, which are found by the names of images, and those "
            "of train_reader have none; name an export or a checkpoint"
        )
    known = KnownImages(folder, source)
    if config.augmentation.mirror and not known.flip:
        raise ConfigError(
            f"set_teacher({quoted(str(folder))}): holds embeddings of images as they are, and training mirrors half of "
            "them; embed them with plsc predict --flip, which averages both, or call set_augmentation(mirror=False)"
        )
    return Teacher(settings, str(folder), known.emb_dim, known.digest, known=known)


def teacher_bytes(teacher: Optional[Teaching]) -> int:
    """Returns the size of a teacher's weights, in bytes; 0 without one, for embeddings, and for what is not found."""
    if teacher is None:
        return 0
    if isinstance(teacher.source, paddle.nn.Layer):
        return sum(int(np.prod(one.shape)) * one.element_size() for one in teacher.source.state_dict().values())
    folder = Path(teacher.source)
    if holds_embeddings(folder):
        return 0
    files = [place_of(folder) / BACKBONE] if is_checkpoint(folder) else list(folder.glob("inference.*"))
    return sum(path.stat().st_size for path in files if path.is_file())
