"""The benchmarks start as scripts; the tests do not run them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
# Does what `python SCRIPT --help` does for each script. The processes share the imports that take long.
START_ALL = """
import os, runpy, sys
import numpy, paddle

for script in sys.argv[1:]:
    sys.stdout.flush()
    process = os.fork()
    if not process:
        sys.path[0], sys.argv = os.path.dirname(script), [script, "--help"]
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            if end.code == 0:
                sys.stdout.flush()
                os._exit(0)  # Python would take longer to leave Paddle than the script has run.
            raise
        sys.exit("it ignores --help")
    print("\\nended", script, os.waitpid(process, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", START_ALL, *map(str, SCRIPTS)], cwd=tmp_path_factory.mktemp("elsewhere"),
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_starts_from_another_folder_without_pythonpath(output, script):
    assert f"\nended {script} 0\n" in output, output
    assert f"usage: {script.name}" in output
