"""Runs a helper script on real ranks, as a user would with `python -m plsc run --ranks N`."""

import os
import subprocess
import sys
from pathlib import Path

HELPERS = Path(__file__).parent
ROOT = HELPERS.parent.parent
TIMEOUT = 240


def command(script, number, *arguments, restarts=0):
    """Its command line."""
    run = [sys.executable, "-m", "plsc", "run", "--ranks", number, "--restarts", restarts, HELPERS / script]
    return [str(part) for part in (*run, *arguments)]


def environment():
    """Its environment: the source beside it, one thread a rank."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(script, number, *arguments, **options):
    """Runs it and returns the finished process, whatever its exit status."""
    return subprocess.run(
        command(script, number, *arguments, **options),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def run_ranks(script, number, *arguments, **options):
    """Runs it, and fails with its output unless it succeeds."""
    process = start(script, number, *arguments, **options)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-6000:]
    return process
