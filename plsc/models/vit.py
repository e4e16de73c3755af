"""A vision transformer of the size of ViT-Small (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929)."""

from __future__ import annotations

from typing import Optional

import paddle
from paddle import nn

from plsc.models.base_model import BaseModel
from plsc.models.resnet import check_sides

# "DeiT-S" in table 1 of Touvron et al., ICML 2021, arXiv:2012.12877.
WIDTH, BLOCKS, HEADS, EXPANSION = 384, 12, 6, 4
GRID = 14  # patches along the longer side, at most
EPSILON = 1e-6


class ViT(BaseModel):
    """Patches, then pre-norm transformer blocks of width 384 (section 3.1, equations 1 to 4); 22 million parameters.

    A patch has as many pixels as give at most 14 of them along the longer side: 8x8 pixels of 112x112 images, 16x16 of
    224x224. Sides that are no multiple are padded. There is no class token: images are aligned, so each channel of the last
    map is weighed by place, as in MobileFaceNet (arXiv:1804.07573, section 3.1), from the mean (ViT's appendix D.3) on.

    Args:
        emb_dim: D.
        image_shape: (C, H, W), sides of at least 16.
        blocks: transformer blocks.
    """

    def __init__(
        self, emb_dim: int = 512, image_shape: tuple[int, int, int] = (3, 112, 112), blocks: int = BLOCKS
    ) -> None:
        super().__init__()
        check_sides(image_shape)
        channels, *sides = image_shape
        patch = -(-max(sides) // GRID)
        rows, columns = (-(-side // patch) for side in sides)
        missing = [count * patch - side for count, side in zip((rows, columns), sides)]
        padding = [part for all in missing for part in (all // 2, all - all // 2)]  # top, bottom, left, right
        self.patches = nn.Conv2D(channels, WIDTH, patch, stride=patch, padding=padding)
        places = [1, rows * columns, WIDTH]
        self.positions = self.create_parameter(places, default_initializer=nn.initializer.TruncatedNormal(std=0.02))
        self.blocks = nn.Sequential(*(_Block() for _ in range(blocks)))
        self.norm = nn.LayerNorm(WIDTH, epsilon=EPSILON)
        mean = nn.initializer.Constant(1 / (rows * columns))
        self.weights_by_place = self.create_parameter(places, default_initializer=mean)
        self.tail = nn.Sequential(nn.Linear(WIDTH, emb_dim, bias_attr=False), nn.BatchNorm1D(emb_dim))

    def build_network(self, input: paddle.Tensor, label: Optional[paddle.Tensor], is_train: bool) -> paddle.Tensor:
        """[B, C, H, W] -> [B, emb_dim]."""
        x = self.patches(input).flatten(2).transpose([0, 2, 1]) + self.positions  # [B, places, WIDTH]
        x = self.norm(self.blocks(x))
        return self.tail((x * self.weights_by_place).sum(1))


class _Block(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(WIDTH, epsilon=EPSILON), _Attention())
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH, epsilon=EPSILON),
            nn.Linear(WIDTH, EXPANSION * WIDTH),
            nn.GELU(),
            nn.Linear(EXPANSION * WIDTH, WIDTH),
        )

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class _Attention(nn.Layer):
    """Self-attention of several heads (appendix A, equations 5 to 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        places, width = x.shape[1], WIDTH // HEADS
        q, k, v = self.qkv(x).reshape([-1, places, 3, HEADS, width]).transpose([2, 0, 3, 1, 4]).unbind(0)
        shares = nn.functional.softmax(paddle.matmul(q * width**-0.5, k, transpose_y=True), axis=-1)
        return self.out(paddle.matmul(shares, v).transpose([0, 2, 1, 3]).reshape([-1, places, WIDTH]))
