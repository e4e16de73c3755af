"""Runs a helper script on real ranks, as a user would with `python -m plsc run --ranks N`."""

import os
import subprocess
import sys
from pathlib import Path

HELPERS = Path(__file__).parent
ROOT = HELPERS.parent.parent
TIMEOUT = 240


def start(script, number, *arguments):
    """Runs it and returns the finished process, whatever its exit status."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "plsc", "run", "--ranks", str(number), str(HELPERS / script)]
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )


def run_ranks(script, number, *arguments):
    """Runs it, and fails with its output unless it succeeds."""
    process = start(script, number, *arguments)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-6000:]
    return process
