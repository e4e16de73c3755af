"""The base class of every backbone."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from typing import Any, ClassVar, Optional

import paddle

from plsc.errors import ConfigError
from plsc.layers.scope import LayerScope
from plsc.models.modes import evaluating

# Paddle's no_grad acts on the whole process: if two overlap in time, the last one to end leaves gradients off for good.
_one_dry_run = threading.RLock()
_NO_GRAPH = "does not appear in the backward graph"
_MISSING_KERNEL = re.compile(r"[Kk]ernel `(\w+)`[^\n]* not registered")


class BaseModel(paddle.nn.Layer):
    """A network that turns images into embeddings. A subclass only needs to override `build_network`.

    The subclass may create layers in `__init__` and use them in `build_network`, as in any Paddle layer. Or
    `build_network` calls the functions of `plsc.layers` (`conv2d`, `batch_norm`, `fc`, ...); two dry runs, one for
    tests and one for training, then create the layers before anything else runs.
    """

    # Whether `build_network` calls its parts through `plsc.models.recompute.part`.
    calls_parts: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        # The scope is not a sublayer; it registers its layers on the model, under names such as conv2d_0.
        object.__setattr__(self, "_scope", LayerScope(self))

    def build_network(self, input: paddle.Tensor, label: Optional[paddle.Tensor], is_train: bool) -> paddle.Tensor:
        """Computes the embeddings of a batch.

        Args:
            input: Normalised images, [B, C, H, W] float32.
            label: Labels, [B] int64; None in tests and prediction.
            is_train: Whether the network is in training, rather than in a test or prediction.

        Returns:
            Embeddings, [B, D].
        """
        raise NotImplementedError(f"{type(self).__name__} must override build_network(self, input, label, is_train)")

    def forward(self, input: paddle.Tensor, label: Optional[paddle.Tensor] = None) -> paddle.Tensor:
        """Runs `build_network` with the layers of this model, [B, C, H, W] -> [B, D]."""
        if not self._scope.made and paddle.in_dynamic_mode():
            self.dry_run(input.shape[1:], input.dtype, label)
        with self._scope.running(self.training):
            return self.build_network(input, label, self.training)

    def build(self, image_shape: tuple[int, int, int]) -> int:
        """Creates the layers of a define-by-run network, as training does; see the function `build`."""
        return build(self, image_shape)

    def dry_run(self, shape: list[int], dtype: Any, label: Optional[paddle.Tensor]) -> Any:
        """Runs the network on two zero images in evaluation mode, and creates the layers of `plsc.layers` if needed.

        Args:
            shape: Shape of one image, [C, H, W].
            dtype: Type of the images.
            label: Labels, whose shape and type the dry run uses; None runs without labels.

        Returns:
            What `build_network` returned.
        """
        images = paddle.zeros([2, *shape], dtype)
        labels = None if label is None else paddle.zeros([2, *label.shape[1:]], label.dtype)

        def network(is_train: bool) -> Any:
            self.training = is_train
            return self.build_network(images, labels, is_train)

        # In evaluation mode the layers draw no random numbers, and keep their running statistics.
        with _one_dry_run, paddle.no_grad(), evaluating(self):
            if not self._scope.made:
                return self._scope.make(network)
            with self._scope.running(False):
                return network(False)


def build(model: paddle.nn.Layer, image_shape: tuple[int, int, int]) -> int:
    """Creates the layers of a model with dry runs on two zero images.

    Args:
        model: A `BaseModel`, or any Paddle layer.
        image_shape: Shape of one image, (C, H, W).

    Returns:
        Size of an embedding, D.

    Raises:
        ConfigError: The model does not return one embedding for each image.
        PlscError: The calls of `plsc.layers` for training and for tests do not fit together.
    """
    with _errors_explained(model):
        if isinstance(model, BaseModel):
            labels = paddle.zeros([2], dtype="int64")
            embedding = model.dry_run(list(image_shape), paddle.get_default_dtype(), labels)
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


@contextlib.contextmanager
def _errors_explained(model: paddle.nn.Layer) -> Iterator[None]:
    """Turns two errors of Paddle into one line: an operator that it lacks for this device, and gradients in a test."""
    try:
        yield
    except ValueError as problem:
        if _NO_GRAPH not in str(problem):
            raise
        raise ConfigError(
            f"{type(model).__name__}: its forward asks for gradients, and networks run without them in tests and "
            "prediction; put the part that ends with paddle.grad into `with paddle.enable_grad():`"
        ) from problem
    except RuntimeError as problem:
        kernel = _MISSING_KERNEL.search(str(problem))
        if kernel is None:
            raise
        layers = [name for name, layer in model.named_sublayers() if isinstance(layer, paddle.nn.SyncBatchNorm)]
        if layers and "sync_batch_norm" in kernel[1]:
            advice = f"make {layers[0]} a BatchNorm2D, whose weights have the same names, instead of a SyncBatchNorm"
        else:
            advice = "replace the layer that needs it"
        raise ConfigError(
            f"{type(model).__name__}: Paddle has no {kernel[1]} for {paddle.get_device()}; {advice}, or use a GPU"
        ) from problem


@paddle.no_grad()
def _tested(model: paddle.nn.Layer, image_shape: tuple[int, int, int]) -> Any:
    """Returns what a plain layer returns for two zero images."""
    with evaluating(model):
        return model(paddle.zeros([2, *image_shape]))


def check_rows(model: paddle.nn.Layer, embedding: paddle.Tensor, images: int) -> None:
    """Checks that a model returned one embedding for each image, as it did in the dry run.

    Raises:
        ConfigError: It did not.
    """
    if embedding.shape[0] != images:
        raise ConfigError(
            f"{type(model).__name__}: gave {embedding.shape[0]} embeddings for {images} images; the model must return "
            "one for each image, whatever the size of the batch"
        )


def check_is_frozen(model: paddle.nn.Layer) -> None:
    """Checks that a model whose embeddings carry no gradient has nothing to train.

    Raises:
        ConfigError: It has, so that training would move the head alone.
    """
    trained = next((name for name, one in model.named_parameters() if not one.stop_gradient), None)
    if trained is not None:
        raise ConfigError(
            f"{type(model).__name__}: its embeddings carry no gradient, so {trained} and its other parameters would "
            "not be trained; look for detach() and paddle.no_grad() in the model, or train the head alone with "
            "set_trainable('head')"
        )


def inputs_of(model: paddle.nn.Layer, images: paddle.Tensor, labels: paddle.Tensor) -> tuple[paddle.Tensor, ...]:
    """Returns the arguments with which to call a model in training. A plain Paddle layer takes no labels."""
    return (images, labels) if isinstance(model, BaseModel) else (images,)
