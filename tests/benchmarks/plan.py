"""The memory forecast against measured memory, at five sizes, as JSON: python tests/benchmarks/plan.py

Each training is a process of its own, or two ranks, on random images; memory is the peak of resident memory of rank 0.
The head's share is measured in one more process that makes the head alone and takes the same steps. Nothing is saved.
"""

import argparse
import json
import os
import subprocess
import sys

from checkout import ROOT

CASES = [  # classes, embedding, batch, ranks, model, sample ratio, optimizer
    (100_000, 512, 64, 1, "MobileFaceNet", 1.0, "Momentum"),
    (1_000_000, 512, 32, 1, "MobileFaceNet", 1.0, "Momentum"),
    (1_000_000, 512, 8, 1, "ResNet50", 0.1, "Momentum"),
    (500_000, 512, 16, 2, "ResNet18", 1.0, "Momentum"),
    (200_000, 256, 48, 1, "ResNet18", 1.0, "Adam"),
]
STEPS = 3


def optimizer_of(name):
    """A maker of Paddle's optimizer of that name."""
    import paddle

    if name == "Momentum":
        return lambda parameters: paddle.optimizer.Momentum(0.1, 0.9, parameters=parameters, weight_decay=5e-4)
    return lambda parameters: getattr(paddle.optimizer, name)(1e-3, parameters=parameters)


def train(classes, emb_dim, batch, ranks, model, ratio, optimizer):
    """Trains some steps; prints the peak."""
    import numpy as np

    from plsc import Entry, parallel
    from plsc.machine.memory import peak_memory

    ins = Entry()
    ins.set_model_name(model)
    ins.set_emb_size(emb_dim)
    ins.set_class_num(classes)
    ins.set_train_batch_size(batch)
    ins.set_sample_ratio(ratio)
    ins.set_optimizer(optimizer_of(optimizer))
    ins.set_train_epochs(1)
    ins.set_with_test(False)
    ins.set_model_save_dir(None)
    ins.set_num_workers(0)
    rng = np.random.default_rng(parallel.rank())
    images = rng.normal(size=(batch, 3, 112, 112)).astype("float32")
    ins.train_reader = [(images, rng.integers(0, classes, batch)) for _ in range(STEPS)]
    ins.train()
    if parallel.rank() == 0:
        print(json.dumps({"peak": peak_memory()}))


def head(classes, emb_dim, batch, ranks, model, ratio, optimizer):
    """The same steps of the head alone; prints what it took."""
    import numpy as np
    import paddle

    from plsc import parallel
    from plsc.heads import build_head
    from plsc.machine.memory import peak_memory, resident_memory
    from plsc.optim import take_rows

    parallel.initialise()
    # Paddle's libraries take memory with their first step; they are the process's, not the head's.
    build_head("dist_arcface", 16, emb_dim)(paddle.zeros([2, emb_dim]), np.zeros(2, "int64"))
    before = resident_memory()
    layer = build_head("dist_arcface", classes, emb_dim, sample_ratio=ratio)
    made = optimizer_of(optimizer)(list(layer.parameters()))
    updates = take_rows(made, dict(layer.named_parameters()))
    rng = np.random.default_rng(parallel.rank())
    for _ in range(STEPS):
        layer(paddle.to_tensor(rng.normal(size=(batch, emb_dim)).astype("float32")), rng.integers(0, classes, batch))
        layer.backward(updates.get("weight"))
        if not updates:
            made.step()
            made.clear_grad()
    if parallel.rank() == 0:
        print(json.dumps({"peak": peak_memory() - before}))


def run(kind, case):
    """One measurement in processes of its own."""
    return plsc("run", "--ranks", str(case[3]), __file__, kind, json.dumps(case))


def forecast(classes, emb_dim, batch, ranks, model, ratio, optimizer):
    """What `plsc plan` says about a case."""
    names = ("--classes", "--emb", "--batch", "--ranks", "--model", "--sample-ratio", "--optimizer")
    values = (classes, emb_dim, batch, ranks, model, ratio, optimizer)
    options = [word for pair in zip(names, map(str, values)) for word in pair]
    return plsc("plan", *options, "--set", "num_workers=0", "--set", "model_save_dir=null", "--json")


def plsc(*arguments):
    """The JSON that a command of plsc prints last."""
    command = [sys.executable, "-m", "plsc", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def main():
    rows = []
    for case in CASES:
        planned, whole, alone = forecast(*case), run("train", case), run("head", case)
        rows.append(
            {
                "case": case,
                "head_forecast": planned["head_bytes_per_rank"],
                "head_measured": alone["peak"],
                "head_ratio": round(planned["head_bytes_per_rank"] / alone["peak"], 3),
                "total_forecast": planned["total_bytes_per_rank"],
                "total_measured": whole["peak"],
                "total_ratio": round(planned["total_bytes_per_rank"] / whole["peak"], 3),
            }
        )
        print(rows[-1], file=sys.stderr)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("train", "head"), help="what to measure here, as its processes do")
    parser.add_argument("case", nargs="?", type=json.loads, help="of which of CASES, as JSON")
    options = parser.parse_args()
    if options.part is None:
        main()
    else:
        {"train": train, "head": head}[options.part](*options.case)
