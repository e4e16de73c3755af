"""Kills a training on three ranks at random moments, resumes it, and compares it with an uninterrupted one."""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
from ranks import TIMEOUT, popen_ranks, start
from safetensors.numpy import load_file

RANKS = 3
OPTIONS = (
    "train_epochs=2", "save_period=2", "keep_checkpoints=2", "with_test=false", "--dropout=0.3", "sample_ratio=0.5",
    "class_num=60000", "train_batch_size=4", "--pause=0.02", "log_period=5", "resume=true",
)  # fmt: skip


def children_of(pid):
    """Returns the ids of the child processes of a process; there are none once it has ended."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def kill_at_a_random_moment(arguments, output, rng):
    """Runs a training until the moment comes; returns what was killed and when, or None if the run was faster."""
    process = popen_ranks("train_glyphs.py", RANKS, *arguments)
    try:
        near_a_save = rng.random() < 0.7
        wanted, seen = rng.randrange(1, 7), set()
        while near_a_save and process.poll() is None and len(seen) < wanted:
            seen |= {path.name for path in output.glob(".*.writing")}
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.04) if near_a_save else rng.uniform(1, 9))
        ranks = children_of(process.pid)
        whom = rng.choice(["one", "all", "the launcher too"])
        victims = ranks if whom != "one" else ranks[rng.randrange(len(ranks)) :][:1] if ranks else []
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        if whom == "the launcher too":
            process.kill()
        if process.wait(timeout=TIMEOUT) == 0:
            return None
        leftovers = sorted(path.name for path in output.glob(".*"))
        return f"{whom}, {'near a save' if near_a_save else 'anywhere'}, left {' '.join(leftovers) or 'nothing'}"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def same_tensors(folder, other):
    """Returns whether two checkpoints hold the same files, tensors and bits."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names or names != sorted(path.name for path in other.glob("*.safetensors")):
        return False
    for name in names:
        tensors, others = load_file(folder / name), load_file(other / name)
        if tensors.keys() != others.keys() or not all(np.array_equal(others[key], tensors[key]) for key in tensors):
            return False
    return True


def kill_rounds(data, folder, rounds, seed):
    """Runs trainings that are killed; yields (what was killed, whether they ended like an uninterrupted one)."""
    straight = Path(folder, "straight")
    assert start("train_glyphs.py", RANKS, data, straight, *OPTIONS).returncode == 0
    rng = random.Random(seed)
    for number in range(rounds):
        output = Path(folder, str(number))
        killed = []
        for _ in range(rng.choice([1, 1, 2])):
            killed.append(kill_at_a_random_moment((data, output, *OPTIONS), output, rng))
        end = start("train_glyphs.py", RANKS, data, output, *OPTIONS)
        good = end.returncode == 0 and same_tensors(output / "1", straight / "1")
        tidy = not list(output.glob(".*")) and len(list(output.glob("*/meta.json"))) == 2
        yield [text for text in killed if text], good and tidy
