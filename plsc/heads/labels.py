"""The labels of the global batch, for all micro-batches of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np
import paddle

from plsc import parallel
from plsc.errors import DataError


class MicroBatchLabels(NamedTuple):
    """The labels of one micro-batch, from all ranks.

    Attributes:
        counts: The number of samples of each rank.
        labels: [sum(counts)] The labels, in the order of the ranks.
    """

    counts: list[int]
    labels: np.ndarray


class LabelGatherer:
    """Gathers the labels of all ranks with one collective, or two if a batch is larger than any before.

    Args:
        num_classes: Labels are in [0, num_classes).

    Attributes:
        capacity: The number of labels a message has room for; the same on every rank.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.capacity = 64

    def start(self, labels: Sequence[np.ndarray], note: int = 0) -> GatheredLabels:
        """Starts to gather this rank's labels, so that the backbone can run meanwhile.

        Args:
            labels: [b] of each micro-batch. Every rank gives the same number of micro-batches.
            note: A number for the other ranks, which travels with the labels at no extra cost.
        """
        return GatheredLabels(self, [np.asarray(label).reshape(-1).astype("int64") for label in labels], note)


class GatheredLabels:
    """Labels on their way from all ranks.

    Attributes:
        notes: The note of each rank, once `wait` has returned.
    """

    def __init__(self, gatherer: LabelGatherer, labels: list[np.ndarray], note: int) -> None:
        self._gatherer, self._note = gatherer, note
        self.notes: list[int] = []
        self._sizes, self._labels = [len(label) for label in labels], np.concatenate(labels)
        self._pending = self._start()
        self._result: Optional[list[MicroBatchLabels]] = None

    def _start(self) -> parallel.Pending:
        """Sends a message of the note, the size of each micro-batch, and the labels, padded to the capacity."""
        capacity, first = self._gatherer.capacity, 1 + len(self._sizes)
        message = np.full(first + capacity, -1, dtype="int64")
        message[:first] = [self._note, *self._sizes]
        message[first : first + len(self._labels)] = self._labels[:capacity]
        return parallel.start_all_gather(paddle.to_tensor(message))

    def wait(self) -> list[MicroBatchLabels]:
        """Returns the labels of each micro-batch.

        Raises:
            DataError: A label of some rank is not in [0, num_classes).
        """
        if self._result is None:
            self._result = self._split(self._pending.wait().numpy())
        return self._result

    def _split(self, messages: np.ndarray) -> list[MicroBatchLabels]:
        self.notes, messages = messages[:, 0].tolist(), messages[:, 1:]
        micro_batches = len(self._sizes)
        most = int(messages[:, :micro_batches].sum(axis=1).max())
        if most > self._gatherer.capacity:  # every rank sees it and gathers again
            self._gatherer.capacity = 1 << (most - 1).bit_length()
            return self._split(self._start().wait().numpy())
        by_rank = []
        for rank, message in enumerate(messages):
            ends = micro_batches + np.cumsum(message[:micro_batches])
            self._check(rank, message[micro_batches : ends[-1]])
            by_rank.append(np.split(message[: ends[-1]], [micro_batches, *ends[:-1]])[1:])
        return [MicroBatchLabels([len(one) for one in labels], np.concatenate(labels)) for labels in zip(*by_rank)]

    def _check(self, rank: int, labels: np.ndarray) -> None:
        num_classes = self._gatherer.num_classes
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if len(wrong):
            raise DataError(
                f"rank {rank}: label {wrong[0]} is not in [0, {num_classes}), and the largest label of the batch is "
                f"{labels.max()}; correct the labels, which count from 0, or call set_class_num with at least "
                f"{max(num_classes, labels.max() + 1)}"
            )
