"""How this process allocates its memory."""

import os
import platform
import subprocess
import sys

import pytest
from ranks import TIMEOUT

PAGES = 24 * (3 << 20) // 4096  # smaller arrays than those for which NumPy asks for huge pages
PROGRAM = """
import resource
import plsc
import numpy as np

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for turn in range(5):
    before = faults()
    tensors = [np.ones(3 << 20, np.uint8) for _ in range(24)]
    del tensors
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
@pytest.mark.parametrize(
    ("variables", "keeps"),
    [
        ({}, True),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}, False),
        ({"GLIBC_TUNABLES": "glibc.cpu.x86_ibt=off", "MALLOC_ARENA_MAX": "4"}, True),
    ],
)
def test_freed_memory_is_kept_unless_the_user_chooses(variables, keeps):
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**environment, **variables}, capture_output=True, text=True, timeout=TIMEOUT,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    faults = int(process.stdout)
    assert faults < PAGES / 10 if keeps else faults > PAGES / 2
