"""Loads networks, heads and optimizers from a checkpoint of any number of ranks, without talking to other ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import numpy as np
import paddle

from plsc.checkpoint.folder import AVERAGE, BACKBONE, OPTIMIZER, Checkpoint, head_file
from plsc.checkpoint.snapshot import as_tensor
from plsc.checkpoint.tensor_file import DamagedError, TensorFile, missing
from plsc.errors import CheckpointError, counted
from plsc.heads import ClassifierHead
from plsc.heads.bfloat16 import put_rows, tensor_like

_OTHER_MODEL = ": it was saved from another model; check set_model"
_ONLY_IN_RESNET100 = "blocks.48.residual.1.weight"
_RENAMED_MODEL = (
    ": it was saved by an earlier version of plsc, whose ResNet101 had the 3, 13, 30 and 3 blocks of ResNet100; "
    "call set_model_name('ResNet100'), or add --set model_name=ResNet100"
)
_OTHER_OPTIMIZER = (
    "; set_resume(True) needs the same set_optimizer; to start from the weights alone use set_checkpoint_dir"
)

_LONGEST_GAP = 4096  # rows between two that are wanted, from which on reading begins again after them

OptimizerState = Mapping[str, Mapping[str, paddle.Tensor]]  # {parameter: {accumulator: tensor}}


def load_backbone(checkpoint: Checkpoint, backbone: paddle.nn.Layer, weights: str = "average") -> None:
    """Loads every parameter and statistic of a backbone.

    Args:
        checkpoint: The checkpoint.
        backbone: The backbone.
        weights: 'average' takes the average of the weights, where the checkpoint has one; 'plain' those that training
            continues with.

    Raises:
        DamagedError: The file is damaged.
        CheckpointError: Names or shapes differ from those of the model.
    """
    path, state = checkpoint.folder / BACKBONE, backbone.state_dict()
    with TensorFile(path, checkpoint.files[BACKBONE]) as file:
        was_renamed = checkpoint.meta.get("model") == "ResNet101" and _ONLY_IN_RESNET100 in file
        _check_names(path, set(file), set(state), "the model", _RENAMED_MODEL if was_renamed else _OTHER_MODEL)
        for name, tensor in state.items():
            if file.shape(name) != tuple(tensor.shape):
                raise CheckpointError(
                    f"{path}: {name} has shape {list(file.shape(name))}, but the model has {list(tensor.shape)}; "
                    "check set_emb_size, set_image_shape and set_model"
                )
        for name, tensor in state.items():
            _assign(tensor, file.read(name), f"{path}: {name}")
    if weights == "average":
        for name, value in read_average(checkpoint, state).items():
            state[name].set_value(value.astype(state[name].dtype))


def read_average(checkpoint: Checkpoint, state: Mapping[str, paddle.Tensor]) -> dict[str, paddle.Tensor]:
    """Returns the averages of weights and statistics, in float32, by name; none if the checkpoint has no average.

    Args:
        checkpoint: The checkpoint.
        state: The tensors of the model, by name.

    Raises:
        DamagedError: The file is damaged.
        CheckpointError: It holds what the model does not have.
    """
    if AVERAGE not in checkpoint.files:
        return {}
    path = checkpoint.folder / AVERAGE
    with TensorFile(path, checkpoint.files[AVERAGE]) as file:
        for name in file:
            if name not in state or file.shape(name) != tuple(state[name].shape) or file.dtype(name) != np.float32:
                raise CheckpointError(f"{path}: {name} does not fit the model{_OTHER_MODEL}")
        return {name: paddle.to_tensor(file.read(name)) for name in file}


def check_heads(checkpoint: Checkpoint, count: int) -> None:
    """Checks that a checkpoint has as many heads as a training.

    Raises:
        CheckpointError: It has more or fewer.
    """
    if len(checkpoint.heads) != count:
        has = f"{len(checkpoint.heads)} heads" if len(checkpoint.heads) > 1 else "one head"
        raise CheckpointError(
            f"{checkpoint.folder}: the checkpoint has {has}, and this training has {count}; train on as many data sets "
            "with set_dataset_dir(heads='separate'), or load the backbone alone with set_head_init('fresh')"
        )


def load_head(checkpoint: Checkpoint, head: ClassifierHead, number: int = 0) -> int:
    """Loads the rows of this rank, and reads only those. Returns the number of bytes read.

    Args:
        checkpoint: The checkpoint.
        head: The head.
        number: Which head of the checkpoint it is.

    Raises:
        DamagedError: A file is damaged.
        CheckpointError: The checkpoint has another class count, embedding size or kind of head.
    """
    _check_has_head(checkpoint)
    sizes = {"num_classes": checkpoint.heads[number], "emb_dim": checkpoint.meta["emb_dim"]}
    for name, setter in (("num_classes", "set_class_num"), ("emb_dim", "set_emb_size")):
        if sizes[name] != getattr(head, name):
            raise CheckpointError(
                f"{checkpoint.folder}: the checkpoint has {name} {sizes[name]}, {setter} says "
                f"{getattr(head, name)}; make them agree, or choose with set_head_init how to start the head"
            )
    with HeadFiles(checkpoint, number) as files:
        for name, tensor in head.state_dict().items():
            if name not in files:
                raise CheckpointError(
                    f"{files.path}: no {name} in it: it was saved with another loss; check set_loss_type, or "
                    "choose with set_head_init how to start the head"
                )
            if name == "margin_state":
                if files.shape(name) != tuple(tensor.shape):
                    raise CheckpointError(f"{files.path}: {name} belongs to another loss; check set_loss_type")
                _assign(tensor, files.read(name), f"{files.path}: {name}")
            else:
                files.fill(tensor, name, head.lower)
        head.filled()
        return files.bytes_read


def load_common_head(checkpoint: Checkpoint, head: ClassifierHead, number: int = 0) -> list[str]:
    """Loads the rows of the classes that both the checkpoint and `head` have, by their number.

    Args:
        checkpoint: The checkpoint.
        head: The head.
        number: Which head of the checkpoint it is.

    Returns:
        What was loaded, for the log.

    Raises:
        DamagedError: A file is damaged.
        CheckpointError: The embedding sizes differ.
    """
    _check_has_head(checkpoint)
    head.draw()
    done, classes = [], min(checkpoint.heads[number], head.num_classes)
    with HeadFiles(checkpoint, number) as files:
        state = head.state_dict()
        for name, tensor in state.items():
            if name not in files:
                done.append(f"head {name} is fresh: the checkpoint has none")
            elif name == "margin_state":
                if files.shape(name) == tuple(tensor.shape):
                    _assign(tensor, files.read(name), f"{files.path}: {name}")
                    done.append(f"head {name} loaded")
                else:
                    done.append(f"head {name} is fresh: the checkpoint's is of another loss")
            else:
                _check_emb_dim(checkpoint, files, name, tensor, head.emb_dim)
                files.fill(tensor, name, head.lower, classes)
                done.append(f"head {name}: classes 0 to {classes - 1} loaded")
                if head.num_classes > classes:
                    done.append(f"head {name}: classes {classes} to {head.num_classes - 1} are fresh")
                if checkpoint.heads[number] > classes:
                    done.append(f"head {name}: classes from {classes} on of the checkpoint ignored")
        done += [f"head {name} of the checkpoint ignored" for name in files if name not in state and "/" not in name]
    return done


def load_named_head(checkpoint: Checkpoint, head: ClassifierHead, origins: np.ndarray, number: int = 0) -> list[str]:
    """Loads the rows of classes that have other numbers in a checkpoint. The other rows keep their values.

    The files are read once, in parts, and only where they hold rows of this rank.

    Args:
        checkpoint: The checkpoint.
        head: The head.
        origins: The number of each of its classes in the checkpoint, over all heads, int64 [classes]; -1 for a class
            that the checkpoint does not have.
        number: Which head of the training it is.

    Returns:
        What was loaded in addition to the rows, for the log.

    Raises:
        DamagedError: A file is damaged.
        CheckpointError: The embedding sizes differ.
    """
    _check_has_head(checkpoint)
    head.draw()
    done = []
    own = origins[head.lower : head.upper]
    with HeadFiles(checkpoint) as files:
        for name, tensor in head.state_dict().items():
            if name not in files:
                done.append(f"head {name} is fresh: the checkpoint has none")
            elif name != "margin_state":
                _check_emb_dim(checkpoint, files, name, tensor, head.emb_dim)
                files.fill_chosen(tensor, name, own)
            elif number < len(checkpoint.heads) and files.shape(name) == tuple(tensor.shape):
                with HeadFiles(checkpoint, number) as of_head:
                    _assign(tensor, of_head.read(name), f"{of_head.path}: {name}")
                done.append(f"head {name} loaded")
            else:
                done.append(f"head {name} is fresh: the checkpoint's is of another loss")
    return done


def _check_emb_dim(checkpoint: Checkpoint, files: HeadFiles, name: str, tensor: paddle.Tensor, emb_dim: int) -> None:
    if files.shape(name)[1:] != tuple(tensor.shape[1:]):
        raise CheckpointError(
            f"{checkpoint.folder}: has {name} {list(files.shape(name))}, but set_emb_size says {emb_dim}; "
            "make them agree, or call set_head_init('fresh')"
        )


def _check_has_head(checkpoint: Checkpoint) -> None:
    if not checkpoint.meta["num_classes"]:
        raise CheckpointError(
            f"{checkpoint.folder}: holds the weights of a backbone alone, without class centres; call "
            "set_head_init('fresh')"
        )


def load_optimizer(checkpoint: Checkpoint, state: OptimizerState) -> None:
    """Loads the optimizer's tensors for the parameters of the backbone.

    Raises:
        DamagedError: The file is damaged.
        CheckpointError: The checkpoint was saved with another optimizer.
    """
    path = checkpoint.folder / OPTIMIZER
    wanted = _by_key(state)
    with TensorFile(path, checkpoint.files[OPTIMIZER]) as file:
        _check_names(path, set(file), set(wanted), "the optimizer of this run", _OTHER_OPTIMIZER)
        for key, tensor in wanted.items():
            if file.shape(key) != tuple(tensor.shape):
                raise CheckpointError(
                    f"{path}: {key} has shape {list(file.shape(key))}, but the optimizer has {list(tensor.shape)}"
                    f"{_OTHER_OPTIMIZER}"
                )
            _assign(tensor, file.read(key), f"{path}: {key}")


def load_head_optimizer(checkpoint: Checkpoint, head: ClassifierHead, state: OptimizerState, number: int = 0) -> None:
    """Loads the optimizer's tensors for the parameters of the head: of those with rows, the rows of this rank.

    Args:
        checkpoint: The checkpoint.
        head: The head.
        state: The tensors to fill, by the head's own names of its parameters.
        number: Which head of the checkpoint it is.

    Raises:
        DamagedError: A file is damaged.
        CheckpointError: The checkpoint was saved with another optimizer.
    """
    parameters = dict(head.named_parameters())
    wanted = _by_key(state)
    with HeadFiles(checkpoint, number) as files:
        if wanted:  # a rank without rows has no such tensors
            saved = {key for key in files if "/" in key}
            _check_names(files.path, saved, set(wanted), "the optimizer of this run", _OTHER_OPTIMIZER)
        for key, tensor in wanted.items():
            axis = row_axis(tensor.shape, parameters[key.partition("/")[0]].shape)
            if axis is None:
                if math.prod(files.shape(key)) != math.prod(tensor.shape):
                    raise CheckpointError(
                        f"{files.path}: {key} has shape {list(files.shape(key))}, but the optimizer has "
                        f"{list(tensor.shape)}{_OTHER_OPTIMIZER}"
                    )
                _assign(tensor, files.read(key), f"{files.path}: {key}")
            elif axis == 0:
                files.fill(tensor, key, head.lower)
            else:
                rows = paddle.empty([tensor.shape[1], tensor.shape[0], *tensor.shape[2:]], tensor.dtype)
                files.fill(rows, key, head.lower)
                _assign(tensor, np.moveaxis(rows.numpy(), 0, 1), f"{files.path}: {key}")


def row_axis(shape: Any, parameter_shape: Any) -> int | None:
    """Returns the axis along which an accumulator has the rows of its parameter, or None if it has none.

    A power of beta has no rows. ASGD keeps the last n gradients as [n, *parameter]; files hold them with the rows
    first.
    """
    if list(shape) == list(parameter_shape):
        return 0
    return 1 if list(shape[1:]) == list(parameter_shape) else None


class HeadFiles:
    """The files of a head, or of all heads, as if they were one. A missing file is an error once rows of it are read.

    Args:
        checkpoint: The checkpoint.
        number: The head; None for all heads, whose classes are numbered one head after another.

    Attributes:
        path: The path of one of them, for messages.
    """

    def __init__(self, checkpoint: Checkpoint, number: Optional[int] = None) -> None:
        self._files: list[Optional[TensorFile]] = []
        numbers = range(len(checkpoint.head_rows)) if number is None else checkpoint.head_files(number)
        self._rows = [checkpoint.head_rows[one] for one in numbers]
        self._paths = [checkpoint.folder / head_file(one) for one in numbers]
        try:
            for path in self._paths:
                self._files.append(TensorFile(path, checkpoint.files[path.name]) if path.exists() else None)
            self._present = [file for file in self._files if file is not None]
            if not self._present:
                raise missing(self._paths[0])
        except BaseException:
            self.close()
            raise
        self.path = self._present[0].path

    def __enter__(self) -> HeadFiles:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files."""
        for file in self._files:
            if file is not None:
                file.close()

    @property
    def bytes_read(self) -> int:
        """The number of bytes read so far from all files."""
        return sum(file.bytes_read for file in self._present)

    def __contains__(self, name: object) -> bool:
        return any(name in file for file in self._present)

    def __iter__(self) -> Iterator[str]:
        return iter({name: None for file in self._present for name in file})

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor in the first file that has it."""
        return self._first(name).shape(name)

    def dtype(self, name: str) -> np.dtype:
        """Returns the type of a tensor in the first file that has it."""
        return self._first(name).dtype(name)

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor without rows, which is the same in every file."""
        return self._first(name).read(name)

    def rows(self, name: str, lower: int, upper: int) -> Iterator[np.ndarray]:
        """Yields the rows [lower, upper) of the whole matrix in parts."""
        first = 0
        for path, file, count in zip(self._paths, self._files, self._rows):
            begin, end = max(lower, first), min(upper, first + count)
            if begin < end and file is None:
                raise missing(path)
            if begin < end and file is not None:
                if name not in file or file.shape(name)[:1] != (count,):
                    raise DamagedError(
                        f"{file.path}: does not hold {counted(count, 'row')} of {name}; use another checkpoint"
                    )
                yield from file.rows(name, begin - first, end - first)
            first += count

    def fill(self, tensor: paddle.Tensor, name: str, lower: int, limit: float = math.inf) -> None:
        """Fills a tensor with the rows from `lower` on, part by part. Rows from `limit` on keep their values."""
        upper = int(min(lower + tensor.shape[0], limit))
        done = 0
        with paddle.no_grad():
            for part in self.rows(name, lower, upper):
                if part.shape[1:] != tuple(tensor.shape[1:]):
                    raise CheckpointError(
                        f"{self.path}: {name} has rows of {list(part.shape[1:])} instead of {list(tensor.shape[1:])}"
                    )
                _check_dtype(part, f"{self.path}: {name}")
                paddle.assign(_as(part, tensor.dtype), tensor[done : done + len(part)])
                done += len(part)

    def fill_chosen(self, tensor: paddle.Tensor, name: str, origins: np.ndarray) -> None:
        """Fills rows of a tensor with rows from anywhere in the whole matrix, in one pass over the parts that hold any.

        Args:
            tensor: The tensor.
            name: Its name in the files.
            origins: The row of the matrix that each row of the tensor gets, int64 [rows]; -1 keeps the row.
        """
        places = np.flatnonzero(origins >= 0)
        places = places[np.argsort(origins[places], kind="stable")]
        for run in np.split(places, np.flatnonzero(np.diff(origins[places]) > _LONGEST_GAP) + 1):
            if not len(run):
                continue
            first = int(origins[run[0]])
            for part in self.rows(name, first, int(origins[run[-1]]) + 1):
                _check_dtype(part, f"{self.path}: {name}")
                begin, end = np.searchsorted(origins[run], (first, first + len(part)))
                if begin < end:
                    values = _as(part[origins[run[begin:end]] - first], tensor.dtype)
                    with paddle.no_grad():
                        put_rows(tensor, paddle.to_tensor(run[begin:end]), values)
                first += len(part)

    def _first(self, name: str) -> TensorFile:
        return next(file for file in self._present if name in file)


