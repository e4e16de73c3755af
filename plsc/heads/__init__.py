"""The last layer: class centres sharded over the ranks, margins, loss and exact gradients."""

from plsc.heads.softmax import ClassifierHead, HeadOutput, build_head, shard_bounds

__all__ = ["ClassifierHead", "HeadOutput", "build_head", "shard_bounds"]
