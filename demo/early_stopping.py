"""Stops training early with a callback, when the accuracy on a test set stops growing: `early_stopping.py DATA`."""

import sys

import settings

from plsc import Callback, Entry


class StopWhenItWorsens(Callback):
    """A callback that stops training when the accuracy on a test set has not grown for `patience` epochs."""

    def __init__(self, name, patience=2):
        self.name, self.patience = name, patience
        self.best, self.since = 0.0, 0

    def on_test(self, run, results):
        """Compares the accuracy with the best one so far."""
        accuracy = results[self.name]["accuracy"]
        self.since = 0 if accuracy > self.best else self.since + 1
        self.best = max(self.best, accuracy)
        run.record("early_stopping", step=run.progress.step, best=self.best, since=self.since)

    def on_epoch_end(self, run):
        """Stops all ranks."""
        if self.since >= self.patience:
            run.stop(f"{self.name}: no better than {self.best:.4f} for {self.since} epochs")

    def state(self):
        """Returns what checkpoints keep, so that a resumed run continues to count."""
        return [self.best, self.since]

    def load_state(self, state):
        """Restores the counts of a checkpoint."""
        self.best, self.since = state


if __name__ == "__main__":
    ins = Entry()
    settings.apply(ins, dataset_dir=sys.argv[1])
    ins.set_with_test(True)
    ins.set_train_epochs(100)
    ins.add_callback(StopWhenItWorsens("glyphs"))
    print(ins.train()["stopped"])
