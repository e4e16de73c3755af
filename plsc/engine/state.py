"""What a run must save to resume as if it had never stopped, and how it is loaded again."""

from __future__ import annotations

import dataclasses
import itertools
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Union

import numpy as np
import paddle

from plsc import checkpoint, optim, parallel
from plsc.amp import DynamicLossScaler
from plsc.checkpoint import Checkpoint
from plsc.config import Config
from plsc.data.class_names import CLASSES
from plsc.data.pixels import PILLOW_RULE
from plsc.data.sources import takes_class_list
from plsc.engine.average import Average
from plsc.engine.callbacks import Callback, load_states, states_of
from plsc.engine.progress import Progress
from plsc.errors import CheckpointError, counted, reason_of
from plsc.heads import ClassifierHead, HeadGroup, shard_bounds
from plsc.machine import random_state
from plsc.machine.names import quoted
from plsc.version import __version__

# What the checkpoints of earlier versions call a built-in model, and its name now.
_RENAMED_MODEL = ("ResNet101", "ResNet100")


def first_difference(names: Sequence[str], others: Sequence[str]) -> Optional[int]:
    """Returns the first class whose name differs, None if there is none, or if one list is empty: names are unknown."""
    if not names or not others:
        return None
    return next((k for k, (one, other) in enumerate(itertools.zip_longest(names, others)) if one != other), None)


