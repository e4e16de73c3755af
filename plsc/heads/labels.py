"""The labels of the global batch."""

from __future__ import annotations

import numpy as np
import paddle

from plsc import parallel
from plsc.errors import DataError


class LabelGatherer:
    """Gathers the labels of all ranks: one collective, unless a batch is larger than any before.

    Args:
        num_classes: labels are in [0, num_classes).
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.capacity = 64  # labels a message has room for; the same on every rank

    def start(self, label: np.ndarray) -> GatheredLabels:
        """Starts to gather [b] labels of this rank, so that the backbone can run meanwhile."""
        return GatheredLabels(self, np.asarray(label).reshape(-1).astype("int64"))


class GatheredLabels:
    """Labels on their way."""

    def __init__(self, gatherer: LabelGatherer, label: np.ndarray) -> None:
        self._gatherer, self._label = gatherer, label
        self._pending = self._start()

    def _start(self) -> parallel.Pending:
        capacity = self._gatherer.capacity
        padded = np.full(capacity + 1, -1, dtype="int64")
        padded[0] = len(self._label)
        padded[1 : 1 + len(self._label)] = self._label[:capacity]
        return parallel.start_all_gather(paddle.to_tensor(padded))

    def wait(self) -> tuple[list[int], np.ndarray]:
        """(samples of each rank, [sum of them] labels in rank order).

        Raises:
            DataError: a label is not in [0, num_classes), on any rank.
        """
        parts = self._pending.wait().numpy()
        most = int(parts[:, 0].max())
        if most > self._gatherer.capacity:  # every rank sees it and gathers again
            self._gatherer.capacity = 1 << (most - 1).bit_length()
            self._pending = self._start()
            return self.wait()
        counts = [int(count) for count in parts[:, 0]]
        labels = [part[1 : 1 + count] for part, count in zip(parts, counts)]
        num_classes = self._gatherer.num_classes
        for rank, of_rank in enumerate(labels):
            wrong = of_rank[(of_rank < 0) | (of_rank >= num_classes)]
            if len(wrong):
                raise DataError(
                    f"rank {rank}: label {wrong[0]} is not in [0, {num_classes}); correct the labels, or call set_class_num"
                )
        return counts, np.concatenate(labels)
