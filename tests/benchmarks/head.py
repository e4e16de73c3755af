"""Compares the head with dense heads in PyTorch and Paddle, and prints seconds per step and peak memory as JSON.

    python tests/benchmarks/head.py                  # everything: about a quarter of an hour, 20 GiB
    python tests/benchmarks/head.py --only table     # only the comparison; or: profile, scaling, optimizers
    python tests/benchmarks/head.py --tuned          # every head with a malloc that gives no memory back to the system
    python tests/benchmarks/head.py --only table --cases 0 --torch-python PYTHON   # 200,000 classes on two ranks

Every figure comes from a separate process (or from two ranks on gloo with one thread each). The heads take turns, and
the fastest of all their steps counts, since other programs use the machine too. Memory is the peak of resident memory
above what the process held before the head was made. On a machine that is not quiet, the processor's seconds of rank 0
say more than the seconds that pass. Without PyTorch, which may be in an environment of its own, its figures are null.
"""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from checkout import ROOT

EMB_DIM, BATCH = 512, 256
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_TOP_PAD_": str(64 << 20)}  # of glibc
CASES = [  # name, classes, sample ratio, ranks, rivals
    ("200k full", 200_000, 1.0, 2, ("torch", "paddle")),
    ("200k full", 200_000, 1.0, 1, ("torch", "paddle")),
    ("1M full", 1_000_000, 1.0, 1, ("torch",)),
    ("1M sampled 0.1", 1_000_000, 0.1, 2, ("torch",)),
    ("1M sampled 0.1", 1_000_000, 0.1, 1, ("torch",)),
]


