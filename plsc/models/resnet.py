"""The residual networks of ArcFace for small face crops ("IResNet"), with 18 to 200 layers."""

from __future__ import annotations

from typing import Optional

import paddle
from paddle import nn

from plsc.errors import ConfigError
from plsc.layers.slopes import PReLU
from plsc.models.base_model import BaseModel

DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (6, 26, 60, 6),
}
WIDTHS = (64, 128, 256, 512)
EPSILON = 2e-5


def check_sides(image_shape: tuple[int, int, int]) -> None:
    """Refuses images that are too small to be halved four times.

    Raises:
        ConfigError: A side is below 16.
    """
    if min(image_shape[1:]) < 16:
        raise ConfigError(f"set_image_shape({tuple(image_shape)}): the built-in models need sides of at least 16")


class ResNet(BaseModel):
    """A network of 3x3 residual blocks with PReLU (Deng et al., ArcFace, CVPR 2019, section 3.1).

    The stem is a 3x3 convolution without stride. Four stages of 64, 128, 256 and 512 channels each halve the feature
    map. Batch normalisation, dropout, a fully connected layer and a last batch normalisation, whose scale is fixed at
    1, follow. At 112x112 pixels and 512 dimensions the parameter counts are those published for the same networks in
    InsightFace's arcface_torch: 43.59 M for 50 layers, 65.15 M for 100.

    Args:
        layers: Number of layers: 18, 34, 50, 100, 101, 152 or 200.
        emb_dim: Size of an embedding, D.
        image_shape: Shape of one image, (C, H, W), with sides of at least 16.
        dropout: Probability of dropout before the fully connected layer.
        epsilon: What batch normalisation adds to variances. InsightFace's arcface_torch has 1e-5, and no dropout.
    """

    def __init__(
        self,
        layers: int = 50,
        emb_dim: int = 512,
        image_shape: tuple[int, int, int] = (3, 112, 112),
        dropout: float = 0.4,
        epsilon: float = EPSILON,
    ) -> None:
        super().__init__()
        if layers not in DEPTHS:
            raise ConfigError(f"ResNet(layers={layers!r}): expected one of {', '.join(map(str, DEPTHS))}")
        check_sides(image_shape)
        channels, height, width = image_shape
        self.stem = nn.Sequential(_conv(channels, 64, 3), nn.BatchNorm2D(64, epsilon=epsilon), PReLU(64))
        blocks, previous = [], 64
        for depth, filters in zip(DEPTHS[layers], WIDTHS):
            for index in range(depth):
                blocks.append(_Block(previous, filters, 2 if index == 0 else 1, epsilon))
                previous = filters
            height, width = (height + 1) // 2, (width + 1) // 2
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2D(previous, epsilon=epsilon)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(
            previous * height * width, emb_dim, weight_attr=paddle.ParamAttr(initializer=nn.initializer.XavierNormal())
        )
        # Paddle gives the bias of a BatchNorm no gradient if its scale has none, so the bias is a separate parameter.
        fixed = paddle.ParamAttr(trainable=False)
        self.features = nn.BatchNorm1D(emb_dim, epsilon=epsilon, weight_attr=fixed, bias_attr=False)
        self.features_bias = self.create_parameter([emb_dim], is_bias=True)

    def build_network(self, input: paddle.Tensor, label: Optional[paddle.Tensor], is_train: bool) -> paddle.Tensor:
        """Computes the embeddings of a batch, [B, C, H, W] -> [B, emb_dim]."""
        x = self.norm(self.blocks(self.stem(input)))
        return self.features(self.fc(self.dropout(x.flatten(1)))) + self.features_bias


class _Block(nn.Layer):
    def __init__(self, in_channels: int, out_channels: int, stride: int, epsilon: float) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2D(in_channels, epsilon=epsilon),
            _conv(in_channels, out_channels, 3),
            nn.BatchNorm2D(out_channels, epsilon=epsilon),
            PReLU(out_channels),
            _conv(out_channels, out_channels, 3, stride),
            nn.BatchNorm2D(out_channels, epsilon=epsilon),
        )
        self.shortcut = (
            nn.Sequential(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2D(out_channels, epsilon=epsilon))
            if stride != 1 or in_channels != out_channels
            else None
        )

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.residual(x) + (x if self.shortcut is None else self.shortcut(x))


def _conv(in_channels: int, out_channels: int, size: int, stride: int = 1) -> nn.Conv2D:
    init = paddle.ParamAttr(initializer=nn.initializer.KaimingNormal())
    return nn.Conv2D(
        in_channels, out_channels, size, stride=stride, padding=size // 2, weight_attr=init, bias_attr=False
    )
