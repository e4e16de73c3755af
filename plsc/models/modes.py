"""The modes of layers, training or evaluation. Those that the user has set stay as they are."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

import paddle

logger = logging.getLogger("plsc")

_Modes = list[tuple[paddle.nn.Layer, bool]]


@contextlib.contextmanager
def evaluating(model: paddle.nn.Layer) -> Iterator[None]:
    """Puts a model into evaluation mode while the block runs; afterwards each layer is in its own mode again."""
    modes, back = _modes_of(model), model.train if model.training else model.eval
    model.eval()
    try:
        yield
    finally:
        back()  # This is for overrides that do more than set modes, and for layers that the block has created.
        _set(modes)


class TrainingModes:
    """The modes in which the layers of a model train.

    A layer that is in evaluation mode when this object is made stays in it. So does one that a `train` method of the
    user leaves in it: the methods of the model and of its sublayers are called, although Paddle's own `train` would
    not call those of sublayers.

    Args:
        model: The model, with all its layers made.
    """

    def __init__(self, model: paddle.nn.Layer) -> None:
        self._model = model
        if not model.training:
            logger.warning(
                "%s is in evaluation mode as a whole and stays so in training: dropout is off, and running statistics "
                "do not move; if that is not what you want, call its train() first",
                type(model).__name__,
            )
        before = _modes_of(model)
        for layer in model.sublayers(include_self=True):
            if layer.training and type(layer).train is not paddle.nn.Layer.train:
                layer.train()
        _set([(layer, mode) for layer, mode in before if not mode])
        self._own = self._modes = _modes_of(model)
        self._held: list[paddle.nn.Layer] = []

    def hold(self, layers: Sequence[paddle.nn.Layer]) -> None:
        """Keeps layers of the model in evaluation mode, until another call; the others are in their own modes."""
        if not layers and not self._held:
            return
        self._held = list(layers)
        held = {id(layer) for layer in layers}
        self._modes = [(layer, mode and id(layer) not in held) for layer, mode in self._own]
        _set(self._modes)

    def restore(self) -> None:
        """Puts the layers back into their modes if something, such as a callback, has called the model's `eval`."""
        if self._model.training != self._modes[0][1]:
            _set(self._modes)

    def keep_held(self) -> None:
        """Puts the layers of `hold` back into evaluation mode if something has called the model's `train`."""
        for layer in self._held:
            if layer.training:
                layer.training = False


def _modes_of(model: paddle.nn.Layer) -> _Modes:
    return [(layer, layer.training) for layer in model.sublayers(include_self=True)]


def _set(modes: _Modes) -> None:
    for layer, mode in modes:
        layer.training = mode
