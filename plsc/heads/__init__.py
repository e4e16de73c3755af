"""The last layer: class centres sharded over the ranks, margins, loss and exact gradients."""

from plsc.heads.classifier import ClassifierHead, build_head, build_margin, shard_bounds
from plsc.heads.labels import GatheredLabels
from plsc.heads.margins import Margin, Target
from plsc.heads.step import HeadOutput

__all__ = [
    "ClassifierHead",
    "GatheredLabels",
    "HeadOutput",
    "Margin",
    "Target",
    "build_head",
    "build_margin",
    "shard_bounds",
]
