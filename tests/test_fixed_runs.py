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
from ranks import HELPERS, ROOT
from safetensors.numpy import load_file

# The commit whose numbers count. A change that means to change numbers moves it, and its message says why.
REFERENCE = "d1eb3d20f569d704824a0e536c73969a4b7ed0e6"
RUNS = {
    "arcface on two ranks": (2, []),
    "sampled, clipped, accumulated": (
        2,
        ["sample_ratio=[0.5]", "gradient_clip=[1.0]", "gradient_accumulation=[3]", "mixed_precision=[true, 64.0]"],
    ),
    "softmax, not sharded, simulated float16": (
        2,
        [
            'loss_type=["softmax"]',
            'mixed_precision=[true, 128.0, 2, 1, 2.0, 0.5, true, null, "float16", true]',
            "calc_acc=[true]",
        ],
    ),
    "a margin on the other classes": (2, ['loss_type=["dist_curricularface"]', "gradient_accumulation=[2]"]),
    "a margin that depends on norms": (1, ['loss_type=["magface"]', "calc_acc=[true]", "head_chunk=[8]"]),
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


def numbers_of(source, output, ranks, settings):
    """Losses of the steps, and the tensors of the last checkpoint, of one training with the plsc in `source`."""
    # The earlier plsc does not choose MKL's code path by itself, and leaves all convolutions to Paddle.
    chosen = {"OMP_NUM_THREADS": "1", "MKL_DEBUG_CPU_TYPE": "5", "PLSC_ONEDNN": "0"}
    environment = {**os.environ, "PYTHONPATH": str(source), **chosen}
    command = [sys.executable, "-m", "plsc", "run", "--ranks", str(ranks), str(HELPERS / "fixed_run.py"), str(output)]
    process = subprocess.run(
        [*command, *settings], cwd=source, env=environment, capture_output=True, text=True, timeout=240
    )
    assert process.returncode == 0, process.stderr[-3000:]
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["event"] == "train"]
    tensors = {
        f"{file.name} {name}": value
        for file in (output / "1").glob("*.safetensors")
        for name, value in load_file(file).items()
    }
    return losses, tensors


@pytest.mark.parametrize("run", RUNS)
def test_losses_and_weights_are_those_of_the_reference_commit(earlier_source, tmp_path, run):
    earlier_losses, earlier_tensors = numbers_of(earlier_source, tmp_path / "earlier", *RUNS[run])
    losses, tensors = numbers_of(ROOT, tmp_path / "now", *RUNS[run])
    assert losses == earlier_losses and len(losses) >= 2 and np.isfinite(losses).all()
    assert tensors.keys() == earlier_tensors.keys() and any("head" in name for name in tensors)
    for name, value in tensors.items():
        assert value.tobytes() == earlier_tensors[name].tobytes(), name
