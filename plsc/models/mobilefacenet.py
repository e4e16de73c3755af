"""MobileFaceNet, a small network for phones (Chen et al., 2018, arXiv:1804.07573)."""

from __future__ import annotations

from typing import Optional

import paddle
from paddle import nn

from plsc.layers.slopes import PReLU
from plsc.models.base_model import BaseModel
from plsc.models.resnet import check_sides

# Table 1 of the paper: expansion t, channels c, repeats n, stride s of the first block.
BOTTLENECKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


class MobileFaceNet(BaseModel):
    """A network of about a million parameters, in which a global depthwise convolution weights the last feature map.

    Args:
        emb_dim: Size of an embedding, D; 128 in the paper.
        image_shape: Shape of one image, (C, H, W), with sides of at least 16.
    """

    def __init__(self, emb_dim: int = 512, image_shape: tuple[int, int, int] = (3, 112, 112)) -> None:
        super().__init__()
        check_sides(image_shape)
        channels, height, width = image_shape
        self.stem = nn.Sequential(_conv(channels, 64, 3, stride=2), _conv(64, 64, 3, groups=64))
        blocks, previous, halvings = [], 64, 1
        for expansion, filters, repeats, stride in BOTTLENECKS:
            halvings += stride == 2
            for index in range(repeats):
                blocks.append(_Bottleneck(previous, filters, expansion, stride if index == 0 else 1))
                previous = filters
        for _ in range(halvings):
            height, width = (height + 1) // 2, (width + 1) // 2
        self.blocks = nn.Sequential(*blocks)
        self.tail = nn.Sequential(
            _conv(previous, 512, 1),
            nn.Conv2D(512, 512, (height, width), groups=512, bias_attr=False),
            nn.BatchNorm2D(512),
            nn.Conv2D(512, emb_dim, 1, bias_attr=False),
            nn.BatchNorm2D(emb_dim),
        )

    def build_network(self, input: paddle.Tensor, label: Optional[paddle.Tensor], is_train: bool) -> paddle.Tensor:
        """Computes the embeddings of a batch, [B, C, H, W] -> [B, emb_dim]."""
        return self.tail(self.blocks(self.stem(input))).flatten(1)


class ArcFaceMobileFaceNet(BaseModel):
    """The variants of MobileFaceNet in InsightFace's arcface_torch ("mbf") and in PLSC 2: wider, and with more blocks.

    Its tensors have the names that they have there.

    Args:
        emb_dim: Size of an embedding, D.
        image_shape: Shape of one image, (C, H, W), with sides of at least 16.
        blocks: Number of blocks of each of the four stages; a first stage of one block is a plain convolution.
        scale: Factor of the channels, 2 for the base network and 4 for the large one.
    """

    def __init__(
        self,
        emb_dim: int = 512,
        image_shape: tuple[int, int, int] = (3, 112, 112),
        blocks: tuple[int, int, int, int] = (1, 4, 6, 2),
        scale: int = 2,
    ) -> None:
        super().__init__()
        check_sides(image_shape)
        channels, height, width = image_shape
        narrow, wide = 64 * scale, 128 * scale
        first = (
            _Layers(*_conv(narrow, narrow, 3, groups=64)) if blocks[0] == 1 else _Stage(narrow, blocks[0], hidden=128)
        )
        self.layers = nn.LayerList(
            [
                _Layers(*_conv(channels, narrow, 3, stride=2)),
                first,
                _DepthWise(narrow, narrow, hidden=128, stride=2),
                _Stage(narrow, blocks[1], hidden=128),
                _DepthWise(narrow, wide, hidden=256, stride=2),
                _Stage(wide, blocks[2], hidden=256),
                _DepthWise(wide, wide, hidden=512, stride=2),
                _Stage(wide, blocks[3], hidden=256),
            ]
        )
        for _ in range(4):
            height, width = (height + 1) // 2, (width + 1) // 2
        self.conv_sep = _Layers(*_conv(wide, 512, 1))
        weighting = nn.Conv2D(512, 512, (height, width), groups=512, bias_attr=False)
        linear = nn.Linear(512, emb_dim, bias_attr=False)
        self.features = _Layers(_Layers(weighting, nn.BatchNorm2D(512)), nn.Flatten(), linear, nn.BatchNorm1D(emb_dim))

    def build_network(self, input: paddle.Tensor, label: Optional[paddle.Tensor], is_train: bool) -> paddle.Tensor:
        """Computes the embeddings of a batch, [B, C, H, W] -> [B, emb_dim]."""
        for layer in self.layers:
            input = layer(input)
        return self.features(self.conv_sep(input))


class _Layers(nn.Layer):
    """Layers one after another, called `layers.0`, `layers.1` and so on."""

    def __init__(self, *layers: nn.Layer) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.layers(x)


class _DepthWise(_Layers):
    def __init__(self, in_channels: int, out_channels: int, hidden: int, stride: int = 1) -> None:
        super().__init__(
            _Layers(*_conv(in_channels, hidden, 1)),
            _Layers(*_conv(hidden, hidden, 3, stride, groups=hidden)),
            _Layers(nn.Conv2D(hidden, out_channels, 1, bias_attr=False), nn.BatchNorm2D(out_channels)),
        )


class _Residual(_DepthWise):
    """A block whose input is added to its result."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return x + self.layers(x)


class _Stage(_Layers):
    def __init__(self, channels: int, blocks: int, hidden: int) -> None:
        super().__init__(*(_Residual(channels, channels, hidden) for _ in range(blocks)))


class _Bottleneck(nn.Layer):
    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.body = nn.Sequential(
            _conv(in_channels, hidden, 1),
            _conv(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.Conv2D(hidden, out_channels, 1, bias_attr=False),
            nn.BatchNorm2D(out_channels),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def _conv(in_channels: int, out_channels: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2D(in_channels, out_channels, size, stride, size // 2, groups=groups, bias_attr=False),
        nn.BatchNorm2D(out_channels),
        PReLU(out_channels),
    )
