"""The base class of every backbone."""

from __future__ import annotations

import threading
from typing import Any, Optional

import paddle

from plsc.errors import ConfigError
from plsc.layers.scope import LayerScope

# Paddle's no_grad is of the process: of two that overlap, the last to leave would keep gradients off for good.
_one_dry_run = threading.RLock()


class BaseModel(paddle.nn.Layer):
    """A network that turns images into embeddings. Subclasses override `build_network`, and nothing else is needed.

    Layers may be made in `__init__` and used in `build_network`, as in any Paddle layer; or `build_network` calls the
    functions of `plsc.layers` (`conv2d`, `batch_norm`, `fc`, ...), whose layers are made by two dry runs, for a test and for
    training, before anything else.
    """

    def __init__(self) -> None:
        super().__init__()
        # Not a sublayer of its own: its layers are registered on the model, under names such as conv2d_0.
        object.__setattr__(self, "_scope", LayerScope(self))

    def build_network(self, input: paddle.Tensor, label: Optional[paddle.Tensor], is_train: bool) -> paddle.Tensor:
        """Builds the embedding.

        Args:
            input: images [B, C, H, W] float32, normalised.
            label: [B] int64; None when only an embedding is asked for.
            is_train: training, rather than a test or prediction.

        Returns:
            Embeddings [B, D].
        """
        raise NotImplementedError(f"{type(self).__name__} must override build_network(self, input, label, is_train)")

    def forward(self, input: paddle.Tensor, label: Optional[paddle.Tensor] = None) -> paddle.Tensor:
        """`build_network` with this model's layers in place: [B, C, H, W] -> [B, D]."""
        if not self._scope.made and paddle.in_dynamic_mode():
            self.dry_run(input.shape[1:], input.dtype, label)
        with self._scope.running(self.training):
            return self.build_network(input, label, self.training)

    def build(self, image_shape: tuple[int, int, int]) -> int:
        """Makes the layers of a define-by-run network, as training does: see the function `build`."""
        return build(self, image_shape)

    def dry_run(self, shape: list[int], dtype: Any, label: Optional[paddle.Tensor]) -> Any:
        """What a test of two zero images gives; makes the layers of `plsc.layers` if they are not there yet."""
        images = paddle.zeros([2, *shape], dtype)
        labels = None if label is None else paddle.zeros([2, *label.shape[1:]], label.dtype)

        def network(is_train: bool) -> Any:
            self.training = is_train
            return self.build_network(images, labels, is_train)

        with _one_dry_run, paddle.no_grad():
            modes = [(layer, layer.training) for layer in self.sublayers(include_self=True)]
            self.eval()  # the layers draw no random numbers and keep their running statistics
            try:
                if not self._scope.made:
                    return self._scope.make(network)
                with self._scope.running(False):
                    return network(False)
            finally:
                for layer, mode in modes:
                    layer.training = mode


def build(model: paddle.nn.Layer, image_shape: tuple[int, int, int]) -> int:
    """Makes a model's layers with dry runs on two zero images; returns the embedding size.

    Raises:
        ConfigError: the result is not one embedding for each image.
        PlscError: the calls of `plsc.layers` for training and tests do not fit together.
    """
    if isinstance(model, BaseModel):
        embedding = model.dry_run(list(image_shape), paddle.get_default_dtype(), paddle.zeros([2], dtype="int64"))
    else:
        embedding = _tested(model, image_shape)
    if not isinstance(embedding, paddle.Tensor) or len(embedding.shape) != 2 or embedding.shape[0] != 2:
        shape = list(embedding.shape) if isinstance(embedding, paddle.Tensor) else type(embedding).__name__
        method = "build_network" if isinstance(model, BaseModel) else "forward"
        raise ConfigError(
            f"{type(model).__name__}.{method}: expected embeddings [2, D] for 2 images, got {shape}; "
            "flatten the feature map before the last layer"
        )
    return int(embedding.shape[1])


@paddle.no_grad()
def _tested(model: paddle.nn.Layer, image_shape: tuple[int, int, int]) -> Any:
    """What a plain layer gives for two zero images."""
    was_training = model.training
    model.eval()
    try:
        return model(paddle.zeros([2, *image_shape]))
    finally:
        if was_training:
            model.train()


def inputs_of(model: paddle.nn.Layer, images: paddle.Tensor, labels: paddle.Tensor) -> tuple[paddle.Tensor, ...]:
    """What the model is called with in training: a plain layer takes no labels."""
    return (images, labels) if isinstance(model, BaseModel) else (images,)
