"""The memory of this process and of this machine: how much there is, and how it is allocated."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def machine_memory() -> int:
    """Returns the memory of this machine, or of the container if it may use less, in bytes; 0 where it is unknown."""
    limits = []
    with contextlib.suppress(ValueError, OSError, AttributeError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(ValueError, OSError):  # no such file, or "max"
            limits.append(int(Path(file).read_text()))
    return min(limits, default=0)


def resident_memory() -> int:
    """Returns the resident memory of this process, in bytes; 0 where the system does not report it."""
    return _status("VmRSS")


def peak_memory() -> int:
    """Returns the peak resident memory of this process, in bytes; 0 where the system does not report it."""
    return _status("VmHWM")


def keep_freed_memory() -> None:
    """Lets glibc keep a few megabytes of freed memory, for buffers that come and go with every block of data.

    It returns freed pieces to the kernel if they are larger than the largest piece it has seen freed. To get them back
    costs a page fault for every 4 kB, which is a third of the time of a shuffle.
    """
    import numpy as np  # the launcher, which needs only `machine_memory`, starts sooner without it

    np.empty(1 << 22, np.uint8)  # freed at once, and never touched


def _status(field: str) -> int:
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))
    except (OSError, StopIteration):
        return 0
