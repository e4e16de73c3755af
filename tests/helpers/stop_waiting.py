"""Trains on several ranks, of which the last waits until a signal ends the training; resumes; trains without a wait.

    stop_waiting.py DATA OUTPUT WAIT STEP

WAIT says for what: `file` of a store, a batch of a `reader`, or a `test` of a reader. Once it waits and STEP steps are
done, it makes a file `<OUTPUT>.waits`. Each rank writes the exit status of the first training to
`<OUTPUT>.status_<rank>`. The resumed training saves to OUTPUT, the other one to `<OUTPUT>.straight`.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import paddle
from train_glyphs import CLASSES, TinyNet, small_entry

from plsc import Callback, Entry, parallel
from plsc.storage.local import LocalStorage

ready, release = threading.Event(), threading.Event()


class Ready(Callback):
    """Notes that training has come to a step. Before it begins, plsc looks at the first batches of a test."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_begin(self, run):
        if self.step == 0:
            ready.set()

    def on_step_end(self, run):
        if self.step == run.progress.step:
            ready.set()


def wait_in_vain(output: str, late: bool = False) -> None:
    if parallel.rank() == parallel.world_size() - 1 and not release.is_set() and (ready.is_set() or not late):
        ready.wait(120)
        Path(f"{output}.waits").touch()
        release.wait(120)


def make_reader(output: str, slow: int, late: bool = False):
    """Returns a reader of five batches, one of which does not come; with `late`, only after training has begun."""

    def reader():
        rng = np.random.default_rng(parallel.rank())
        for number in range(5):
            if number == slow:
                wait_in_vain(output, late)
            yield [(image.astype("float32"), k % CLASSES) for k, image in enumerate(rng.normal(size=(6, 3, 32, 32)))]

    return reader


def make_entry(data: str, output: str, folder: str, wait: str, step: int) -> Entry:
    ins = small_entry(data, folder)
    ins.set_resume(True)
    ins.set_with_test(wait == "test")
    ins.set_gradient_accumulation(2)
    ins.set_log_period(1)
    ins.add_callback(Ready(step))
    paddle.seed(0)
    ins.set_model(TinyNet(dropout=0.3))
    if wait == "file":
        ins.set_dataset_dir(f"file://{data}")
        ins.set_data_cache(f"{output}.cache", "1GB")
    else:
        ins.train_reader = make_reader(output, 3 if wait == "reader" else -1)
    if wait == "test":
        ins.test_reader = make_reader(output, 1, late=True)
    return ins


def main() -> None:
    data, output, wait, step = sys.argv[1:]
    read = LocalStorage.read

    def slow_read(self, path, offset, count):
        if path.endswith("base64_rank_1"):
            wait_in_vain(output)
        yield from read(self, path, offset, count)

    LocalStorage.read = slow_read
    try:
        make_entry(data, output, output, wait, int(step)).train()
    except SystemExit as ended:
        Path(f"{output}.status_{parallel.rank()}").write_text(str(ended.code))
    release.set()
    for folder in (output, f"{output}.straight"):
        make_entry(data, output, folder, wait, int(step)).train()


if __name__ == "__main__":
    main()
