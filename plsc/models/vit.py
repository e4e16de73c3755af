"""A vision transformer of the size of ViT-Small (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929)."""

from __future__ import annotations

from typing import Optional

import paddle
from paddle import nn

from plsc.layers.transformer import GELU, LayerNorm, Linear
from plsc.models.base_model import BaseModel
from plsc.models.resnet import check_sides

# The sizes are those of "DeiT-S" in table 1 of Touvron et al., ICML 2021, arXiv:2012.12877.
WIDTH, BLOCKS, HEADS, EXPANSION = 384, 12, 6, 4
GRID = 14  # Most patches along the longer side.
EPSILON = 1e-6


class ViT(BaseModel):
    """A network of pre-norm transformer blocks of width 384 on patches (section 3.1, equations 1 to 4).

    It has 22 million parameters. The size of a patch is chosen such that at most 14 patches cover the longer side: 8x8
    pixels for images of 112x112, 16x16 for 224x224. Sides that are not a multiple of the patch are padded. There is no
    class token: because images are aligned, trained weights by place average each channel of the last map, as in
    MobileFaceNet (arXiv:1804.07573, section 3.1). They start as the mean (appendix D.3 of the ViT paper).

    Args:
        emb_dim: Size of an embedding, D.
        image_shape: Shape of one image, (C, H, W), with sides of at least 16.
        blocks: Number of transformer blocks.
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
        padding = [part for all in missing for part in (all // 2, all - all // 2)]  # Top, bottom, left, right.
        self.patches = nn.Conv2D(channels, WIDTH, patch, stride=patch, padding=padding)
        places = [1, rows * columns, WIDTH]
        self.positions = self.create_parameter(places, default_initializer=nn.initializer.TruncatedNormal(std=0.02))
        self.blocks = nn.Sequential(*(_Block() for _ in range(blocks)))
        self.norm = LayerNorm(WIDTH, epsilon=EPSILON)
        mean = nn.initializer.Constant(1 / (rows * columns))
        self.weights_by_place = self.create_parameter(places, default_initializer=mean)
        self.tail = nn.Sequential(nn.Linear(WIDTH, emb_dim, bias_attr=False), nn.BatchNorm1D(emb_dim))

    def build_network(self, input: paddle.Tensor, label: Optional[paddle.Tensor], is_train: bool) -> paddle.Tensor:
        """Computes the embeddings of a batch, [B, C, H, W] -> [B, emb_dim]."""
        x = self.patches(input).flatten(2).unsqueeze(-1)
        x = _swapped(x).squeeze(-1) + self.positions  # [B, places, WIDTH]
        x = self.norm(self.blocks(x))
        return self.tail((x * self.weights_by_place).sum(1))


class _Block(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Sequential(LayerNorm(WIDTH, epsilon=EPSILON), _Attention())
        self.mlp = nn.Sequential(
            LayerNorm(WIDTH, epsilon=EPSILON),
            Linear(WIDTH, EXPANSION * WIDTH),
            GELU(),
            Linear(EXPANSION * WIDTH, WIDTH),
        )

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class _Attention(nn.Layer):
    """Multi-head self-attention (appendix A, equations 5 to 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = Linear(WIDTH, 3 * WIDTH)
        self.out = Linear(WIDTH, WIDTH)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        places, width = x.shape[1], WIDTH // HEADS
        qkv = _swapped(self.qkv(x).reshape([1, -1, 3, WIDTH])).reshape([-1, places, HEADS, width])
        q, k, v = _swapped(qkv).reshape([3, -1, HEADS, places, width]).unbind(0)
        weights = nn.functional.softmax(paddle.matmul(q * width**-0.5, k, transpose_y=True), axis=-1)
        return self.out(_swapped(paddle.matmul(weights, v)).reshape([-1, places, WIDTH]))


def _swapped(x: paddle.Tensor) -> paddle.Tensor:
    """Swaps the two dimensions in the middle, [A, B, C, D] -> [A, C, B, D].

    On a CPU, Paddle takes ten times as long to copy what `transpose` returns, a view, as to shuffle channels. It does
    not shuffle channels in 16 bits.
    """
    # A program has no such views, and its sizes may be unknown.
    if not (paddle.in_dynamic_mode() and x.place.is_cpu_place() and x.dtype == paddle.float32):
        return x.transpose([0, 2, 1, 3])
    first, second, third, last = x.shape
    shuffled = nn.functional.channel_shuffle(x.reshape([first, second * third, 1, last]), second)
    return shuffled.reshape([first, third, second, last])
