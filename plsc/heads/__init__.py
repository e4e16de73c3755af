"""The last layer: class centres sharded over the ranks, margins, loss and exact gradients.

`plsc.heads.reference` computes one step in the plainest way, and is the place to start reading; docs/head.md explains
how the other modules get the same numbers without holding the logits.
"""

from plsc.heads.classifier import ClassifierHead, build_head
from plsc.heads.group import HeadGroup
from plsc.heads.labels import GatheredLabels
from plsc.heads.margins import Margin, Target, build_margin
from plsc.heads.records import HeadOutput
from plsc.heads.shard import shard_bounds

__all__ = [
    "ClassifierHead",
    "GatheredLabels",
    "HeadGroup",
    "HeadOutput",
    "Margin",
    "Target",
    "build_head",
    "build_margin",
    "shard_bounds",
]
