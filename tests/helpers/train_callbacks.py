"""`train_callbacks.py DATA OUTPUT STOP_RANK STOP_STEP` records the calls of its hooks; one rank asks to stop.

Writes the calls to `<OUTPUT>/calls_<rank>.json`.
"""

import json
import sys
from pathlib import Path

from train_glyphs import TinyNet, small_entry

from plsc import Callback, parallel


class Noting(Callback):
    def __init__(self, stop_rank, stop_step):
        self.calls, self.steps_seen, self.stop = [], 0, (stop_rank, stop_step)

    def note(self, hook, run, **values):
        self.calls.append([hook, run.progress.epoch, run.progress.step, values])

    def on_train_begin(self, run):
        self.note("train begin", run, last=run.last, parameters=len(run.backbone.parameters()))

    def on_epoch_begin(self, run):
        self.note("epoch begin", run)

    def on_step_end(self, run):
        self.steps_seen += 1
        self.note("step end", run, samples=run.last.samples, lr=run.last.lr, problem=run.last.problem)
        run.record("seen", step=run.progress.step, loss=run.last.loss)
        if (parallel.rank(), run.progress.step) == self.stop:
            run.stop("enough is enough")

    def on_test(self, run, results):
        self.note("test", run, sets=sorted(results))

    def on_epoch_end(self, run):
        self.note("epoch end", run, has_loss=run.progress.loss is not None)

    def on_save(self, run, folder):
        assert (folder / "meta.json").exists() or parallel.rank() != 0
        self.note("save", run, name=folder.name, kept=[one.name for one in run.checkpoints])

    def on_train_end(self, run):
        self.note("train end", run, seconds=run.clock.seconds > 0)

    def close(self):
        self.calls.append(["close"])

    def state(self):
        return {"steps_seen": self.steps_seen}

    def load_state(self, state):
        self.steps_seen = state["steps_seen"]


def main(data, output, stop_rank, stop_step):
    ins = small_entry(data, output)
    ins.set_background_save(False)
    ins.set_resume(True)
    ins.set_model(TinyNet())
    noting = Noting(int(stop_rank), int(stop_step))
    ins.add_callback(noting)
    ins.add_callback(Callback())
    result = ins.train()
    calls = {"calls": noting.calls, "steps_seen": noting.steps_seen, "result": result}
    Path(output, f"calls_{parallel.rank()}.json").write_text(json.dumps(calls))


if __name__ == "__main__":
    main(*sys.argv[1:])