def _as(rows: np.ndarray, dtype: Any) -> paddle.Tensor:
    return tensor_like(rows, dtype) if dtype == paddle.bfloat16 else as_tensor(rows).astype(dtype)


def _assign(tensor: paddle.Tensor, value: np.ndarray, where: str) -> None:
    _check_dtype(value, where)
    tensor.set_value(paddle.to_tensor(value).astype(tensor.dtype).reshape(tensor.shape))


def _check_dtype(value: np.ndarray, where: str) -> None:
    """Refuses types that Paddle lacks. It takes uint16 for bfloat16."""
    if value.dtype.kind == "u" and value.dtype.itemsize > 1:
        raise DamagedError(f"{where}: is stored as {value.dtype}, which no training has saved; use another checkpoint")


def _by_key(state: OptimizerState) -> dict[str, paddle.Tensor]:
    """Returns the tensors by their names in a file."""
    return {f"{parameter}/{name}": tensor for parameter, names in state.items() for name, tensor in names.items()}


def _check_names(path: Path, saved: set[str], wanted: set[str], holder: str, advice: str) -> None:
    """Raises CheckpointError unless both sets of names are the same."""
    for name in sorted(saved ^ wanted):
        raise CheckpointError(f"{path}: {name} is only in {'the checkpoint' if name in saved else holder}{advice}")
