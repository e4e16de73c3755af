"""The processor: what it is, and what the math libraries must be told about it and the GPU before they load."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Optional

MKL_VARIABLE = "MKL_DEBUG_CPU_TYPE"
TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"
_AVX2 = "5"  # the code path that MKL takes on Intel processors with AVX2
_BYTE_PRODUCTS = {"avx512_vnni", "avx_vnni", "asimddp", "i8mm"}  # instructions, as /proc/cpuinfo calls them


def use_fast_mkl() -> bool:
    """Makes Paddle's matrix library take its AVX2 code on processors that Intel did not make.

    The wheels of Paddle 2.6 and 3.3 carry an MKL of 2019, which on an x86-64 processor of another maker takes code for
    the oldest one, about a third as fast, unless `MKL_DEBUG_CPU_TYPE=5` is in the environment when the library loads. A
    value that the user has set stays. The processes that this one starts inherit the variable.

    Returns:
        False when the variable came too late: the library had been loaded without it.
    """
    if MKL_VARIABLE in os.environ or not _needs_it():
        return True
    os.environ[MKL_VARIABLE] = _AVX2
    return not _is_loaded()


def name() -> Optional[str]:
    """Returns the name of the processor, or at least its kind; None where the system does not report it."""
    return _first_processor().get("model name") or platform.processor() or platform.machine() or None


def describe() -> str:
    """Returns the processor's name, and whether it multiplies bytes as int8 networks want it (VNNI and its like)."""
    fields = _first_processor()
    flags, title = set((fields.get("flags") or fields.get("Features", "")).split()), name() or "an unknown processor"
    if not flags:
        return title
    return f"{title} ({'with' if flags & _BYTE_PRODUCTS else 'without'} VNNI or the like)"


def compute_in_float32() -> None:
    """Keeps NVIDIA's libraries from rounding the operands of float32 products to TF32, which has 10 bits of mantissa.

    By default Paddle lets them do so on GPUs from Ampere on. A value that the user has set stays: 1 allows it. The
    processes that this one starts inherit the variable.
    """
    os.environ.setdefault(TF32_VARIABLE, "0")


def _needs_it() -> bool:
    """Returns whether this is an x86-64 processor with AVX2 that Intel did not make, as far as the system tells."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    fields = _first_processor()
    return "avx2" in fields.get("flags", "").split() and fields.get("vendor_id") != "GenuineIntel"


def _first_processor() -> dict[str, str]:
    """Returns the fields of the first processor in /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _is_loaded() -> bool:
    """Returns whether this process has loaded MKL, which Paddle does at its first matrix product."""
    try:
        return "libmklml" in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
