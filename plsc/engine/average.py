"""The exponential moving average of the backbone's weights, with which it is tested, exported and used."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Container, Iterator, Mapping
from typing import Any, Optional

import paddle

from plsc import checkpoint, parallel
from plsc.checkpoint import Checkpoint
from plsc.models.freezing import is_statistic

_SMALL = 1 << 16  # elements; tensors with fewer are moved together, because each operation has a price of its own
_PIECE = 1 << 18  # elements that a CPU moves at a time; few enough to stay in its cache


class Average:
    """The average of a backbone's weights over the steps: a = d * a + (1 - d) * w, in float32.

    The running statistics of BatchNorm are averaged in the same way, so that they belong to the averaged weights. The
    code that trained EfficientNet does so (Tan and Le, ICML 2019), and it has the same warm-up of the decay, which is
    that of TensorFlow's `tf.train.ExponentialMovingAverage`: d = min(decay, (1 + n) / (10 + n)) after n updates.
    Without it, a short run would end close to its random first weights. Frozen parameters are left out.

    Args:
        backbone: The model, with all its layers made.
        decay: The decay d; 0 for no average, so that all methods do nothing.

    Attributes:
        decay: The decay.
        updates: Number of updates so far.
    """

    def __init__(self, backbone: paddle.nn.Layer, decay: float) -> None:
        self._backbone, self.decay, self.updates = backbone, decay, 0
        self._parts: list[_Part] = []
        self.follow()

    def values(self) -> dict[str, paddle.Tensor]:
        """Returns the averages by the names of the tensors in the backbone; they share the memory of this object."""
        return {name: value for part in self._parts for name, value in part.values().items()}

    def follow(self) -> None:
        """Adds to the average what is trained by now, such as parameters that were frozen before."""
        if not self.decay:
            return
        values = self.values()
        followed = averaged_tensors(self._backbone, values)
        if followed.keys() != values.keys():
            self._parts = [_Part(tensors, {**tensors, **values}) for tensors in _divided(followed)]

    def update(self) -> None:
        """Moves the average towards the weights, after a step that has changed them."""
        if self.decay:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            for part in self._parts:
                part.move(1.0 - decay)
            self.updates += 1

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Gives the backbone the averages while the block runs, and then its own weights again, to the bit."""
        state = self._backbone.state_dict()
        kept = {name: state[name].clone() for name in self.values()}
        self.keep()
        try:
            yield
        finally:
            _assign(kept, state)

    def keep(self) -> None:
        """Gives the backbone the averages for good."""
        _assign(self.values(), self._backbone.state_dict())

    def broadcast_statistics(self) -> None:
        """Gives every rank the averaged statistics of rank 0, as `parallel.broadcast_statistics` does for the model."""
        parallel.broadcast([part.average for part in self._parts if part.is_of_statistics], "the averaged statistics")

    def record(self) -> dict[str, Any]:
        """Returns what `meta.json` records about the average; nothing without one."""
        return {"average": {"decay": self.decay, "updates": self.updates}} if self.decay else {}

    def load(self, source: Checkpoint) -> None:
        """Resumes the average of a checkpoint; if it has none, begins at the weights, which have been loaded.

        Raises:
            DamagedError: The file is damaged.
            CheckpointError: It does not belong to this model.
        """
        if not self.decay:
            return
        state = self._backbone.state_dict()
        saved = checkpoint.read_average(source, state)
        followed = {name: state[name] for name in {**self.values(), **saved}}
        self._parts = [_Part(tensors, {**tensors, **saved}) for tensors in _divided(followed)]
        self.updates = source.meta["average"]["updates"] if "average" in source.meta else 0

    def change(self, source: Checkpoint) -> Optional[str]:
        """Returns what a resumed run does with the average that the checkpoint does not expect, for the log."""
        saved = source.meta.get("average")
        if saved is None:
            return "set_ema: the average of weights begins now; the checkpoint has none" if self.decay else None
        if not self.decay:
            return "the average of weights in the checkpoint is dropped, because set_ema is not called any more"
        was = saved["decay"]
        return None if was == self.decay else f"set_ema: the decay was {was:g} and is {self.decay:g} from here on"


def averaged_tensors(backbone: paddle.nn.Layer, known: Container[str] = ()) -> dict[str, paddle.Tensor]:
    """Returns the weights and statistics that are averaged, by name: all but what is frozen.

    Args:
        backbone: The model, with all its layers made.
        known: The names of what is averaged although it may be frozen.
    """
    found, parameters = {}, dict(backbone.named_parameters())
    for name, tensor in backbone.state_dict().items():
        is_frozen = tensor.stop_gradient and name in parameters and not is_statistic(name)
        if tensor.is_floating_point() and math.prod(tensor.shape) and (name in known or not is_frozen):
            found[name] = tensor
    return found


class _Part:
    """The averages of one tensor or of several, one after another in one flat tensor.

    Args:
        tensors: What is averaged, by name.
        starts: Where the averages begin, by name.
    """

    def __init__(self, tensors: Mapping[str, paddle.Tensor], starts: Mapping[str, paddle.Tensor]) -> None:
        self._tensors = tensors
        with paddle.no_grad():
            self.average = paddle.concat([_flat(starts[name]) for name in tensors])
        self._piece = _PIECE if parallel.on_cpu() else self.average.shape[0]

    @property
    def is_of_statistics(self) -> bool:
        return next(iter(self._tensors.values())).stop_gradient

    def values(self) -> dict[str, paddle.Tensor]:
        """Returns the averages by name, as views."""
        found, end = {}, 0
        for name, tensor in self._tensors.items():
            begin, end = end, end + math.prod(tensor.shape)
            found[name] = self.average._slice(begin, end).reshape(tensor.shape)
        return found

    @paddle.no_grad()
    def move(self, share: float) -> None:
        """Moves the averages by a share of the way to the tensors."""
        flat = [_flat(tensor) for tensor in self._tensors.values()]
        now = flat[0] if len(flat) == 1 else paddle.concat(flat)
        for begin in range(0, self.average.shape[0], self._piece):
            end = min(begin + self._piece, self.average.shape[0])
            average = self.average._slice(begin, end)
            average.add_((now._slice(begin, end) - average).scale_(share))


def _divided(tensors: Mapping[str, paddle.Tensor]) -> list[dict[str, paddle.Tensor]]:
    """Divides tensors into parts: the small parameters, the small statistics, and each large tensor alone."""
    small: dict[bool, dict[str, paddle.Tensor]] = {False: {}, True: {}}
    large = []
    for name, tensor in tensors.items():
        if math.prod(tensor.shape) < _SMALL:
            small[bool(tensor.stop_gradient)][name] = tensor
        else:
            large.append({name: tensor})
    return [part for part in (*small.values(), *large) if part]


def _flat(tensor: paddle.Tensor) -> paddle.Tensor:
    """Returns the values of a tensor in float32, in one dimension."""
    wide = tensor if tensor.dtype == paddle.float32 else tensor.astype("float32")
    return wide.reshape([-1])


@paddle.no_grad()
def _assign(sources: Mapping[str, paddle.Tensor], targets: Mapping[str, paddle.Tensor]) -> None:
    for name, source in sources.items():
        paddle.assign(source.astype(targets[name].dtype), targets[name])
