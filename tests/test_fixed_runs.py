"""Trainings with a fixed seed give the losses and weights they gave at an earlier commit, to the bit.

Floating-point results differ between processors, so no numbers are kept: the earlier plsc is taken out of git and runs
on the same machine.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from ranks import HELPERS, ROOT, TIMEOUT
from safetensors.numpy import load_file

# The commit whose numbers count. A change that means to change numbers moves it, and its message says why.
REFERENCE = "d1eb3d20f569d704824a0e536c73969a4b7ed0e6"
# The trainings of each number of ranks: they run one after the other in the same processes.
RUNS = {
    2: {
        "arcface on two ranks": {},
        "sampled, clipped, accumulated": {
            "sample_ratio": [0.5],
            "gradient_clip": [1.0],
            "gradient_accumulation": [3],
            "mixed_precision": [True, 64.0],
        },
        "softmax, not sharded, simulated float16": {
            "loss_type": ["softmax"],
            "mixed_precision": [True, 128.0, 2, 1, 2.0, 0.5, True, None, "float16", True],
            "calc_acc": [True],
        },
        "a margin on the other classes": {"loss_type": ["dist_curricularface"], "gradient_accumulation": [2]},
    },
    1: {"a margin that depends on norms": {"loss_type": ["magface"], "calc_acc": [True], "head_chunk": [8]}},
}


@pytest.fixture(scope="module")
def earlier_source(tmp_path_factory):
    """A folder with the plsc of the reference commit."""
    folder = tmp_path_factory.mktemp("earlier")
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", REFERENCE, "plsc"], capture_output=True)
    if archive.returncode:
        pytest.skip(f"no commit {REFERENCE[:8]} here: git clone without --depth brings it")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


@pytest.fixture(scope="module")
def folders(earlier_source, tmp_path_factory):
    """The folders in which the earlier plsc and this one saved their runs."""
    made = [tmp_path_factory.mktemp(name) for name in ("before", "now")]
    for source, output in zip((earlier_source, ROOT), made):
        for ranks, runs in RUNS.items():
            # The earlier plsc does not choose MKL's code path by itself, and leaves all convolutions to Paddle.
            variables = {"OMP_NUM_THREADS": "1", "MKL_DEBUG_CPU_TYPE": "5", "PLSC_ONEDNN": "0"}
            command = [sys.executable, "-m", "plsc", "run", "--ranks", str(ranks), str(HELPERS / "fixed_run.py")]
            process = subprocess.run(
                [*command, str(output), json.dumps(runs)],
                cwd=source, env={**os.environ, **variables, "PYTHONPATH": str(source)},
                capture_output=True, text=True, timeout=TIMEOUT,
            )  # fmt: skip
            assert process.returncode == 0, process.stderr[-3000:]
    return made


def numbers_of(output):
    """Losses of the steps, and the tensors of the last checkpoint, of one training."""
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["event"] == "train"]
    tensors = {
        f"{file.name} {name}": value
        for file in (output / "1").glob("*.safetensors")
        for name, value in load_file(file).items()
    }
    return losses, tensors


@pytest.mark.parametrize("run", [name for runs in RUNS.values() for name in runs])
def test_losses_and_weights_are_those_of_the_reference_commit(folders, run):
    (earlier_losses, earlier_tensors), (losses, tensors) = (numbers_of(folder / run) for folder in folders)
    assert losses == earlier_losses and len(losses) >= 2 and np.isfinite(losses).all()
    assert tensors.keys() == earlier_tensors.keys() and any("head" in name for name in tensors)
    for name, value in tensors.items():
        assert value.tobytes() == earlier_tensors[name].tobytes(), name
