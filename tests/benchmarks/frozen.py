"""Time of a step with a frozen backbone, against one that trains everything, as JSON.

    python tests/benchmarks/frozen.py [--model ResNet18] [--side 112] [--batch 16] [--classes 1000] [--steps 6]
        [--rounds 3]
    python -m plsc run --ranks 2 tests/benchmarks/frozen.py

Each kind trains the same network on the same random images: everything, a backbone that `set_trainable('head')`
freezes, the last layer alone, and a backbone whose parameters the user has frozen with `stop_gradient`. They take
turns, and the best round of each counts: others use the machine too. `kept_bytes` is what a step copies, so that it
can be undone.
"""

import argparse
import json
import math
import sys
import time

import checkout  # noqa: F401
import numpy as np
from throughput import entry_of

from plsc import Callback, parallel
from plsc.models import MODEL_NAMES, build_model

KINDS = {"all": "all", "head": "head", "last layer": ["fc.*", "features*"], "stop_gradient": "all"}


class Watch(Callback):
    """Seconds of a step after the first, and the bytes that each step copies."""

    def on_step_end(self, run):
        if run.progress.step == 1:
            self.began = time.perf_counter()
        elif run.progress.step == run.steps_per_epoch:
            self.seconds = (time.perf_counter() - self.began) / (run.progress.step - 1)
            self.kept_bytes = sum(math.prod(t.shape) * t.element_size() for t in run.statistics)


def measured(kind, options, batches):
    """Returns the seconds of a step, and the bytes that each step copies."""
    ins = entry_of(options)
    ins.set_log_period(10)
    if kind == "stop_gradient":
        model = build_model(options.model, 512, (3, options.side, options.side))
        for parameter in model.parameters():
            parameter.stop_gradient = True
        ins.set_model(model)
    elif kind != "all":
        ins.set_trainable(KINDS[kind])
    ins.train_reader = batches
    watch = Watch()
    ins.add_callback(watch)
    ins.train()
    return watch.seconds, watch.kept_bytes


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODEL_NAMES, default="ResNet18")
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (options.batch, 3, options.side, options.side)
    batches = [
        (rng.normal(size=shape).astype("float32"), rng.integers(0, options.classes, options.batch))
        for _ in range(options.steps)
    ]
    seconds, kept = {}, {}
    for _ in range(options.rounds):
        for kind in KINDS:
            found, kept[kind] = measured(kind, options, batches)
            seconds[kind] = min(seconds.get(kind, math.inf), found)
    if parallel.rank() == 0:
        result = {
            "command": " ".join(["python", *sys.argv]),
            "ranks": parallel.world_size(),
            **vars(options),
            "seconds_per_step": {kind: round(value, 4) for kind, value in seconds.items()},
            "times_as_fast": {kind: round(seconds["all"] / value, 2) for kind, value in seconds.items()},
            "kept_bytes": kept,
        }
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
