"""Forecasts the memory and the traffic of a training by arithmetic, before anything is allocated."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Optional

import paddle

from plsc.config import Config
from plsc.engine.average import averaged_tensors
from plsc.engine.teacher import teacher_bytes
from plsc.heads import shard_bounds
from plsc.heads.bfloat16 import Rounding
from plsc.heads.walk import chunk_rows, kept_fraction
from plsc.heads.workers import walking_threads
from plsc.machine.memory import size_text
from plsc.models.base_model import inputs_of
from plsc.models.modes import evaluating
from plsc.models.recompute import Recompute

_FLOAT, _BFLOAT16 = 4, 2
# Measured on CPUs (tests/benchmarks/plan.py): what the backward pass needs at a time on top of what forward has kept.
_BACKWARD = 1.10
_LIBRARIES = 80_000_000  # of Paddle's libraries, once they compute
# Paddle has one pair of hooks for all threads: a forward pass is measured only while no other thread trains.
_lock = threading.Lock()
_training_threads: list[int] = []


@dataclass(frozen=True)
class OptimizerSize:
    """The memory that an optimizer takes.

    Attributes:
        name: Its class.
        copies: The size of its state as a multiple of the size of the parameters; None if it is not known.
        moves_in_chunks: Whether it never needs the whole gradient of the head.
    """

    name: str
    copies: Optional[float]
    moves_in_chunks: bool = False


@dataclass(frozen=True)
class BackboneSize:
    """The sizes of a backbone, in bytes.

    Attributes:
        parameters: Trained parameters.
        statistics: Everything else the backbone holds.
        activations: What a forward pass keeps for the backward pass, per image; None if it is not known.
        averaged: What `set_ema` would average, in float32; None is everything.
    """

    parameters: int
    statistics: int
    activations: Optional[int]
    averaged: Optional[int] = None


@dataclass(frozen=True)
class Workload:
    """A training, as far as it decides about memory and traffic.

    Attributes:
        num_classes: Classes over all ranks.
        emb_dim: Size of the embedding.
        ranks: Number of ranks.
        batch: Images of a rank in one forward pass; `micro_batches` of them make a step.
        backbone: Sizes of the backbone.
        image_shape: Channels, height and width of an image.
        sharded: Whether each rank holds its own share of the classes, rather than all of them.
        has_bias: Whether the head has a bias.
        sample_ratio: Share of the classes that take part in a step.
        optimizer: What the optimizer takes.
        micro_batches: Batches that are accumulated in a step.
        num_workers: Threads that load images.
        threads: Threads that walk over the rows of the head.
        chunk: Rows of the head that are computed at a time; 0 chooses them as the head does.
        sub_centers: Rows of each class.
        has_average: Whether an average of the weights is kept.
        saves_in_background: Whether checkpoints are written from a copy of the state while training continues.
        process: Memory of the process before the training is set up, in bytes.
        on_cpu: Whether the ranks compute on CPUs.
        teacher: Weights of the teacher, in bytes.
        class_numbers: How many numbers each rank keeps for each class of all ranks: its weight, and its margin.
        head_dtype: The type in which the class centres and their momentum are kept.
    """

    num_classes: int
    emb_dim: int
    ranks: int
    batch: int
    backbone: BackboneSize
    image_shape: tuple[int, int, int] = (3, 112, 112)
    sharded: bool = True
    has_bias: bool = False
    sample_ratio: float = 1.0
    optimizer: OptimizerSize = OptimizerSize("Momentum", 1.0, moves_in_chunks=True)
    micro_batches: int = 1
    num_workers: int = 2
    threads: int = 1
    chunk: int = 0
    sub_centers: int = 1
    has_average: bool = False
    saves_in_background: bool = True
    process: int = 0
    on_cpu: bool = True
    teacher: int = 0
    class_numbers: int = 0
    head_dtype: str = "float32"

    @property
    def row_bytes(self) -> int:
        """Size of the weights of a class."""
        return (_BFLOAT16 if self.head_dtype == "bfloat16" else _FLOAT) * self.emb_dim + _FLOAT * self.has_bias

    @property
    def momentum_row_bytes(self) -> float:
        """Size of what the optimizer keeps for a class. Optimizers other than Momentum keep their state in float32."""
        copies = self.optimizer.copies or 0.0
        if self.optimizer.name == "Momentum":
            return copies * self.row_bytes
        return copies * _FLOAT * (self.emb_dim + self.has_bias)

    @property
    def rows(self) -> int:
        """Rows of the head that rank 0 holds, the most of any rank."""
        lower, upper = shard_bounds(self.num_classes, self.ranks, 0) if self.sharded else (0, self.num_classes)
        return (upper - lower) * self.sub_centers

    @property
    def head_batch(self) -> int:
        """Samples of a step that a rank computes logits for."""
        return self.batch * self.micro_batches * (self.ranks if self.sharded else 1)


def workload_of(
    config: Config, backbone: BackboneSize, *, optimizer: OptimizerSize, ranks: int, process: int, on_cpu: bool
) -> Workload:
    """Returns the workload of a training with these settings; see `Workload` for the arguments."""
    return Workload(
        num_classes=config.num_classes,
        emb_dim=config.emb_dim,
        ranks=ranks,
        batch=config.train_batch_size,
        backbone=backbone,
        image_shape=config.image_shape,
        sharded=config.is_sharded,
        has_bias=config.has_bias,
        sample_ratio=config.sample_ratio,
        optimizer=optimizer,
        micro_batches=config.gradient_accumulation,
        num_workers=config.num_workers,
        threads=walking_threads(),
        chunk=config.head_chunk,
        sub_centers=config.sub_centers,
        has_average=bool(config.ema),
        saves_in_background=config.background_save and bool(config.model_save_dir),
        process=process,
        on_cpu=on_cpu,
        teacher=teacher_bytes(config.teacher),
        class_numbers=(config.class_weights is not None) + (config.class_margins is not None),
        head_dtype=config.head_dtype,
    )


@dataclass(frozen=True)
class Forecast:
    """The memory and the traffic of each rank while training, in bytes.

    Attributes:
        head: By part: `weights`, `momentum` (all optimizer state), `gradient` (of optimizers that need it whole),
            `workspace`.
        backbone: By part: `weights`, `momentum`, `average` (of the weights), `gradients`, `buckets` (in which the
            ranks' gradients meet), `activations`.
        images: Batches that are decoded ahead.
        process: Python, Paddle and plsc themselves, once they compute.
        snapshot: Copy of the state, in host memory, while a checkpoint is written in the background.
        wire: What a rank sends in a step, by part.
        bytes_per_class: How much `total` grows with each class of this rank.
        ranks: Ranks that share the classes; 1 when every rank holds them all.
        num_classes: Classes over all ranks.
        on_cpu: Whether the ranks compute on CPUs.
        teacher: Weights of the teacher. Its activations are gone before the backbone makes those that are counted.
        unknown: What is not counted because its size is not known; '' if everything is counted.
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
    teacher: int = 0
    unknown: str = ""

    @property
    def head_bytes(self) -> int:
        """Size of the head."""
        return sum(self.head.values())

    @property
    def total(self) -> int:
        """Memory of the device; on a CPU that includes images, process and snapshot."""
        device = self.head_bytes + sum(self.backbone.values()) + self.teacher
        return device + self.images + self.process + self.snapshot if self.on_cpu else device

    def max_classes(self, memory: int) -> int:
        """Returns how many classes fit when the device of a rank has `memory` bytes."""
        rest = self.total - self.bytes_per_class * self.num_classes / self.ranks
        return max(0, int((memory - rest) / self.bytes_per_class) * self.ranks)

    def to_json(self) -> dict[str, Any]:
        """Returns every part and the sums, for JSON."""
        parts = {name: value for name, value in dataclasses.asdict(self).items() if name != "bytes_per_class"}
        return {**parts, "head_bytes_per_rank": self.head_bytes, "total_bytes_per_rank": self.total}

    def lines(self) -> list[str]:
        """Returns the forecast as lines of text."""
        head, backbone = (
            ", ".join(f"{name} {size_text(size)}" for name, size in part.items() if size)
            for part in (self.head, self.backbone)
        )
        rest = f"images {size_text(self.images)}, process {size_text(self.process)}"
        if self.snapshot:
            rest += f", copy of the state while it is saved {size_text(self.snapshot)}"
        wire = ", ".join(f"{name} {size_text(size)}" for name, size in self.wire.items())
        return [
            f"memory per rank {size_text(self.total)}{'' if self.on_cpu else ' on the device'}"
            + (f", without {self.unknown}, whose size is not known" if self.unknown else ""),
            f"  head {size_text(self.head_bytes)}: {head}",
            f"  backbone {size_text(sum(self.backbone.values()))}: {backbone}",
            *([f"  teacher {size_text(self.teacher)}: weights"] if self.teacher else []),
            f"  {'and' if self.on_cpu else 'in host memory'}: {rest}",
            f"sent by a rank in a step: {wire or 'nothing'}",
        ]


@contextlib.contextmanager
def training() -> Iterator[None]:
    """Announces that this thread trains; waits until another thread has measured its forward passes."""
    with _lock:
        _training_threads.append(threading.get_ident())
    try:
        yield
    finally:
        with _lock:
            _training_threads.remove(threading.get_ident())


def backbone_size(model: paddle.nn.Layer, image_shape: tuple[int, int, int], recompute: bool = False) -> BackboneSize:
    """Measures a model whose layers have been made, by two forward passes, of two and of three images.

    They run in evaluation mode and leave the model unchanged; a pass in training mode also keeps the masks of dropout.
    While another thread trains, nothing is measured, and the activations are left unknown.

    Args:
        model: The model.
        image_shape: Shape of one image, (C, H, W).
        recompute: Whether its parts are computed again in the backward pass. Their inputs are kept then, and while a
            part is computed again, what it keeps, with the gradients; the largest part counts.
    """
    parameters = sum(_bytes(p) for p in model.parameters() if not p.stop_gradient)
    everything = sum(_bytes(tensor) for tensor in model.state_dict().values())
    with _lock:
        alone = all(thread == threading.get_ident() for thread in _training_threads)
        activations = _activations(model, image_shape, recompute) if alone else None
    averaged = _FLOAT * sum(math.prod(tensor.shape) for tensor in averaged_tensors(model).values())
    return BackboneSize(parameters, everything - parameters, activations, averaged)


def _activations(model: paddle.nn.Layer, image_shape: tuple[int, int, int], recompute: bool) -> int:
    """Returns what a forward pass of one image keeps for the backward pass, in bytes."""
    with evaluating(model):
        kept = [_kept_by_forward(model, image_shape, images, recompute) for images in (2, 3)]
    return kept[1] - kept[0]


def forecast(workload: Workload) -> Forecast:
    """Returns the forecast of a training.

    With q = num_classes / ranks rows on a rank (all classes when the head is not sharded; k times as many with k
    sub-centres), embedding size D, global batch B, chunk C and T threads, the head holds 4 q D bytes of weights, as
    much momentum, and a workspace of about 4 T C (3 D + 4 B) + 4 B D (6 + 2 T) bytes. Sampling keeps up to q D / 4
    bytes of products in addition. In bfloat16, weights and momentum take 2 q D bytes each. A state of the optimizer
    whose size is not known counts as nothing.
    """
    copies = workload.optimizer.copies or 0.0
    weights, size = workload.rows * workload.row_bytes, workload.backbone.parameters
    averaged = workload.backbone.averaged
    averaged = size + workload.backbone.statistics if averaged is None else averaged
    head = {
        "weights": weights,
        "momentum": int(workload.rows * workload.momentum_row_bytes),
        # as it is summed, and as it is given to Paddle's optimizer
        "gradient": 0 if workload.optimizer.moves_in_chunks else 2 * weights,
        "workspace": _workspace(workload),
    }
    backbone = {
        "weights": size + workload.backbone.statistics,
        "momentum": int(size * copies),
        "average": averaged * workload.has_average,
        "gradients": size,
        "buckets": size if workload.ranks > 1 else 0,
        "activations": int((workload.backbone.activations or 0) * workload.batch * _BACKWARD),
    }
    state = head["weights"] + head["momentum"] + sum(backbone[name] for name in ("weights", "momentum", "average"))
    images_ahead = (workload.num_workers + 2) * workload.batch
    return Forecast(
        head=head,
        backbone=backbone,
        images=images_ahead * math.prod(workload.image_shape) * _FLOAT,
        process=workload.process + _LIBRARIES,
        snapshot=state if workload.saves_in_background else 0,
        wire=_wire(workload, weights),
        bytes_per_class=_bytes_per_class(workload),
        ranks=workload.ranks if workload.sharded else 1,
        num_classes=workload.num_classes,
        on_cpu=workload.on_cpu,
        teacher=workload.teacher,
        unknown=" and ".join(_unknown(workload)),
    )


def _unknown(workload: Workload) -> list[str]:
    """Returns what a forecast cannot count."""
    state = [] if workload.optimizer.copies is not None else [f"the state of {workload.optimizer.name}"]
    return state if workload.backbone.activations is not None else [*state, "the activations of the backbone"]


def advice(workload: Workload, memory: int, one_machine: bool) -> list[str]:
    """Returns what to change so that a training that does not fit does.

    Args:
        workload: The training.
        memory: Memory of a rank's device, or of the one machine that runs all ranks, in bytes.
        one_machine: Whether the ranks share one machine.
    """

    def fits(ranks: int, batch: int) -> bool:
        total = forecast(dataclasses.replace(workload, ranks=ranks, batch=batch)).total
        return total * (ranks if one_machine else 1) <= memory

    lines = []
    smaller = workload.batch // 2
    while smaller and not fits(workload.ranks, smaller):
        smaller //= 2
    if smaller:
        lines.append(
            f"it does not fit; it would with a batch of {smaller} per rank (set_gradient_accumulation keeps the step)"
        )
    more = workload.ranks * 2
    while not one_machine and more <= 1 << 16 and not fits(more, workload.batch):
        more *= 2
    if not one_machine and more <= 1 << 16:
        lines.append(f"it {'also would' if lines else 'does not fit; it would'} on {more} ranks")
    return lines or [
        "it does not fit, whatever the batch: take fewer classes, a smaller embedding, more memory"
        + (" or more machines" if one_machine else "")
    ]


def _workspace(workload: Workload) -> int:
    """Returns what the head needs for a step besides its weights and their momentum, in bytes."""
    rows, emb_dim, batch, threads = workload.rows, workload.emb_dim, workload.head_batch, workload.threads
    chunk = min(workload.chunk or chunk_rows(batch, emb_dim, on_cpu=workload.on_cpu), max(rows, 1))
    is_sampled = workload.sample_ratio < 1
    sampled_rows = math.ceil(workload.sample_ratio * rows) if is_sampled else rows
    size = _FLOAT * threads * chunk * (3 * emb_dim + 4 * batch)
    size += _FLOAT * batch * emb_dim * (6 + 2 * threads)
    if workload.head_dtype == "bfloat16":  # a chunk and its momentum in float32, and the numbers of a rounding
        numbers = Rounding.rows_of_numbers(chunk, threads, workload.on_cpu)
        size += _FLOAT * emb_dim * (2 * threads * chunk + numbers)
    size += _FLOAT * sampled_rows  # inverse norms
    size += _FLOAT * workload.num_classes * workload.class_numbers
    if is_sampled:  # row numbers, and products that are kept (softmax, which has a bias, keeps none)
        size += 24 * sampled_rows
        kept = 0.0 if workload.has_bias else kept_fraction(rows, sampled_rows, emb_dim, batch)
        size += int(_FLOAT * sampled_rows * batch * kept)
    return size


def _bytes_per_class(workload: Workload) -> float:
    """Returns how much the total grows with each class of a rank."""
    is_copied = workload.saves_in_background and workload.on_cpu
    size: float = (workload.row_bytes + workload.momentum_row_bytes) * (1 + is_copied)
    size += workload.row_bytes * 2 * (not workload.optimizer.moves_in_chunks)
    numbers = _FLOAT * workload.class_numbers * (workload.ranks if workload.sharded else 1)  # of a class, not of a row
    if workload.sample_ratio >= 1:
        return workload.sub_centers * (size + _FLOAT) + numbers
    products = 0.0 if workload.has_bias else min(workload.sample_ratio * workload.head_batch, workload.emb_dim / 16)
    return workload.sub_centers * (size + _FLOAT * (7 * workload.sample_ratio + products)) + numbers


def _wire(workload: Workload, head: int) -> dict[str, int]:
    """Returns what a rank sends: a gather passes each part on to the next rank, a sum is a ring of two rounds.

    Args:
        workload: The training.
        head: Size of the head's weights on a rank, in bytes.
    """
    ranks, batch, emb_dim = workload.ranks, workload.head_batch, workload.emb_dim
    if ranks == 1:
        return {}
    around, twice = (ranks - 1) / ranks, 2 * (ranks - 1) / ranks
    parts: dict[str, float] = {"backbone gradients": twice * workload.backbone.parameters}
    if workload.sharded:
        parts["embeddings"] = around * _FLOAT * batch * emb_dim
        parts["embedding gradients"] = twice * _FLOAT * batch * emb_dim
        parts["labels and sums"] = around * 8 * batch + twice * _FLOAT * 2 * batch
    else:
        parts["head gradient"] = twice * head
    return {name: int(size) for name, size in parts.items()}


def _kept_by_forward(
    model: paddle.nn.Layer, image_shape: tuple[int, int, int], images: int, recompute: bool = False
) -> int:
    """Returns how many bytes a forward pass keeps for the backward pass, counting each tensor once."""
    kept: list[dict[int, Any]] = [{}]  # of the whole pass, and of the part that runs
    of_parts: list[dict[int, int]] = [{}]  # their sizes

    def pack(tensor: paddle.Tensor) -> int:
        kept[-1][tensor.data_ptr()] = tensor
        return 0  # Paddle never frees what is returned here

    def run(function: Callable[..., Any], layers: Any, input: paddle.Tensor, *others: Any) -> Any:
        kept.append({})
        output = function(input, *others)
        of_part = kept.pop()
        if not getattr(output, "stop_gradient", False):  # A frozen part is never computed again.
            pack(input)
        of_parts.append({pointer: _bytes(one) for pointer, one in of_part.items() if pointer not in kept[-1]})
        return output

    parts = Recompute(model).active(run) if recompute else contextlib.nullcontext()
    with paddle.autograd.saved_tensors_hooks(pack, lambda number: None), parts:
        output = model(*inputs_of(model, paddle.zeros([images, *image_shape]), paddle.zeros([images], dtype="int64")))
    own = {tensor.data_ptr() for tensor in model.state_dict().values()}
    sizes = [{pointer: _bytes(tensor) for pointer, tensor in kept[0].items()}, *of_parts]
    whole, *parts_alone = (sum(size for pointer, size in one.items() if pointer not in own) for one in sizes)
    del output
    # While a part is computed again, there are also the gradients of what it keeps.
    return whole + 2 * max(parts_alone)


def _bytes(tensor: paddle.Tensor) -> int:
    return int(math.prod(tensor.shape)) * tensor.element_size()
