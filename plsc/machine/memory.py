"""The memory of this process and of this machine: how much there is, and how it is allocated."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Iterator
from typing import Optional

from plsc.errors import TrainingError, one_line, without_places

_TUNABLES = "GLIBC_TUNABLES"
_MALLOC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")
# By the numbers of malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, and M_MMAP_THRESHOLD at the most that glibc takes.
_MALLOC_PARAMETERS = {-1: 1 << 30, -2: 64 << 20, -3: 32 << 20}


def resident_memory() -> int:
    """Returns the resident memory of this process, in bytes; 0 where the system does not report it."""
    return _status("VmRSS")


def peak_memory() -> int:
    """Returns the peak resident memory of this process, in bytes; 0 where the system does not report it."""
    return _status("VmHWM")


def machine_memory() -> Optional[int]:
    """Returns the memory of this machine, in bytes; None where the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def usable_memory() -> Optional[int]:
    """Returns the memory that this process can use without swap, in bytes; None where the system does not report it.

    It is the memory of the machine, unless the control group (as in a container) allows less.
    """
    return min((size for size in (machine_memory(), memory_limit()) if size is not None), default=None)


def memory_limit() -> Optional[int]:
    """Returns the memory that this process can surely not exceed, in bytes; None where the system does not report it.

    It is the memory of the machine with its swap, or the limit of the control group, whichever is less.
    """
    machine = machine_memory()
    limits = [] if machine is None else [machine + _field("/proc/meminfo", "SwapTotal")]
    # Version 2 of control groups, with swap apart, and version 1.
    version_2 = [_number(f"/sys/fs/cgroup/{name}") for name in ("memory.max", "memory.swap.max")]
    if None not in version_2:
        limits.append(sum(version_2))  # type: ignore[arg-type]
    version_1 = _number("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
    limits += [] if version_1 is None else [version_1]
    return min(limits, default=None)


@contextlib.contextmanager
def out_of_memory_as(advice: str) -> Iterator[None]:
    """Turns a MemoryError, of Python, NumPy or Paddle, into a `TrainingError` of one line.

    Args:
        advice: What to do about it.
    """
    try:
        yield
    except MemoryError as problem:
        text = without_places(str(problem))
        words = re.search(r"[^\n]*(?:[Oo]ut of memory|[Uu]nable to allocate|[Cc]annot allocate)[^\n]*", text)
        reason = f" ({one_line(words[0].strip())})" if words else ""
        raise TrainingError(f"the memory is not enough{reason}; {advice}") from problem


def size_text(size: float) -> str:
    """Returns a size in bytes as a short text, such as '1.2 GB'."""
    units = ["B", "kB", "MB", "GB", "TB", "PB"]
    while size >= 999.5 and len(units) > 1:  # such a size would be rounded to 1,000
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}" if size < 999.5 else f"{size:,.0f} {units[0]}"


def keep_freed_memory() -> None:
    """Lets glibc keep memory that is freed, because activations and other large buffers come and go at every step.

    glibc returns much of it to the kernel, and to get it back costs a page fault for every 4 kB. A process then keeps
    up to 1 GiB, and the peak grows by a few percent. Pieces of more than 32 MB are still returned, so that rows of W do
    not scatter over the heap. What the user has chosen in the environment stays, and other C libraries are left alone.
    """
    chosen = any(name in os.environ for name in _MALLOC_VARIABLES) or "glibc.malloc" in os.environ.get(_TUNABLES, "")
    if chosen or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        for parameter, value in _MALLOC_PARAMETERS.items():
            libc.mallopt(parameter, value)


def _status(field: str) -> int:
    return _field("/proc/self/status", field)


def _field(path: str, field: str) -> int:
    """Returns a field of a file of /proc, in bytes; 0 where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))
    except (OSError, StopIteration):
        return 0


def _number(path: str) -> Optional[int]:
    """Returns the number in a file; None when there is none, as where a limit is not set."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
