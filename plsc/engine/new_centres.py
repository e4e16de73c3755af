"""Class centres of classes that a trained head does not know: the mean embeddings of a few of their images.

Shapes: C classes that begin at their embeddings, D embedding, n images of a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple, Optional, Union

import numpy as np
import paddle

from plsc import checkpoint, parallel
from plsc.checkpoint import Checkpoint, HeadFiles
from plsc.config import Config
from plsc.data.class_names import find_names
from plsc.data.damaged import is_damage
from plsc.data.prefetch import prefetch
from plsc.data.records import Records
from plsc.data.transforms import decode, normalize
from plsc.errors import CheckpointError, ConfigError, DataError, counted
from plsc.heads import ClassifierHead, HeadGroup
from plsc.heads.bfloat16 import put_rows, tensor_like
from plsc.inference.networks import Network
from plsc.machine.names import class_title
from plsc.metrics.vectors import unit_rows

logger = logging.getLogger("plsc")

MOST_IMAGES = 16  # of a class; more of them change its mean little
_CLASSES = 256  # whose sums are held at a time, and then added over the ranks
_SAMPLE = 4096  # trained centres that say how long centres are
_READ_AHEAD = 2  # batches kept ready, in addition to those that the workers are preparing


class Scale(NamedTuple):
    """How long the centres of a head are, and their bias.

    The logit of a head with a margin is a cosine, so that the length of a centre only decides how fast training turns
    it. The logit of a softmax head grows with the length, and with the bias.

    Attributes:
        length: Length of a centre.
        bias: Bias of a class; None without one.
    """

    length: float
    bias: Optional[float] = None


class NewCentres(NamedTuple):
    """The classes of a training that are to begin at their embeddings.

    Attributes:
        classes: Their numbers over all heads, ascending, int64 [C].
        scale: What their centres are scaled to.
    """

    classes: np.ndarray
    scale: Scale


def take_over(
    config: Config, source: Optional[Checkpoint], head: Union[ClassifierHead, HeadGroup]
) -> tuple[list[str], Optional[NewCentres]]:
    """Loads the centres of the classes that both a checkpoint and the data name, whatever their numbers.

    Args:
        config: The settings, with a `head_init` that matches names.
        source: The checkpoint; None begins with weights that have no class centres.
        head: The head of the training.

    Returns:
        What was done, for the log, and what is left for `fill`: None leaves the other classes at random centres.

    Raises:
        CheckpointError: The checkpoint has no class centres, no names, or no name that the data has too.
        ConfigError: The data does not name its classes.
        DataError: Two classes have the same name.
    """
    from_embeddings = config.head_init == "from-embeddings"
    origins, reason = _origins(config, source, head.num_classes)
    done = [reason] if reason else []
    if source is not None and (origins >= 0).any():
        for number, part in enumerate(head.parts):
            own = origins[part.first : part.first + part.head.num_classes]
            done += checkpoint.load_named_head(source, part.head, own, number)
    classes = np.flatnonzero(origins < 0)
    done.append(_summary(origins, source, "begin at mean embeddings" if from_embeddings else "are fresh"))
    if not from_embeddings:
        return done, None
    return done, NewCentres(classes, scale_of(source, head.emb_dim))


def _origins(config: Config, source: Optional[Checkpoint], num_classes: int) -> tuple[np.ndarray, str]:
    """Returns the number of each class in the checkpoint, [num_classes], -1 for others; and why no class has one."""
    needs_names = config.head_init == "by-name"
    none = np.full(num_classes, -1, np.int64)
    if source is None or not (needs_names or source.meta["num_classes"]):
        return none, "it has no class centres"
    theirs, ours = source.meta.get("class_names", ()), config.class_names or ()
    if not theirs:
        problem = "records no class names, by which centres could be taken over"
        if needs_names and source.meta["num_classes"]:
            raise CheckpointError(f"{source.folder}: {problem}; set_head_init('keep-common') takes them by number")
        return none, f"it {problem}"
    if not ours:
        problem = "does not name its classes, by which centres could be taken over"
        if needs_names:
            raise ConfigError(
                f"set_head_init('by-name'): the data {problem}; name them with set_class_names or a classes.txt, or "
                "choose 'keep-common', which takes them by number"
            )
        return none, f"the data {problem}"
    origins = find_names(ours, theirs, str(source.folder))
    if needs_names and not (origins >= 0).any():
        raise CheckpointError(
            f"{source.folder}: has none of the classes that the data names, such as {ours[0]!r}; its first is "
            f"{theirs[0]!r}; use the same names, or begin with fresh centres by set_head_init('fresh')"
        )
    return origins, ""


def _summary(origins: np.ndarray, source: Optional[Checkpoint], others: str) -> str:
    kept = np.flatnonzero(origins >= 0)
    moved = int((origins[kept] != kept).sum())
    ignored = (source.meta["num_classes"] if source is not None else 0) - len(np.unique(origins[kept]))
    return (
        f"head: {len(kept):,} classes loaded by name, {moved:,} of which have another number now; "
        f"{len(origins) - len(kept):,} {others}; {ignored:,} of the checkpoint ignored"
    )


def scale_of(source: Optional[Checkpoint], emb_dim: int) -> Scale:
    """Returns the scale of the centres in a checkpoint, the same on every rank, which all call it.

    It is the median length and the mean bias of the first few thousand centres. Without any, it is the length of fresh
    ones.
    """

    def measure() -> Scale:
        if source is None or not source.meta["num_classes"]:
            return Scale(0.01 * emb_dim**0.5)
        count = min(source.meta["num_classes"], _SAMPLE)
        with HeadFiles(source) as files:
            lengths = [
                np.linalg.norm(part.astype("float32"), axis=-1).reshape(-1) for part in files.rows("weight", 0, count)
            ]
            has_bias = "bias" in files
            biases = [part.astype("float32") for part in files.rows("bias", 0, count)] if has_bias else []
        bias = float(np.concatenate(biases).mean()) if biases else None
        return Scale(float(np.median(np.concatenate(lengths))), bias)

    return parallel.from_rank_0(measure, "the scale of the class centres")


def fill(
    config: Config,
    source: Records,
    network: Network,
    head: Union[ClassifierHead, HeadGroup],
    new: NewCentres,
) -> None:
    """Sets the centres of classes to the mean embeddings of their images. A class without images keeps its centre.

    Args:
        config: The settings.
        source: The images of the training.
        network: The network, the same on every rank.
        head: The head, of which this rank may hold a part.
        new: The classes.

    Raises:
        DataError: An image cannot be read, or its embedding is not finite; on every rank.
    """
    first = 0
    missing: list[int] = []
    for directions in mean_directions(network, config, source, new.classes):
        classes = new.classes[first : first + len(directions)]
        first += len(directions)
        found = directions.any(axis=1)
        missing += classes[~found].tolist()
        for part in head.parts:
            _set_rows(part.head, classes[found] - part.first, directions[found], new.scale)
    if parallel.rank() == 0:
        begun = first - len(missing)
        logger.info("%s class centres begin at the mean embeddings of up to %d images each", f"{begun:,}", MOST_IMAGES)
        if missing:
            logger.warning(
                "%s have no image to begin at, such as %s, so their centres are random",
                counted(len(missing), "class"),
                class_title(missing[0], config.class_names or ()),
            )


@paddle.no_grad()
def _set_rows(head: ClassifierHead, classes: np.ndarray, directions: np.ndarray, scale: Scale) -> None:
    """Sets those of the classes that this rank holds, numbered from the head's first class.

    Of several rows of a class, the first is set, and the others stay random.
    """
    own = (classes >= head.lower) & (classes < head.upper)
    if head.weight is None or not own.any():
        return
    places = paddle.to_tensor(classes[own] - head.lower)
    rows = tensor_like(directions[own] * np.float32(scale.length), head.weight.dtype)
    if head.sub_centers > 1:
        of_classes = paddle.gather(head.weight, places)
        of_classes[:, 0] = rows
        rows = of_classes
    put_rows(head.weight, places, rows)
    if head.bias is not None and scale.bias is not None:
        head.bias.scatter_(places, paddle.full([int(own.sum())], scale.bias, head.bias.dtype))


def mean_directions(network: Network, config: Config, source: Records, classes: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the directions of the mean embeddings of classes, some [c, D] at a time, the same on every rank.

    All ranks call it, and share the images. The mean is that of embeddings of length 1. At most `MOST_IMAGES` images of
    a class are read, spread over all its images.

    Args:
        network: The network.
        config: Its `test_batch_size`, `num_workers`, `pixels` and `skip_damaged` are used.
        source: The images.
        classes: The classes, int64 [C].

    Yields:
        Vectors of length 1, float32, in the order of the classes; zeros for a class without images.

    Raises:
        DataError: An image cannot be read, or its embedding is not finite; on every rank.
    """
    images, places = parallel.together(lambda: _own_images(source, classes), "the images of the new classes")
    firsts = list(range(0, len(classes), _CLASSES))
    ends = np.searchsorted(places, [first + _CLASSES for first in firsts]).tolist()
    size = config.test_batch_size
    batches = [
        [slice(start, min(start + size, end)) for start in range(begin, end, size)]
        for begin, end in zip([0, *ends], ends)
    ]
    decoded = prefetch(
        lambda batch: _decode(source, images[batch], network, config),
        [batch for of_block in batches for batch in of_block],
        config.num_workers,
        config.num_workers + _READ_AHEAD,
    )
    try:
        for first, of_block in zip(firsts, batches):
            sums = np.zeros((min(_CLASSES, len(classes) - first), network.emb_dim), "float32")

            def add(of_block: Sequence[slice] = of_block, first: int = first, sums: np.ndarray = sums) -> None:
                for batch in of_block:
                    pixels, is_good = next(decoded)
                    if is_good.any():
                        np.add.at(sums, places[batch][is_good] - first, _embed(network, pixels, source, images[batch]))

            parallel.together(add, f"its images of the new classes from number {first} on")
            yield unit_rows(parallel.all_reduce_sum(paddle.to_tensor(sums)).numpy())
    finally:
        decoded.close()  # type: ignore[attr-defined]


