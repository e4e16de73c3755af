"""The environment that Paddle's math library finds, on every kind of processor."""

import os
import subprocess
import sys

import pytest
from ranks import ROOT, TIMEOUT

from plsc.machine import processor

AVX2 = "fpu sse2 avx avx2 fma"
pytestmark = pytest.mark.core


@pytest.fixture
def machine(monkeypatch):
    """`machine(architecture, vendor, flags)` makes this process believe that it runs on such a processor."""
    monkeypatch.delenv(processor.MKL_VARIABLE, raising=False)

    def pretend(architecture, vendor, flags):
        monkeypatch.setattr(processor.platform, "machine", lambda: architecture)
        fields = {"vendor_id": vendor, "flags": flags} if vendor else {}
        monkeypatch.setattr(processor, "_first_processor", lambda: fields)

    return pretend


@pytest.mark.parametrize(
    "architecture, vendor, flags, expected",
    [
        ("x86_64", "AuthenticAMD", AVX2, "5"),
        ("AMD64", "HygonGenuine", AVX2, "5"),
        ("x86_64", "GenuineIntel", AVX2, None),
        ("x86_64", "AuthenticAMD", "fpu sse2 avx", None),
        ("x86_64", "", "", None),
        ("aarch64", "AuthenticAMD", AVX2, None),
    ],
)
def test_other_makers_processors_with_avx2_get_the_fast_code(machine, architecture, vendor, flags, expected):
    machine(architecture, vendor, flags)
    processor.use_fast_mkl()
    assert os.environ.get(processor.MKL_VARIABLE) == expected


@pytest.mark.parametrize("value", ["4", ""])
def test_the_users_choice_stays(machine, monkeypatch, value):
    machine("x86_64", "AuthenticAMD", AVX2)
    monkeypatch.setenv(processor.MKL_VARIABLE, value)
    assert processor.use_fast_mkl()
    assert os.environ[processor.MKL_VARIABLE] == value


@pytest.mark.parametrize("chosen, expected", [(None, "0"), ("1", "1"), ("0", "0")])
def test_float32_products_are_not_rounded_to_tf32_unless_the_user_asks(monkeypatch, chosen, expected):
    monkeypatch.delenv(processor.TF32_VARIABLE, raising=False)
    if chosen is not None:
        monkeypatch.setenv(processor.TF32_VARIABLE, chosen)
    processor.compute_in_float32()
    assert os.environ[processor.TF32_VARIABLE] == expected


def output_of(code, **environment):
    clean = {name: value for name, value in os.environ.items() if name != processor.MKL_VARIABLE}
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert process.returncode == 0, process.stderr
    return process


def test_importing_plsc_sets_it_before_paddle_loads(monkeypatch):
    monkeypatch.delenv(processor.MKL_VARIABLE, raising=False)
    expected = processor._needs_it()
    code = "import os, sys, plsc; print(os.environ.get('MKL_DEBUG_CPU_TYPE'), 'paddle' in sys.modules)"
    process = output_of(code)
    assert process.stdout.split() == ["5" if expected else "None", "False"]
    assert "MKL" not in process.stderr


def pretend_amd(code):
    return (
        "import plsc.machine.processor as p; p._needs_it = lambda: True; import os; "
        f"os.environ.pop('MKL_DEBUG_CPU_TYPE', None); {code}"
    )


def test_paddle_imported_first_is_no_harm_until_it_has_multiplied():
    multiply = "import paddle; x = paddle.ones([4, 4]); y = paddle.matmul(x, x); "
    assert output_of(pretend_amd("import paddle; print(p.use_fast_mkl())")).stdout.split()[-1] == "True"
    assert output_of(pretend_amd(multiply + "print(p.use_fast_mkl())")).stdout.split()[-1] == "False"


def test_one_line_says_what_is_lost_where_paddle_has_multiplied_first():
    code = (
        "import platform, paddle; x = paddle.ones([4, 4]); paddle.matmul(x, x); "
        "from pathlib import Path; read = Path.read_text; "
        "Path.read_text = lambda path, **how: "
        f"'vendor_id : AuthenticAMD\\nflags : {AVX2}\\n' if str(path) == '/proc/cpuinfo' else read(path, **how); "
        "import plsc"
    )
    lines = [line for line in output_of(code).stderr.splitlines() if "MKL_DEBUG_CPU_TYPE=5" in line]
    assert len(lines) == 1 and "a third as fast" in lines[0]
