"""How much memory this process has, as the system counts it; 0 where it does not tell."""

from __future__ import annotations


def resident_memory() -> int:
    """Bytes now."""
    return _status("VmRSS")


def peak_memory() -> int:
    """The most it has had, in bytes."""
    return _status("VmHWM")


def _status(field: str) -> int:
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))
    except (OSError, StopIteration):
        return 0