def _own_images(source: Records, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns this rank's share of the images of classes, int64 [images], and which of the classes each shows."""
    labels, ranks, rank = source.labels(), parallel.world_size(), parallel.rank()
    if len(labels) < source.num_images:  # the rank has its own part of the data, and no other images
        return choose_images(labels, classes, -(-MOST_IMAGES // ranks))
    images, places = choose_images(labels, classes, MOST_IMAGES)
    return images[rank::ranks], places[rank::ranks]


def choose_images(labels: np.ndarray, classes: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Chooses images of classes, spread evenly over all images of each.

    Args:
        labels: The class of every image, [images].
        classes: The classes, int64 [C].
        most: Largest number of images of a class.

    Returns:
        The images, int64 [n], ordered by the place of their class in `classes`, which comes second, int64 [n].
    """
    place_of = np.full(max(labels.max(initial=0), classes.max(initial=0)) + 1, -1, np.int64)
    place_of[classes] = np.arange(len(classes))
    images = np.flatnonzero(place_of[labels] >= 0)
    places = place_of[labels[images]]
    order = np.argsort(places, kind="stable")
    images, places = images[order], places[order]
    counts = np.bincount(places, minlength=len(classes))
    count = counts[places]
    turn = np.arange(len(places)) - (np.cumsum(counts) - counts)[places]
    kept = np.minimum(count, most)
    is_chosen = (turn + 1) * kept // np.maximum(count, 1) > turn * kept // np.maximum(count, 1)
    return images[is_chosen], places[is_chosen]


def _decode(source: Records, images: np.ndarray, network: Network, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Returns the good images of a batch, normalised [n, C, H, W], and which of the batch they are."""
    pixels, is_good = [], np.ones(len(images), bool)
    for row, i in enumerate(images.tolist()):
        try:
            pixels.append(decode(source.read(i)[0], network.image_shape, partial(source.where, i), config.pixels))
        except DataError as problem:
            if not config.skip_damaged or not is_damage(problem):
                raise
            is_good[row] = False
            logger.warning("%s; the centre of its class is that of its other images", problem)
    return normalize(np.stack(pixels)) if pixels else np.empty(0, "float32"), is_good


def _embed(network: Network, pixels: np.ndarray, source: Records, images: np.ndarray) -> np.ndarray:
    """Returns the embeddings of images, scaled to length 1, [n, D] float32."""
    rows = network.embed(pixels)
    if not np.isfinite(rows).all():
        raise DataError(
            f"{source.where(int(images[0]))}: the embedding of this image, or of one after it, is not finite; begin "
            "with the weights of a sound training"
        )
    return unit_rows(rows)
