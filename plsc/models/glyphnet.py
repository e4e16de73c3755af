"""GlyphNet, a small network for characters, signs and drawings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import paddle
from paddle.nn import functional

from plsc import layers
from plsc.models.base_model import BaseModel
from plsc.models.recompute import part
from plsc.models.resnet import check_sides

FILTERS = (32, 64, 96)  # of the three stages


class GlyphNet(BaseModel):
    """A network of nine convolutions in three residual stages. At 32x32 pixels and D = 128 it has 0.5 M parameters.

    The colours of a character say nothing about it, so the network sees light strokes on a dark ground whatever they
    are.

    Args:
        emb_dim: Size of an embedding, D.
        image_shape: Shape of one image, (C, H, W), with sides of at least 16.
        filters: Channels of each stage; each halves the sides of the image.
    """

    calls_parts = True

    def __init__(
        self,
        emb_dim: int = 512,
        image_shape: tuple[int, int, int] = (3, 112, 112),
        filters: Sequence[int] = FILTERS,
    ) -> None:
        super().__init__()
        check_sides(image_shape)
        self.emb_dim, self.filters = emb_dim, tuple(filters)

    def build_network(self, input: paddle.Tensor, label: Optional[paddle.Tensor], is_train: bool) -> paddle.Tensor:
        """Computes the embeddings of a batch, [B, C, H, W] -> [B, emb_dim]."""
        x = functional.instance_norm(paddle.mean(input, axis=1, keepdim=True))
        x = x * paddle.sign(paddle.mean(x**3, axis=[2, 3], keepdim=True))  # strokes are the smaller part of an image
        for filters in self.filters:
            x = part(self._stage, x, filters, is_train)
        x = layers.fc(x, self.emb_dim)
        return layers.batch_norm(x, is_test=not is_train)

    def _stage(self, x: paddle.Tensor, filters: int, is_train: bool) -> paddle.Tensor:
        """Applies a convolution that halves the sides, and two more whose result is added to its own."""
        x = self._conv(x, filters, is_train, stride=2)
        y = self._conv(self._conv(x, filters, is_train), filters, is_train)
        return layers.elementwise_add(x, y)

    def _conv(self, x: paddle.Tensor, filters: int, is_train: bool, stride: int = 1) -> paddle.Tensor:
        """Applies a 3x3 convolution, batch normalisation and ReLU."""
        x = layers.conv2d(x, filters, 3, stride=stride, padding=1, bias_attr=False)
        return layers.batch_norm(x, act="relu", is_test=not is_train)
