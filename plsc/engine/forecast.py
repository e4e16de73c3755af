"""What a training will take of memory and of the wire, by arithmetic, before anything is allocated."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

import paddle

from plsc.errors import ConfigError
from plsc.heads import shard_bounds
from plsc.heads.walk import chunk_rows
from plsc.models.base_model import inputs_of

_FLOAT = 4
# Measured on CPUs (tests/benchmarks/plan.py): what backward needs at a time beside what forward has kept.
_BACKWARD = 1.10
_LIBRARIES = 80_000_000  # of Paddle's libraries, once they compute
_OPTIMIZER_COPIES = {"SGD": 0, "Momentum": 1, "Adagrad": 1, "RMSProp": 3, "Adam": 2, "AdamW": 2, "Lamb": 2, "Adamax": 2}
_MOVED_IN_CHUNKS = ("SGD", "Momentum")


@dataclass(frozen=True)
class BackboneSize:
    """Bytes a backbone takes.

    Attributes:
        parameters: of its trained parameters.
        statistics: of all else it holds.
        activations: kept by a forward pass for the backward pass, per image.
    """

    parameters: int
    statistics: int
    activations: int


@dataclass(frozen=True)
class Forecast:
    """Bytes per rank while training.

    Attributes:
        head: by part: `weights`, `momentum` (all optimizer state), `gradient` (of optimizers that need it whole),
            `workspace`.
        backbone: by part: `weights`, `momentum`, `gradients`, `buckets` (in which the ranks' gradients meet),
            `activations`.
        images: batches decoded ahead.
        process: of Python, Paddle and plsc themselves, once they compute.
        snapshot: of the state, in host memory, while a checkpoint is written in the background.
        wire: sent by a rank in a step, by part.
        bytes_per_class: how `total` grows with this rank's classes.
        ranks: that share the classes: 1 when every rank holds them all.
    """

    head: dict[str, int]
    backbone: dict[str, int]
    images: int
    process: int
    snapshot: int
    wire: dict[str, int]
    bytes_per_class: float
    ranks: int
    num_classes: int
    on_cpu: bool

    @property
    def head_bytes(self) -> int:
        """Of the head."""
        return sum(self.head.values())

    @property
    def total(self) -> int:
        """On the device: all, where the device is a CPU; without images, process and snapshot elsewhere."""
        device = self.head_bytes + sum(self.backbone.values())
        return device + self.images + self.process + self.snapshot if self.on_cpu else device

    def max_classes(self, memory: int) -> int:
        """Classes that fit when a rank's device has `memory` bytes."""
        rest = self.total - self.bytes_per_class * self.num_classes / self.ranks
        return max(0, int((memory - rest) / self.bytes_per_class) * self.ranks)

    def to_json(self) -> dict[str, Any]:
        """All of it, and the sums."""
        parts = {name: value for name, value in dataclasses.asdict(self).items() if name != "bytes_per_class"}
        return {**parts, "head_bytes_per_rank": self.head_bytes, "total_bytes_per_rank": self.total}

    def lines(self) -> list[str]:
        """For people."""
        head, backbone = (
            ", ".join(f"{name} {size_text(size)}" for name, size in part.items() if size)
            for part in (self.head, self.backbone)
        )
        rest = f"images {size_text(self.images)}, process {size_text(self.process)}"
        if self.snapshot:
            rest += f", copy of the state while it is saved {size_text(self.snapshot)}"
        wire = ", ".join(f"{name} {size_text(size)}" for name, size in self.wire.items())
        return [
            f"memory per rank {size_text(self.total)}{'' if self.on_cpu else ' on the device'}",
            f"  head {size_text(self.head_bytes)}: {head}",
            f"  backbone {size_text(sum(self.backbone.values()))}: {backbone}",
            f"  {'and' if self.on_cpu else 'in host memory'}: {rest}",
            f"sent by a rank in a step: {wire or 'nothing'}",
        ]


def backbone_size(model: paddle.nn.Layer, image_shape: tuple[int, int, int]) -> BackboneSize:
    """Measures a model whose layers are made, by two forward passes of two and of three images.

    They are passes of a test, which leave a model as it is; what one of training keeps besides is a mask of dropout.
    """
    was_training = model.training
    model.eval()
    try:
        kept = [_kept_by_forward(model, image_shape, images) for images in (2, 3)]
    finally:
        if was_training:
            model.train()
    parameters = sum(_bytes(p) for p in model.parameters() if not p.stop_gradient)
    everything = sum(_bytes(tensor) for tensor in model.state_dict().values())
    return BackboneSize(parameters, everything - parameters, kept[1] - kept[0])


def forecast(
    num_classes: int,
    emb_dim: int,
    ranks: int,
    batch: int,
    backbone: BackboneSize,
    image_shape: tuple[int, int, int] = (3, 112, 112),
    sharded: bool = True,
    has_bias: bool = False,
    sample_ratio: float = 1.0,
    optimizer: str = "Momentum",
    micro_batches: int = 1,
    num_workers: int = 2,
    threads: int = 1,
    chunk: int = 0,
    saves_in_background: bool = True,
    process: int = 0,
    on_cpu: bool = True,
) -> Forecast:
    """The forecast of one training.

    With q = num_classes / ranks rows on a rank (all of them when not sharded), D the embedding, B the batch of all ranks,
    C the chunk and T the threads: the head holds 4 q D bytes of weights, as much of momentum, and a workspace of about
    4 T C (3 D + 4 B) + 4 B D (6 + 2 T).

    Args:
        batch: images of a rank in one forward pass; `micro_batches` of them make a step.
        optimizer: Paddle's name; SGD and Momentum move the rows in chunks, others need their whole gradient.
        process: bytes the process takes before anything is made.

    Raises:
        ConfigError: an optimizer whose state is not known.
    """
    if optimizer not in _OPTIMIZER_COPIES:
        raise ConfigError(
            f"optimizer {optimizer!r}: its state is not known; choose from {', '.join(_OPTIMIZER_COPIES)}"
        )
    copies, in_chunks = _OPTIMIZER_COPIES[optimizer], optimizer in _MOVED_IN_CHUNKS
    lower, upper = shard_bounds(num_classes, ranks, 0) if sharded else (0, num_classes)
    rows, everyone = upper - lower, batch * ranks if sharded else batch
    of_row = _FLOAT * (emb_dim + has_bias)
    chunk = min(chunk or chunk_rows(everyone * micro_batches, emb_dim, on_cpu=on_cpu), max(rows, 1))
    own_rows = rows if sample_ratio >= 1 else math.ceil(sample_ratio * rows)
    workspace = _FLOAT * threads * chunk * (3 * emb_dim + 4 * everyone * micro_batches)
    workspace += _FLOAT * everyone * micro_batches * emb_dim * (6 + 2 * threads)
    workspace += _FLOAT * own_rows + (0 if sample_ratio >= 1 else 24 * own_rows)  # inverse norms; row numbers
    head = {
        "weights": rows * of_row,
        "momentum": rows * of_row * copies,
        "gradient": 0 if in_chunks else 2 * rows * of_row,  # as it is summed, and as Paddle's optimizer is given it
        "workspace": workspace,
    }
    size = backbone.parameters
    parts = {
        "weights": size + backbone.statistics,
        "momentum": size * copies,
        "gradients": size,
        "buckets": size if ranks > 1 else 0,
        "activations": int(backbone.activations * batch * _BACKWARD),
    }
    copied = saves_in_background and on_cpu
    per_class: float = of_row * ((1 + copies) * (1 + copied) + 2 * (not in_chunks))
    per_class += _FLOAT * (1.0 if sample_ratio >= 1 else 7 * sample_ratio)
    state = head["weights"] + head["momentum"] + parts["weights"] + parts["momentum"]
    return Forecast(
        head,
        parts,
        images=(num_workers + 2) * batch * math.prod(image_shape) * _FLOAT,
        process=process + _LIBRARIES,
        snapshot=state if saves_in_background else 0,
        wire=_wire(ranks, sharded, everyone * micro_batches, emb_dim, rows * of_row, size),
        bytes_per_class=per_class,
        ranks=ranks if sharded else 1,
        num_classes=num_classes,
        on_cpu=on_cpu,
    )


def advice(make: Callable[..., Forecast], ranks: int, batch: int, memory: int, one_machine: bool) -> list[str]:
    """What to change so that it fits.

    Args:
        make: (ranks, batch) -> the forecast.
        memory: bytes of a rank's device, or of the one machine all ranks are on.
    """

    def fits(ranks: int, batch: int) -> bool:
        return make(ranks=ranks, batch=batch).total * (ranks if one_machine else 1) <= memory

    lines = []
    smaller = batch // 2
    while smaller and not fits(ranks, smaller):
        smaller //= 2
    if smaller:
        lines.append(
            f"it does not fit; it would with a batch of {smaller} per rank (set_gradient_accumulation keeps the step)"
        )
    more = ranks * 2
    while not one_machine and more <= 1 << 16 and not fits(more, batch):
        more *= 2
    if not one_machine and more <= 1 << 16:
        lines.append(f"it {'also would' if lines else 'does not fit; it would'} on {more} ranks")
    return lines or [
        "it does not fit, whatever the batch: take fewer classes, a smaller embedding, more memory"
        + (" or more machines" if one_machine else "")
    ]


def _wire(ranks: int, sharded: bool, everyone: int, emb_dim: int, head: int, backbone: int) -> dict[str, int]:
    """Bytes a rank sends, where a gather passes each part on to the next rank and a sum is a ring of two rounds."""
    if ranks == 1:
        return {}
    around, twice = (ranks - 1) / ranks, 2 * (ranks - 1) / ranks
    parts: dict[str, float] = {"backbone gradients": twice * backbone}
    if sharded:
        parts["embeddings"] = around * _FLOAT * everyone * emb_dim
        parts["embedding gradients"] = twice * _FLOAT * everyone * emb_dim
        parts["labels and sums"] = around * 8 * everyone + twice * _FLOAT * 2 * everyone
    else:
        parts["head gradient"] = twice * head
    return {name: int(size) for name, size in parts.items()}


def _kept_by_forward(model: paddle.nn.Layer, image_shape: tuple[int, int, int], images: int) -> int:
    """Bytes a forward pass keeps for backward, each tensor once."""
    kept: dict[int, Any] = {}

    def pack(tensor: paddle.Tensor) -> int:
        kept[tensor.data_ptr()] = tensor
        return 0  # Paddle never lets go of what is returned here

    with paddle.autograd.saved_tensors_hooks(pack, lambda number: None):
        output = model(*inputs_of(model, paddle.zeros([images, *image_shape]), paddle.zeros([images], dtype="int64")))
    own = {tensor.data_ptr() for tensor in model.state_dict().values()}
    size = sum(_bytes(tensor) for pointer, tensor in kept.items() if pointer not in own)
    del output
    return size


def _bytes(tensor: paddle.Tensor) -> int:
    return int(math.prod(tensor.shape)) * tensor.element_size()


def host_memory() -> Optional[int]:
    """Of this machine; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def size_text(size: float) -> str:
    """Bytes for people: 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
