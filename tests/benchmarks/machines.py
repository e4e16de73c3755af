"""Runs a training on two machines, each with its own network, disk, process ids and host name, and breaks something.

Prints a table: what each launcher ended with and after how many seconds, its last line, and whether the run, started
again with the same command, ends with the bits of a run on one machine. Needs root and iproute2.

python tests/benchmarks/machines.py            # all cases, about 15 minutes
python tests/benchmarks/machines.py cable      # the cases whose name holds a word
"""

import argparse
import contextlib
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import checkout  # noqa: F401
import numpy as np
from ranks import HELPERS, run_ranks
from safetensors.numpy import load_file
from separate_machines import Network, pause, reason_to_skip

from plsc.data.glyphs import render_glyphs

PORT = 29500
EPOCHS = 4
SETTINGS = (f"train_epochs={EPOCHS}", "train_batch_size=4", "with_test=false", "log_period=1", "save_period=5",
            "keep_checkpoints=2", "--dropout=0.2", "--pause=0.1")  # fmt: skip
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


class Trial:
    """Two machines with a training.

    Args:
        folder: An empty folder.
        data: The data set.
        ranks: Ranks on each machine.
        options: Words for `plsc run`.
        variables: Environment variables of the second machine.
    """

    def __init__(self, folder, data, ranks=1, options=(), variables=()):
        self.network = Network(folder, ["machine-a", "machine-b"])
        self.a, self.b = self.network.machines
        self.data, self.ranks, self.options, self.variables = data, ranks, options, variables

    def start(self, machine, *settings):
        """Starts the one command of the run on a machine."""
        return machine.start(
            "run", "--nnodes", 2, "--master", f"{self.a.address}:{PORT}", "--ranks", self.ranks, *self.options,
            HELPERS / "train_glyphs.py", self.data, self.network.disk / "out", *SETTINGS, *settings,
            variables=self.variables if machine is self.b else (),
        )  # fmt: skip

    def start_both(self, *settings):
        """Starts it on both machines."""
        return self.start(self.a, *settings), self.start(self.b, *settings)


def equal_parts(disks, straight):
    """Returns whether the last checkpoints of the disks are together, to the bit, that of the straight run."""
    wanted, seen = straight / str(EPOCHS - 1), set()
    for disk in disks:
        for path in (disk / "out" / str(EPOCHS - 1)).glob("*.safetensors"):
            tensors, others = load_file(path), load_file(wanted / path.name)
            if tensors.keys() != others.keys() or not all(np.array_equal(others[k], tensors[k]) for k in tensors):
                return False
            seen.add(path.name)
    return seen == {path.name for path in wanted.glob("*.safetensors")}


def wait_for_step(program, step):
    program.wait_for("images/s", times=step)


# Each case breaks something in a running training, and returns the programs that must end. It may yield in between.


def nothing(trial, a, b):
    return a, b


def kill_rank(trial, a, b):
    os.kill(b.ranks[0], signal.SIGKILL)
    return a, b


def kill_other_machine(trial, a, b):
    b.kill()
    return (a,)


def kill_master(trial, a, b):
    a.kill()
    return (b,)


def kill_other_machine_which_returns(trial, a, b):
    b.kill()
    time.sleep(2)
    return a, trial.start(trial.b)


def kill_master_which_returns(trial, a, b):
    a.kill()
    time.sleep(2)
    return trial.start(trial.a), b


def lose_other_disk(trial, a, b):
    b.kill()
    trial.b.lose_disk()
    return (a,)


def lose_master_disk(trial, a, b):
    a.kill()
    trial.a.lose_disk()
    return (b,)


def cut_cable_for_10_s(trial, a, b):
    trial.b.cut_cable()
    time.sleep(10)
    trial.b.mend_cable()
    return a, b


def cut_cable_for_good(trial, a, b):
    trial.b.cut_cable()
    return a, b


def slow_cable(trial, a, b):
    return a, b


def pause_rank_for_20_s(trial, a, b):
    pause(b.ranks[0], 20)
    return a, b


def pause_rank_for_good(trial, a, b):
    os.kill(b.ranks[0], signal.SIGSTOP)
    return a, b


def sigterm_to_the_other(trial, a, b):
    b.signal(signal.SIGTERM)
    return a, b


def ctrl_c_on_the_master(trial, a, b):
    a.signal(signal.SIGINT)
    return a, b


