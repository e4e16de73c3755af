"""The base class of every backbone."""

from __future__ import annotations

from typing import Optional

import paddle

from plsc.errors import ConfigError
from plsc.layers import LayerScope


class BaseModel(paddle.nn.Layer):
    """A network that turns images into embeddings. Subclasses override `build_network`, and nothing else is needed.

    Layers may be made in `__init__` and used in `build_network`, as in any Paddle layer; or `build_network` calls the
    functions of `plsc.layers` (`conv2d`, `batch_norm`, `fc`, ...), which make their layers at the first call.
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
        with self._scope:
            return self.build_network(input, label, self.training)

    def build(self, image_shape: tuple[int, int, int]) -> int:
        """Makes the layers of a define-by-run network, as training does: see the function `build`."""
        return build(self, image_shape)


@paddle.no_grad()
def build(model: paddle.nn.Layer, image_shape: tuple[int, int, int]) -> int:
    """Makes a model's layers with one dry run on two zero images; returns the embedding size.

    Raises:
        ConfigError: the result is not one embedding for each image.
    """
    was_training = model.training
    model.eval()
    try:
        embedding = model(*inputs_of(model, paddle.zeros([2, *image_shape]), paddle.zeros([2], dtype="int64")))
    finally:
        if was_training:
            model.train()
    if not isinstance(embedding, paddle.Tensor) or len(embedding.shape) != 2 or embedding.shape[0] != 2:
        shape = list(embedding.shape) if isinstance(embedding, paddle.Tensor) else type(embedding).__name__
        method = "build_network" if isinstance(model, BaseModel) else "forward"
        raise ConfigError(
            f"{type(model).__name__}.{method}: expected embeddings [2, D] for 2 images, got {shape}; "
            "flatten the feature map before the last layer"
        )
    return int(embedding.shape[1])


def inputs_of(model: paddle.nn.Layer, images: paddle.Tensor, labels: paddle.Tensor) -> tuple[paddle.Tensor, ...]:
    """What the model is called with in training: a plain layer takes no labels."""
    return (images, labels) if isinstance(model, BaseModel) else (images,)
