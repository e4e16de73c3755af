"""The built-in backbones once more, in PyTorch, without dropout.

Their parameters have the order of those of the networks in `plsc/models`.
"""

import torch
from torch import nn

# As in plsc/models, which imports Paddle, while this file runs where there may be none.
BOTTLENECKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
GLYPH_FILTERS = (32, 64, 128)  # as in the measurements of docs/performance.md; the last of the built-in one is 96
STAGES, RESNET_EPSILON = ((3, 64), (4, 128), (14, 256), (3, 512)), 2e-5
WIDTH, BLOCKS, HEADS, EXPANSION, GRID, VIT_EPSILON = 384, 12, 6, 4, 14, 1e-6


def twin_of(name, side):
    """Returns the twin of a network for images of `side` pixels."""
    return {"ResNet50": ResNet50, "MobileFaceNet": MobileFaceNet, "ViT": ViT, "GlyphNet": GlyphNet}[name](side)


class Residual(nn.Module):
    """Adds what `body` makes of the input to the input, or to what `shortcut` makes of it."""

    def __init__(self, body, shortcut=None):
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x):
        return self.shortcut(x) + self.body(x)


def conv(channels, filters, size, stride=1, groups=1):
    return nn.Conv2d(channels, filters, size, stride, size // 2, groups=groups, bias=False)


def activated(channels, filters, size, stride=1, groups=1):
    return nn.Sequential(conv(channels, filters, size, stride, groups), nn.BatchNorm2d(filters), nn.PReLU(filters))


class ResNet50(nn.Module):
    def __init__(self, side, emb_dim=512):
        super().__init__()
        self.features_bias = nn.Parameter(torch.zeros(emb_dim))
        norm = lambda channels: nn.BatchNorm2d(channels, RESNET_EPSILON)  # noqa: E731
        layers, previous = [conv(3, 64, 3), norm(64), nn.PReLU(64)], 64
        for depth, filters in STAGES:
            for index in range(depth):
                stride = 2 if index == 0 else 1
                body = nn.Sequential(
                    *(norm(previous), conv(previous, filters, 3), norm(filters), nn.PReLU(filters)),
                    *(conv(filters, filters, 3, stride), norm(filters)),
                )
                is_same = stride == 1 and previous == filters
                shortcut = None if is_same else nn.Sequential(conv(previous, filters, 1, stride), norm(filters))
                layers.append(Residual(body, shortcut))
                previous = filters
            side = (side + 1) // 2
        features = nn.BatchNorm1d(emb_dim, RESNET_EPSILON, affine=False)
        self.body = nn.Sequential(
            *layers, norm(previous), nn.Flatten(), nn.Linear(previous * side * side, emb_dim), features
        )

    def forward(self, x):
        return self.body(x) + self.features_bias


class MobileFaceNet(nn.Sequential):
    def __init__(self, side, emb_dim=512):
        layers, previous = [activated(3, 64, 3, 2), activated(64, 64, 3, groups=64)], 64
        side = (side + 1) // 2
        for expansion, filters, repeats, stride in BOTTLENECKS:
            for index in range(repeats):
                hidden, step = previous * expansion, stride if index == 0 else 1
                body = nn.Sequential(
                    *(activated(previous, hidden, 1), activated(hidden, hidden, 3, step, hidden)),
                    *(conv(hidden, filters, 1), nn.BatchNorm2d(filters)),
                )
                layers.append(Residual(body) if step == 1 and previous == filters else body)
                side, previous = (side + 1) // 2 if step == 2 else side, filters
        tail = [activated(previous, 512, 1), nn.Conv2d(512, 512, side, groups=512, bias=False), nn.BatchNorm2d(512)]
        super().__init__(*layers, *tail, conv(512, emb_dim, 1), nn.BatchNorm2d(emb_dim), nn.Flatten())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ViT(nn.Module):
    def __init__(self, side, emb_dim=512):
        super().__init__()
        patch = -(-side // GRID)
        assert side % patch == 0, "the twin does not pad"
        places = (side // patch) ** 2
        self.positions = nn.Parameter(torch.zeros(1, places, WIDTH))
        self.weights_by_place = nn.Parameter(torch.zeros(1, places, WIDTH))
        self.patches = nn.Conv2d(3, WIDTH, patch, patch)
        norm = lambda: nn.LayerNorm(WIDTH, VIT_EPSILON)  # noqa: E731
        wide = EXPANSION * WIDTH
        blocks = [
            part
            for _ in range(BLOCKS)
            for part in (
                Residual(nn.Sequential(norm(), Attention())),
                Residual(nn.Sequential(norm(), nn.Linear(WIDTH, wide), nn.GELU(), nn.Linear(wide, WIDTH))),
            )
        ]
        self.blocks = nn.Sequential(*blocks, norm())
        self.tail = nn.Sequential(nn.Linear(WIDTH, emb_dim, bias=False), nn.BatchNorm1d(emb_dim))

    def forward(self, x):
        x = self.blocks(self.patches(x).flatten(2).transpose(1, 2) + self.positions)
        return self.tail((x * self.weights_by_place).sum(1))


class GlyphNet(nn.Sequential):
    def __init__(self, side, emb_dim=128):
        layers, previous = [], 1
        for filters in GLYPH_FILTERS:
            layers.append(convolved(previous, filters, 2))
            layers.append(Residual(nn.Sequential(convolved(filters, filters), convolved(filters, filters))))
            previous, side = filters, (side + 1) // 2
        super().__init__(*layers, nn.Flatten(), nn.Linear(previous * side * side, emb_dim), nn.BatchNorm1d(emb_dim))

    def forward(self, images):
        x = nn.functional.instance_norm(images.mean(1, keepdim=True))
        return super().forward(x * torch.sign((x**3).mean((2, 3), keepdim=True)))


def convolved(inputs, outputs, stride=1):
    """A 3x3 convolution, batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs, momentum=0.1), nn.ReLU()
    )
