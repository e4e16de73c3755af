"""The memory and the time of trainings that compute activations again, as JSON: python tests/benchmarks/recompute.py

Each training is a process of its own on random images: the same steps with `set_recompute(False)` and `(True)`. `peak`
is the peak of resident memory, `cpu_seconds` the CPU time of the fastest step, `forecast` what `plsc plan` says, and
`loss` must be the same to the last digit.
"""

import argparse
import json
import os
import subprocess
import sys
import time

from checkout import ROOT

CASES = [("ResNet50", 32), ("MobileFaceNet", 32), ("ViT", 16)]  # model, batch
CLASSES, STEPS = 1000, 3


def train(model, batch, recompute):
    """Trains some steps; prints the peak of memory, the CPU time of the fastest step, and the loss."""
    import numpy as np

    from plsc import Callback, Entry
    from plsc.machine.memory import peak_memory

    class Times(Callback):
        def __init__(self):
            self.moments, self.losses = [], []

        def on_step_end(self, run):
            self.moments.append(time.process_time())
            self.losses.append(run.last.loss)

    ins, times = Entry(), Times()
    ins.set_model_name(model)
    ins.set_class_num(CLASSES)
    ins.set_train_batch_size(batch)
    ins.set_recompute(recompute)
    ins.set_train_epochs(1)
    ins.set_with_test(False)
    ins.set_model_save_dir(None)
    ins.set_num_workers(0)
    ins.add_callback(times)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, 3, 112, 112)).astype("float32")
    ins.train_reader = [(images, rng.integers(0, CLASSES, batch)) for _ in range(STEPS)]
    ins.train()
    seconds = min(np.diff(times.moments))
    print(json.dumps({"peak": peak_memory(), "cpu_seconds": round(float(seconds), 3), "loss": repr(times.losses[-1])}))


def forecast(model, batch, recompute):
    """What `plsc plan` says about a case."""
    options = ["--classes", str(CLASSES), "--batch", str(batch), "--model", model, "--set", f"recompute={recompute}"]
    return run("-m", "plsc", "plan", *options, "--set", "num_workers=0", "--set", "model_save_dir=null", "--json")


def run(*arguments):
    """The JSON that a command of Python prints last."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    output = subprocess.run(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    lines = output.stdout.splitlines()
    return json.loads(output.stdout if lines[0] == "{" else lines[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=[model for model, _ in CASES])
    parser.add_argument("--batch", type=int, help="images of a batch (default: 32, and 16 of ViT)")
    options = parser.parse_args()
    rows = []
    for model, usual in CASES:
        if model not in options.models:
            continue
        batch = options.batch or usual
        for recompute in (False, True):
            case = (model, batch, recompute)
            row = {**run(__file__, json.dumps(case)), "forecast": forecast(*case)["total_bytes_per_rank"]}
            rows.append({"model": model, "batch": batch, "recompute": recompute, **row})
            print(rows[-1], file=sys.stderr)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("["):
        train(*json.loads(sys.argv[1]))
    else:
        main()
