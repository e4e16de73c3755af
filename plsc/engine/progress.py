"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: the one it is in, from 0; between epochs and at the end, the number of epochs done.
        step: finished steps of the run.
        batch: finished steps of this epoch.
        loss_sum, used_steps: over this epoch's steps that were not skipped.
        skipped, skipped_in_a_row: steps that were.
        loss: mean of the last finished epoch; None before.
        test: result of the last test; None before.
        metrics_size: bytes of metrics.jsonl when it was last saved.
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

    def end_epoch(self) -> None:
        """Moves on to the next epoch."""
        self.loss = self.loss_sum / self.used_steps if self.used_steps else None
        self.epoch, self.batch, self.loss_sum, self.used_steps = self.epoch + 1, 0, 0.0, 0
