"""tests/gpu.sh with stand-ins for nvidia-smi and Python, since the tests run on machines without a GPU."""

import os
import subprocess

import pytest
from ranks import ROOT, TIMEOUT

PYTHON = """#!/bin/bash
echo "${0##*/} $*" >> "$NOTES/calls"
case "$*" in
    *"-m venv"*) mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python" ;;
    *loop.py*) echo broken; exit 3 ;;
esac
echo "done: $1 $2"
"""


@pytest.fixture
def run(tmp_path):
    """`run(gpus)` runs gpu.sh where nvidia-smi names so many GPUs; returns the process, the calls and the table."""

    def run(gpus):
        for name, text in (("nvidia-smi", "#!/bin/bash\n" + "echo 'A GPU, 16 GB, 500'\n" * gpus), ("python3", PYTHON)):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        (tmp_path / "calls").touch()
        process = subprocess.run(
            ["bash", str(ROOT / "tests" / "gpu.sh")], capture_output=True, text=True, timeout=TIMEOUT,
            env={
                **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTES": str(tmp_path),
                "PLSC_TEST_CACHE": str(tmp_path / "cache"), "PLSC_GPU_OUTPUT": str(tmp_path / "output"),
            },
        )  # fmt: skip
        table = tmp_path / "output" / "table.md"
        return process, (tmp_path / "calls").read_text().splitlines(), table.read_text() if table.exists() else None

    return run


def test_a_machine_without_a_gpu_is_refused_and_nothing_is_installed(run):
    process, calls, table = run(0)
    assert process.returncode == 1 and "no GPU found" in process.stderr and not calls and table is None


def test_the_core_tests_and_the_benchmarks_fill_the_table(run):
    process, calls, table = run(2)
    assert process.returncode == 1, "one of the commands has failed"
    assert any("install" in call and ".[gpu,dev]" in call for call in calls)
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert [(row[0].strip("| "), row[1]) for row in rows] == [
        ("core", "passed"),
        ("head", "passed"),
        ("throughput-1", "passed"),
        ("throughput-2", "passed"),
        ("loop", "status 3"),
        ("checkpoint", "passed"),
    ]
    assert "`broken`" in table and "2 GPUs" in table and table in process.stdout