@dataclass
class TrainingState:
    """The state of a training, which its checkpoints hold.

    Attributes:
        config: The settings.
        backbone: The model.
        head: This rank's class centres, of one head or of several.
        optimizer: Moves `backbone`, and the parameters of `head` that `row_updates` does not move.
        row_updates: Move the parameters of `head` in chunks, by name; empty where the optimizer moves them.
        scaler: The loss scale.
        steps_per_epoch: Steps in an epoch; None when a reader cannot tell.
        callbacks: The callbacks whose states are saved too.
        run: Identifies the run; a resumed run keeps it.
        began: When the run began, in seconds since 1970, or later: it orders the runs of a folder, whatever clocks say.
        launches: The names of the `plsc run` commands that have trained it; a restart resumes what its command trained.
        progress: How far the run has come.
        rng: Random state of this rank at the beginning of the epoch.
        schedules: The learning rates of the optimizer.
        average: The average of the backbone's weights.
    """

    config: Config
    backbone: paddle.nn.Layer
    head: Union[ClassifierHead, HeadGroup]
    optimizer: paddle.optimizer.Optimizer
    row_updates: Mapping[str, optim.RowMover]
    scaler: DynamicLossScaler
    steps_per_epoch: Optional[int]
    callbacks: Sequence[Callback] = ()
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    began: float = 0.0
    launches: Sequence[str] = ()
    progress: Progress = field(default_factory=Progress)
    rng: dict[str, Any] = field(default_factory=random_state.capture)
    schedules: optim.Schedules = field(init=False)
    average: Average = field(init=False)

    def __post_init__(self) -> None:
        self.schedules = optim.Schedules(self.optimizer, self.config.with_test)
        self.average = Average(self.backbone, self.config.ema)

    def begin_epoch(self) -> None:
        """Remembers the random state that a reader finds in this epoch, and averages what is trained by now."""
        self.rng = random_state.capture()
        self.average.follow()

    def files(self, leads: Optional[bool] = None) -> dict[str, dict[str, Union[np.ndarray, checkpoint.Stream]]]:
        """Returns what this rank writes: {file: {tensor: array}}; on a CPU the arrays share the memory of the tensors.

        Args:
            leads: Whether this rank also writes what is the same on every rank; None lets rank 0 alone do so.
        """
        leads = parallel.rank() == 0 if leads is None else leads
        files: dict[str, dict[str, Union[np.ndarray, checkpoint.Stream]]] = {}
        accumulators = self._accumulators()
        if self.head.sharded or leads:
            shards, shard = (parallel.world_size(), parallel.rank()) if self.head.sharded else (1, 0)
            for number, part in enumerate(self.head.parts):
                own = self._head_accumulators(accumulators, part.prefix)
                files[checkpoint.head_file(number * shards + shard)] = _head_tensors(part.head, own)
        if leads:
            state = self.backbone.state_dict()
            files[checkpoint.BACKBONE] = {name: checkpoint.host_array(tensor) for name, tensor in state.items()}
            if self.average.decay:  # also where nothing is averaged, because all is frozen
                averages = self.average.values()
                files[checkpoint.AVERAGE] = {name: checkpoint.host_array(one) for name, one in averages.items()}
            files[checkpoint.OPTIMIZER] = {
                f"{parameter}/{name}": checkpoint.host_array(tensor)
                for parameter, tensors in self._backbone_accumulators(accumulators).items()
                for name, tensor in tensors.items()
            }
        return files

    def meta(self) -> dict[str, Any]:
        """Returns what `meta.json` records."""
        config, head, progress = self.config, self.head, self.progress
        accumulators = self._accumulators()
        sizes = [part.head.num_classes for part in head.parts]
        shards = parallel.world_size() if head.sharded else 1
        bounds = [shard_bounds(size, shards, rank) for size in sizes for rank in range(shards)]
        return {
            "plsc": __version__,
            "paddle": paddle.__version__,
            "run": self.run,
            "began": self.began,
            "launches": list(self.launches),
            # the epoch of the last step
            "epoch": progress.epoch if progress.batch else max(0, progress.epoch - 1),
            "step": progress.step,
            "num_classes": head.num_classes,
            **({"heads": sizes} if len(sizes) > 1 else {}),
            **({"class_names": list(config.class_names)} if config.class_names else {}),
            "emb_dim": head.emb_dim,
            **({"sub_centers": config.sub_centers} if config.sub_centers > 1 else {}),
            "loss_type": config.loss_type,
            "sharded": head.sharded,
            **config.image_record(),
            "model": config.model_name if config.model is None else type(config.model).__name__,
            "optimizer": type(self.optimizer).__name__,
            "trainable": config.trainable.text,
            "rate_factors": config.rates_of,
            "ranks": parallel.world_size(),
            "seed": config.seed,
            "sampler": config.drawing,
            "margin": config.margin_and_scale,
            "loss_terms": config.loss_terms,
            "sample_ratio": config.sample_ratio,
            "gradient_clip": config.gradient_clip,
            "shuffle": config.data_shuffle,
            "set_weights": None if config.set_weights is None else list(config.set_weights),
            "data": config.data_digest,
            "teacher": config.teacher_digest,
            "teaching": None if config.teacher is None else str(config.teacher),
            "batch_per_rank": config.batch_per_rank,
            "steps_per_epoch": self.steps_per_epoch,
            "learning_rate": optim.rate_of(self.optimizer),
            "schedule": self.schedules.state(),
            **self.average.record(),
            "loss_scaling": self.scaler.state(),
            "skipped_steps": progress.skipped,
            "sampling_step": head.next_step,
            "progress": dataclasses.asdict(progress),
            "callbacks": states_of(self.callbacks),
            "test": None if progress.batch else progress.test,
            "dtype": "float32",
            "head_dtype": config.head_dtype,
            "shapes": {name: list(tensor.shape) for name, tensor in self.backbone.state_dict().items()},
            "head_rows": [upper - lower for lower, upper in bounds],
            "by_rows": self._names_by_rows(accumulators),
            "accumulators": {name: sorted(tensors) for name, tensors in accumulators.items()},
        }

    def rank_rng(self) -> dict[str, Any]:
        """Returns the random state of this rank that a checkpoint keeps.

        With a reader it is that at the beginning of the epoch, because a resumed run reads the epoch from its
        beginning.
        """
        return self.rng if self.config.train_reader is not None else random_state.capture()

    def load(self, source: Checkpoint) -> None:
        """Resumes from a checkpoint.

        Raises:
            DamagedError: A file is damaged.
            CheckpointError: The checkpoint does not fit the settings.
        """
        if "progress" not in source.meta:
            raise CheckpointError(
                f"{source.folder}: no training has saved this checkpoint, so there is none to resume; begin with its "
                "weights by set_checkpoint_dir"
            )
        self._check_classes(source)
        self._check_teacher(source)
        self._check_sub_centers(source)
        self._check_head_dtype(source)
        checkpoint.load_backbone(source, self.backbone, "plain")
        self.average.load(source)
        checkpoint.check_heads(source, len(self.head.parts))
        for number, part in enumerate(self.head.parts):
            checkpoint.load_head(source, part.head, number)
        self._create_accumulators(source)
        accumulators = self._accumulators()
        checkpoint.load_optimizer(source, self._backbone_accumulators(accumulators))
        for number, part in enumerate(self.head.parts):
            own = self._head_accumulators(accumulators, part.prefix)
            checkpoint.load_head_optimizer(source, part.head, own, number)
        meta, ranks = source.meta, parallel.world_size()
        try:
            progress = Progress(**meta["progress"])
            self.schedules.load(meta["schedule"])
            self.scaler.load(meta["loss_scaling"])
            self.head.next_step = int(meta["sampling_step"])
            if len(meta["rng"]) == ranks:
                self.rng = meta["rng"][parallel.rank()]
                random_state.restore(self.rng)
            seen = progress.batch * int(meta["batch_per_rank"]) * int(meta["ranks"])
            self.run = str(meta["run"])
            states = dict(meta["callbacks"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as problem:
            raise CheckpointError(
                f"{source.folder}: this checkpoint cannot be resumed ({reason_of(problem)}); start from "
                "its weights with set_checkpoint_dir"
            ) from None
        same_batches = (meta["batch_per_rank"], meta["ranks"]) == (self.config.batch_per_rank, ranks)
        if self.steps_per_epoch is None and same_batches:
            self.steps_per_epoch = meta.get("steps_per_epoch")  # counted before the run was stopped
        kept: dict[str, Any] = {}
        if "pixel_rule" not in self.config.given:
            kept["pixel_rule"] = meta.get("pixel_rule", PILLOW_RULE)
        if self.config.class_names is None and "class_names" in meta:
            kept["class_names"] = tuple(meta["class_names"])
        self.config = dataclasses.replace(self.config, **kept)
        progress.batch = seen // (self.config.batch_per_rank * ranks)
        self.progress = progress
        load_states(self.callbacks, states)

    def _check_classes(self, source: Checkpoint) -> None:
        """Checks that the data numbers its classes as it did for the checkpoint. Names of `set_class_names` may differ.

        Raises:
            CheckpointError: It does not.
        """
        if "class_names" in self.config.given:
            return
        number = first_difference(source.meta.get("class_names", ()), self.config.class_names or ())
        if number is not None:
            was, now = (
                quoted(names[number]) if number < len(names) else "missing"
                for names in (source.meta["class_names"], self.config.class_names or ())
            )
            copy = ""
            if not self.config.remote_data and takes_class_list(self.config.dataset_dir, self.config.data_format):
                copy = (
                    f", or copy {source.folder.parent / CLASSES}, which fixes the numbers, to {self.config.dataset_dir}"
                )
            raise CheckpointError(
                f"{source.folder}: class {number} was {was} in the run, and is {now} in the data now, so the numbers "
                f"of classes have changed; restore the data{copy}; to train on other classes, start a new run with "
                "set_checkpoint_dir and set_head_init('by-name')"
            )

    def _check_teacher(self, source: Checkpoint) -> None:
        """Checks that the run has the teacher that it had.

        Raises:
            CheckpointError: It does not.
        """
        was, now = source.meta.get("teacher"), self.config.teacher_digest
        if was != now:
            words = [f"the teacher {one}" if one else "no teacher" for one in (was, now)]
            raise CheckpointError(
                f"{source.folder}: the run had {words[0]}, and set_teacher gives it {words[1]}; restore the call and "
                "the teacher, or start a new run from these weights with set_checkpoint_dir"
            )

    def _check_sub_centers(self, source: Checkpoint) -> None:
        """Checks that each class has as many rows as it had.

        Raises:
            CheckpointError: It has more or fewer.
        """
        if source.sub_centers != self.config.sub_centers:
            raise CheckpointError(
                f"{source.folder}: the run had {counted(source.sub_centers, 'row')} for each class, and "
                f"set_sub_centers says {self.config.sub_centers}; restore the call, or start a new run from these "
                "weights with set_checkpoint_dir"
            )

    def _check_head_dtype(self, source: Checkpoint) -> None:
        """Checks that the run keeps its class centres in the type in which it kept them.

        Raises:
            CheckpointError: It does not.
        """
        was, now = source.meta.get("head_dtype", "float32"), self.config.head_dtype
        if was != now:
            raise CheckpointError(
                f"{source.folder}: the run kept its class centres in {was}, and set_head_dtype says {now}; restore the "
                f"call, or write a copy to resume from with plsc convert-checkpoint --head-dtype {now}"
            )

    def differences(self, source: Checkpoint) -> list[str]:
        """Returns the differences that keep the run from repeating, to the last bit, the one that was stopped."""
        now = self.meta()
        names = {
            "ranks": "the number of ranks",
            "seed": "the seed",
            "sampler": "the sampler",
            "shuffle": "the shuffle",
            "set_weights": "the weight of each data set",
            "data": "the digest of the images, their labels and their order",
            "teaching": "set_teacher",
            "batch_per_rank": "the batch per rank",
            "model": "the model",
            "optimizer": "the optimizer",
            "trainable": "what is trained",
            "rate_factors": "the rate factors",
            "loss_type": "the loss",
            "margin": "the margin",
            "loss_terms": "the additional loss setting",
            "sample_ratio": "the share of the classes in a step",
            "gradient_clip": "the norm to which gradients are clipped",
            "pixel_rule": "the pixel rule",
            "image_ground": "the ground of transparent images",
            "plsc": "the version of plsc",
            "paddle": "the version of Paddle",
        }
        # Earlier versions did not record all of this, and of the shuffle only one that was set.
        meta = {name: value for name, value in source.meta.items() if (name, value) != ("shuffle", None)}
        unrecorded = ("image_ground", "shuffle", "set_weights", "data", "margin", "sample_ratio", "gradient_clip")
        unknown = {name: now[name] for name in unrecorded}
        first = {"pixel_rule": PILLOW_RULE, "sampler": "uniform", "trainable": "all"}
        first.update(dict.fromkeys(("rate_factors", "loss_terms"), "none"))
        was = {**first, **unknown, **meta}
        return [
            f"{words} was {was.get(name)} and is {now[name]} now"
            for name, words in names.items()
            if was.get(name) != now[name] and (was.get(name), now[name]) != _RENAMED_MODEL
        ]

    def _accumulators(self) -> dict[str, dict[str, paddle.Tensor]]:
        return optim.optimizer_state(self.optimizer, self._names())

    def _names(self) -> dict[str, str]:
        """Returns the structured names of all parameters by Paddle's names; those of the head begin with `head.`."""
        names = {p.name: name for name, p in self.backbone.named_parameters()}
        return {**names, **{p.name: f"head.{name}" for name, p in self.head.named_parameters()}}

    def _backbone_accumulators(self, accumulators: Mapping[str, Any]) -> dict[str, dict[str, paddle.Tensor]]:
        return {name: tensors for name, tensors in accumulators.items() if not name.startswith("head.")}

    def _head_accumulators(self, accumulators: Mapping[str, Any], prefix: str) -> dict[str, dict[str, paddle.Tensor]]:
        """Returns the accumulators of the head whose parameters have names with a prefix, by its own names of them."""
        own = {name: one.state() for name, one in self.row_updates.items() if one.state()}
        own.update({name[len("head.") :]: one for name, one in accumulators.items() if name.startswith("head.")})
        return {name[len(prefix) :]: tensors for name, tensors in own.items() if name.startswith(prefix)}

    def _names_by_rows(self, accumulators: Mapping[str, Any]) -> list[str]:
        """Returns the names of the tensors in the head files that have a row for each class."""
        names: dict[str, None] = {}
        for part in self.head.parts:
            parameters = dict(part.head.named_parameters())
            names.update(dict.fromkeys(parameters))
            for parameter, tensors in self._head_accumulators(accumulators, part.prefix).items():
                shape = parameters[parameter].shape
                own = [
                    f"{parameter}/{n}" for n, t in tensors.items() if checkpoint.row_axis(t.shape, shape) is not None
                ]
                names.update(dict.fromkeys(own))
        return list(names)

    def _create_accumulators(self, source: Checkpoint) -> None:
        """Creates the accumulators that the checkpoint has: those of parameters that had a gradient by then.

        Raises:
            CheckpointError: It has some of a parameter that is frozen now.
        """
        saved = source.meta["accumulators"]
        frozen = [name for name, p in self.backbone.named_parameters() if name in saved and p.stop_gradient]
        if frozen:
            raise CheckpointError(
                f"{source.folder}: the run trained {frozen[0]}, which is frozen now; a resumed run may unfreeze "
                "parameters, but not freeze them: train what it trained with set_trainable, or start from its weights "
                "with set_checkpoint_dir"
            )
        by_name = {p.name: p for layer in (self.backbone, self.head) for p in layer.parameters()}
        optim.create_state(self.optimizer, [by_name[name] for name, own in self._names().items() if own in saved])


def _head_tensors(
    head: ClassifierHead, accumulators: Mapping[str, Mapping[str, paddle.Tensor]]
) -> dict[str, Union[np.ndarray, checkpoint.Stream]]:
    """Returns what this rank writes of a head: its state, and the accumulators of its parameters."""
    tensors = {name: checkpoint.host_array(tensor) for name, tensor in head.state_dict().items()}
    parameters = dict(head.named_parameters())
    for parameter, own in accumulators.items():
        for name, tensor in own.items():
            if checkpoint.row_axis(tensor.shape, parameters[parameter].shape) == 1:
                tensor = paddle.moveaxis(tensor, 1, 0)
            tensors[f"{parameter}/{name}"] = checkpoint.host_array(tensor)
    return tensors
