"""How far a run has come."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: The current epoch, from 0; between epochs and at the end, the number of finished epochs.
        step: Finished steps of the run.
        batch: Finished steps of this epoch.
        loss_sum: Sum of the losses of this epoch's steps that were not skipped.
        used_steps: Number of this epoch's steps that were not skipped.
        skipped: Skipped steps of the run.
        skipped_in_a_row: Skipped steps since the last one that was used, without those a large loss scale explains.
        loss: Mean loss of the last finished epoch; None before.
        test: Results of the last test; None before.
        metrics_size: Size of metrics.jsonl when it was last saved, in bytes.
    """

    epoch: int = 0
    step: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    used_steps: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    loss: Optional[float] = None
    test: Optional[dict[str, dict[str, float]]] = None
    metrics_size: int = 0

    def end_step(self, loss: float, is_used: bool, may_shrink: bool) -> None:
        """Counts a step.

        Args:
            loss: Mean loss over the global batch.
            is_used: Whether the step moved the weights; otherwise it was skipped.
            may_shrink: Whether the loss scale may shrink: one that is too large costs steps until it has shrunk.
        """
        self.step, self.batch = self.step + 1, self.batch + 1
        if is_used:
            self.loss_sum, self.used_steps = self.loss_sum + loss, self.used_steps + 1
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        is_expected = may_shrink and math.isfinite(loss)
        self.skipped_in_a_row = 0 if is_expected else self.skipped_in_a_row + 1

    def end_epoch(self) -> None:
        """Takes the mean loss of the epoch and moves on to the next epoch."""
        self.loss = self._mean()
        self.epoch, self.batch, self.loss_sum, self.used_steps = self.epoch + 1, 0, 0.0, 0

    def result_loss(self) -> float:
        """Returns `loss`, or the mean of the steps so far if no epoch is finished; NaN if there is none."""
        loss = self._mean() if self.loss is None else self.loss
        return math.nan if loss is None else loss

    def _mean(self) -> Optional[float]:
        return self.loss_sum / self.used_steps if self.used_steps else None