def processor_name():
    """Returns the name of the processor, and the widest vectors it computes with."""
    try:
        fields = dict(line.split("\t", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if "\t" in line)
    except OSError:
        return platform.processor() or platform.machine()
    flags = fields.get("flags", "").split()
    vectors = next((name for name in ("avx512f", "avx2", "avx") if name in flags), "no AVX")
    return f"{fields.get('model name', platform.machine()).strip(': ')} ({vectors})"


def memory(field):
    """Returns VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


class PlscHead:
    """The head of this repository, with the interface of the baselines."""

    def __init__(self, classes, emb_dim, ratio, loss_type="dist_arcface", optimizer="Momentum", whole=False):
        import paddle

        from plsc import optim
        from plsc.heads import build_head

        self.paddle = paddle
        self.head = build_head(loss_type, classes, emb_dim, sample_ratio=ratio)
        if optimizer == "Momentum":
            made = paddle.optimizer.Momentum(0.1, 0.9, parameters=self.head.parameters(), weight_decay=5e-4)
        else:
            kind = getattr(paddle.optimizer, optimizer, None) or getattr(optim, optimizer)
            made = kind(learning_rate=1e-3, parameters=self.head.parameters())
        self.optimizer = made
        self.updates = {} if whole else optim.take_rows(made, dict(self.head.named_parameters()))

    def step(self, embedding, label):
        """Runs one step on this rank's batch; returns the loss."""
        output = self.head(self.paddle.to_tensor(embedding), label)
        assert output.problem is None
        self.head.backward(self.updates.get("weight"), self.updates.get("bias"))
        if not self.updates:
            self.optimizer.step()
            self.optimizer.clear_grad()
        return output.loss


def worker(options):
    """Measures one head in this process and prints one JSON line (rank 0)."""
    rank, world = int(os.environ.get("PADDLE_TRAINER_ID", os.environ.get("RANK", 0))), options.ranks
    if options.head == "torch":
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        if world > 1:
            torch.distributed.init_process_group("gloo")
    else:
        import plsc  # noqa: F401
        from plsc import parallel

        parallel.initialise()
    import numpy as np

    batch = options.batch // world
    rows = options.classes // world
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    base = memory("VmRSS")
    if options.head == "plsc":
        head = PlscHead(
            options.classes, options.emb, options.ratio, options.loss, options.optimizer, whole=options.whole
        )
    else:
        from head_baselines import PaddleHead, TorchHead

        maker = TorchHead if options.head == "torch" else PaddleHead
        head = maker(rows, options.emb, rank * rows, options.ratio, world)
    rng = np.random.default_rng(rank)
    times, processor_times = [], []
    for _ in range(options.steps + 1):
        embedding = rng.normal(size=(batch, options.emb)).astype("float32")
        label = rng.integers(0, options.classes, batch)
        began, busy = time.perf_counter(), time.process_time()
        loss = head.step(embedding, label)
        times.append(time.perf_counter() - began)
        processor_times.append(time.process_time() - busy)
    if rank == 0:
        peak = memory("VmHWM") - base
        result = {
            "seconds": min(times[1:]),
            "processor_seconds": min(processor_times[1:]),
            "all_seconds": [round(t, 4) for t in times],
            "peak_bytes": peak,
            "loss": loss,
        }
        if options.profile:
            result["profile"] = profile(head, embedding, label)
        print("RESULT " + json.dumps(result), flush=True)
    elif options.profile:
        head.step(embedding, label)


def profile(head, embedding, label):
    """Returns the fraction of a step that each kind of work takes, on one thread so that the fractions add up."""
    import paddle

    from plsc import optim
    from plsc.heads import products, rows

    spent = {}

    def timed(owner, name, kind):
        function = getattr(owner, name)

        def wrapper(*arguments, **options):
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent[kind] = spent.get(kind, 0.0) + time.perf_counter() - began

        setattr(owner, name, wrapper)

    for name in ("logits", "add_pull", "add_gradient"):
        timed(products.Products, name, "products")
    timed(paddle, "exp", "exponentials")
    timed(paddle.Tensor, "exp_", "exponentials")
    timed(rows, "inverse_norms", "row norms")
    timed(paddle, "gather", "gathering rows")
    timed(paddle.Tensor, "scatter_", "putting rows back")
    timed(optim.RowUpdate, "apply", "row updates")
    for name in ("all_gather", "all_reduce"):
        timed(paddle.distributed, name, "collectives")
    began = time.perf_counter()
    head.step(embedding, label)
    total = time.perf_counter() - began
    spent["decay, radial part and the rest"] = total - sum(spent.values())
    return {kind: round(seconds / total, 3) for kind, seconds in spent.items()}


def product_rate(threads):
    """Returns how many floating-point operations per second one large float32 product in Paddle reaches."""
    code = (
        "import os,time,paddle\n"
        f"a,b=paddle.rand([512,{EMB_DIM}]),paddle.rand([{EMB_DIM},{BATCH}])\n"
        "best=1e9\n"
        "for _ in range(300):\n"
        " t=time.perf_counter();paddle.matmul(a,b);best=min(best,time.perf_counter()-t)\n"
        f"print('RESULT',2*512*{EMB_DIM}*{BATCH}/best)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return float(output.stdout.split("RESULT")[1])


def measure(
    head,
    classes,
    ratio,
    ranks,
    *,
    batch=BATCH,
    emb=EMB_DIM,
    steps=4,
    profiled=False,
    loss="dist_arcface",
    optimizer="Momentum",
    whole=False,
):
    """Runs one worker and returns its result; None if it ended without one (no memory, no PyTorch)."""
    python = os.environ["TORCH_PYTHON"] if head == "torch" else sys.executable
    if python == sys.executable and head == "torch" and importlib.util.find_spec("torch") is None:
        return None
    command = [str(Path(__file__)), "--head", head, "--classes", str(classes), "--ratio", str(ratio), "--loss", loss]
    command += ["--ranks", str(ranks), "--batch", str(batch), "--emb", str(emb), "--steps", str(steps)]
    command += ["--optimizer", optimizer, *["--profile"] * profiled, *["--whole"] * whole]
    launcher = []
    if ranks > 1:
        torch = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_addr", "127.0.0.1"]
        launcher = torch if head == "torch" else ["-m", "plsc", "run", "--ranks", str(ranks)]
    threads = 1 if profiled else (os.cpu_count() or 1) // ranks
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    process = subprocess.run([python, *launcher, *command], env=environment, capture_output=True, text=True)
    for line in process.stdout.splitlines():
        if "RESULT " in line:
            return json.loads(line.split("RESULT ", 1)[1])
    sys.stderr.write(f"{head}, {classes} classes, {ranks} ranks: no result\n{process.stderr[-1500:]}\n")
    return None


def compare(rounds, cases):
    """Measures the cases with these numbers and their rivals in turns; returns the table."""
    rates = {threads: product_rate(threads) for threads in {1, os.cpu_count() or 1}}
    full_rate = max(rate / threads for threads, rate in rates.items()) * (os.cpu_count() or 1)
    table = []
    for name, classes, ratio, ranks, rivals in [CASES[case] for case in cases]:
        best = {}
        for _ in range(rounds):
            for head in ("plsc", *rivals):
                result = measure(head, classes, ratio, ranks)
                if result and (head not in best or result["seconds"] < best[head]["seconds"]):
                    least = best.get(head, result)["processor_seconds"]
                    best[head] = {**result, "processor_seconds": min(least, result["processor_seconds"])}
        own = best["plsc"]
        rows = classes // ranks
        floor = 4 * 2 * BATCH * EMB_DIM * classes * ratio / full_rate  # ranks times threads are all the cores
        state = 2 * 4 * EMB_DIM * rows
        entry = {"case": name, "ranks": ranks, "seconds": round(own["seconds"], 4)}
        entry["processor_seconds"] = round(own["processor_seconds"], 4)
        entry["floor_of_four_products"] = round(floor, 4)
        entry["times_the_floor"] = round(own["seconds"] / floor, 2)
        entry["peak_bytes"], entry["weight_and_momentum_bytes"] = own["peak_bytes"], state
        entry["peak_over_weight_and_momentum"] = round(own["peak_bytes"] / state, 3)
        for rival in rivals:
            other = best.get(rival)
            entry[f"{rival}_seconds"] = other and round(other["seconds"], 4)
            entry[f"{rival}_processor_seconds"] = other and round(other["processor_seconds"], 4)
            entry[f"{rival}_peak_bytes"] = other and other["peak_bytes"]
            entry[f"faster_than_{rival}"] = other and round(other["seconds"] / own["seconds"], 2)
        table.append(entry)
        sys.stderr.write(json.dumps(entry) + "\n")
    return {"product_gflops": {str(n): round(rate / 1e9, 1) for n, rate in rates.items()}, "table": table}


def scaling():
    """Measures how the cost follows classes, batch, embedding size and loss, in one process."""

    def one(classes, batch=BATCH, emb=EMB_DIM, loss="dist_arcface"):
        seconds = measure("plsc", classes, 1.0, 1, batch=batch, emb=emb, steps=6, loss=loss)["seconds"]
        entry = {"loss": loss, "classes": classes, "batch": batch, "emb": emb, "seconds": round(seconds, 4)}
        entry["nanoseconds_per_class"] = round(seconds / classes * 1e9)
        entry["gflops_of_four_products"] = round(8 * batch * emb * classes / seconds / 1e9, 1)
        return entry

    return {
        "classes": [one(classes) for classes in (10_000, 100_000, 1_000_000)],
        "batch": [one(100_000, batch=batch) for batch in (64, 128, 256, 512, 1024)],
        "embedding": [one(100_000, emb=emb) for emb in (128, 256, 512, 1024)],
        "loss": [
            one(100_000, loss=f"dist_{kind}") for kind in ("softmax", "cosface", "adaface", "magface", "curricularface")
        ],
    }


def optimizers(rounds):
    """Measures optimizers that move the rows chunk by chunk, and the same ones with the whole gradient, in turns."""
    table = []
    for name, whole_too in (("Momentum", False), ("Adam", True), ("AdamW", True), ("Lion", True)):
        best = {}
        for _ in range(rounds):
            for whole in (False, True)[: 1 + whole_too]:
                result = measure("plsc", 200_000, 1.0, 1, optimizer=name, whole=whole)
                if whole not in best or result["seconds"] < best[whole]["seconds"]:
                    best[whole] = result
        entry = {"optimizer": name, "weight_bytes": 4 * EMB_DIM * 200_000}
        for whole, result in best.items():
            way = "whole_gradient" if whole else "in_chunks"
            entry.update(
                {f"{way}_{key}": result[key] for key in ("seconds", "processor_seconds", "peak_bytes", "loss")}
            )
        if whole_too:
            entry["seconds_ratio"] = round(best[False]["seconds"] / best[True]["seconds"], 3)
            entry["peak_ratio"] = round(best[False]["peak_bytes"] / best[True]["peak_bytes"], 3)
        table.append(entry)
        sys.stderr.write(json.dumps(entry) + "\n")
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["table", "profile", "scaling", "optimizers"])
    parser.add_argument("--tuned", action="store_true", help="keep freed memory in every process (glibc)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each rival")
    parser.add_argument("--cases", type=int, nargs="+", default=range(len(CASES)), help="numbers of rows of the table")
    parser.add_argument("--torch-python", default=sys.executable, help="the Python that has PyTorch")
    for name, kind in (("head", str), ("classes", int), ("ratio", float), ("ranks", int), ("batch", int), ("emb", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--loss", help=argparse.SUPPRESS)
    parser.add_argument("--optimizer", help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.head:
        worker(options)
        return
    os.environ["TORCH_PYTHON"] = options.torch_python
    if options.tuned:
        os.environ.update(TUNED)
    result = {"command": " ".join(sys.argv), "cores": os.cpu_count(), "machine": processor_name()}
    if options.only in (None, "table"):
        result.update(compare(options.rounds, options.cases))
    if options.only in (None, "profile"):
        result["profile_2_ranks"] = measure("plsc", 200_000, 1.0, 2, steps=2, profiled=True)["profile"]
        result["profile_2_ranks_sampled"] = measure("plsc", 1_000_000, 0.1, 2, steps=2, profiled=True)["profile"]
    if options.only in (None, "scaling"):
        result["scaling"] = scaling()
    if options.only in (None, "optimizers"):
        result["optimizers"] = optimizers(options.rounds)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