def clock_skew(trial, a, b):
    os.kill(b.ranks[0], signal.SIGKILL)
    return a, b


CASES = {
    "nothing": (nothing, {}),
    "nothing, 2 x 2": (nothing, {"ranks": 2}),
    "a rank is killed": (kill_rank, {}),
    "a rank is killed, 2 x 2, --restarts 1": (kill_rank, {"ranks": 2, "options": ("--restarts", 1)}),
    "machine b is killed": (kill_other_machine, {}),
    "machine b is killed and returns, --restarts 1": (kill_other_machine_which_returns, {"options": ("--restarts", 1)}),
    "the master is killed": (kill_master, {}),
    "the master is killed and returns, --restarts 1": (kill_master_which_returns, {"options": ("--restarts", 1)}),
    "machine b is killed and loses its disk": (lose_other_disk, {}),
    "the master is killed and loses its disk": (lose_master_disk, {}),
    "the cable is cut for 10 s": (cut_cable_for_10_s, {}),
    "the cable is cut for good": (cut_cable_for_good, {}),
    "100 ms of delay and 2 % loss": (slow_cable, {}),
    "a rank is paused for 20 s": (pause_rank_for_20_s, {}),
    "a rank is paused for good": (pause_rank_for_good, {}),
    "SIGTERM to machine b": (sigterm_to_the_other, {}),
    "Ctrl-C on the master": (ctrl_c_on_the_master, {}),
    "machine b a day ahead, a rank is killed": (
        clock_skew,
        {"variables": (("LD_PRELOAD", FAKETIME), ("FAKETIME", "+1d"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1"))},
    ),
    "machine b a day ahead, a rank is killed, --restarts 1": (
        clock_skew,
        {
            "variables": (("LD_PRELOAD", FAKETIME), ("FAKETIME", "+1d"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")),
            "options": ("--restarts", 1),
        },
    ),
}


def last_line(program):
    lines = [line for line in program.lines if line.strip()] or ["nothing"]
    return re.sub(r"/\S*/disk/", "", lines[-1])[:200]


def run_case(name, folder, data, straight):
    """Runs one case and returns a row of the table."""
    action, options = CASES[name]
    trial = Trial(folder, data, **options)
    row = {"case": name}
    with trial.network:
        if action is slow_cable:
            trial.b.slow_cable(50, 0.02)
        programs = trial.start_both()
        wait_for_step(programs[0], 2 if action in (nothing, slow_cable) else 8)
        began = time.monotonic()
        ending = action(trial, *programs)
        statuses = [program.wait() for program in ending]
        row["seconds"] = max(program.ended for program in ending) - began
        row["status"] = " ".join(map(str, statuses))
        row["last"] = " / ".join(sorted({last_line(program) for program in ending}))
        row["resumed"] = ""
        if any(statuses):
            with contextlib.suppress(AssertionError):
                trial.b.mend_cable()
            for program in programs:
                program.kill()
            programs = trial.start_both("resume=true")
            resumed = [program.wait() for program in programs]
            row["resumed"] = " ".join(map(str, resumed))
            if any(resumed):
                row["resumed"] += f": {last_line(programs[0])}"
        row["equal"] = equal_parts([trial.a.disk, trial.b.disk], straight)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="")
    chosen = parser.parse_args().word
    if reason_to_skip():
        sys.exit(reason_to_skip())
    print("| what happens | seconds until all end | status | last line | resumed | equal to the bit |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary, "glyphs")
        render_glyphs(str(data), classes=12, images=8, size=32, held_out=6, pairs=40, seed=1)
        straight = {}
        for number, name in enumerate(CASES):
            if chosen not in name:
                continue
            if "day ahead" in name and not Path(FAKETIME).exists():
                print(f"| {name} | not run: faketime is not installed |", flush=True)
                continue
            ranks = 2 * CASES[name][1].get("ranks", 1)
            if ranks not in straight:
                straight[ranks] = Path(temporary, f"straight {ranks}")
                run_ranks("train_glyphs.py", ranks, data, straight[ranks], *SETTINGS)
            folder = Path(temporary, str(number))
            folder.mkdir()
            row = run_case(name, folder, data, straight[ranks])
            cells = (row["case"], f"{row['seconds']:.1f}", row["status"], row["last"], row["resumed"], row["equal"])
            print("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
