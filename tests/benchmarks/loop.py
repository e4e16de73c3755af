"""Overhead of the training loop: against a bare Paddle loop that does the same work, in the same run, as JSON.

    python tests/benchmarks/loop.py [--model MobileFaceNet] [--side 112] [--batch 32] [--classes 10000] \\
        [--steps 20] [--rounds 4]

Both train the same network, head and optimizer on the same batches of random images; the bare loop has no checks, no
log, no callbacks, no reader thread. They take turns, and the best round of each counts: others use the machine too.
"""

import argparse
import json
import sys
import time

import checkout  # noqa: F401
import numpy as np
import paddle
from throughput import entry_of

from plsc import Callback, optim
from plsc.config import Config
from plsc.heads import build_head
from plsc.models import MODEL_NAMES, build_model


def bare(options, batches):
    """Seconds of a step without plsc's loop."""
    backbone = build_model(options.model, 512, (3, options.side, options.side))
    backbone.train()
    head = build_head("dist_arcface", options.classes, 512, 0.5)
    config = Config(train_batch_size=options.batch, lr=1e-4)
    trained = [p for p in (*backbone.parameters(), *head.parameters()) if not p.stop_gradient]
    optimizer = optim.build_optimizer(config, trained, len(batches))
    updates = optim.take_rows(optimizer, dict(head.named_parameters()))
    for number, (images, labels) in enumerate(batches):
        if number == 1:  # the first one is warm-up
            began = time.perf_counter()
        embedding = backbone(paddle.to_tensor(images))
        output = head(embedding.detach(), labels)
        embedding.backward(output.embedding_grad)
        head.backward(updates["weight"])
        optimizer.step()
        optimizer.clear_grad()
        optimizer._learning_rate.step()
    return (time.perf_counter() - began) / (len(batches) - 1)


class Watch(Callback):
    """Seconds of a step after the first."""

    def on_step_end(self, run):
        if run.progress.step == 1:
            self.began = time.perf_counter()
        elif run.progress.step == run.steps_per_epoch:
            self.seconds = (time.perf_counter() - self.began) / (run.progress.step - 1)


def ours(options, batches):
    """Seconds of a step of `Entry.train`."""
    ins = entry_of(options)
    ins.set_log_period(10)
    ins.train_reader = batches
    watch = Watch()
    ins.add_callback(watch)
    ins.train()
    return watch.seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODEL_NAMES, default="MobileFaceNet")
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (options.batch, 3, options.side, options.side)
    batches = [
        (rng.normal(size=shape).astype("float32"), rng.integers(0, options.classes, options.batch))
        for _ in range(options.steps)
    ]
    seconds = {"bare": [], "plsc": []}
    for _ in range(options.rounds):
        seconds["bare"].append(bare(options, batches))
        seconds["plsc"].append(ours(options, batches))
    best = {name: min(values) for name, values in seconds.items()}
    result = {"command": " ".join(sys.argv), "paddle": paddle.__version__, "seconds_of_a_step": seconds}
    print(json.dumps({**result, "overhead_percent": 100 * (best["plsc"] / best["bare"] - 1)}, indent=1))


if __name__ == "__main__":
    main()
