import ast
import contextlib
import importlib
import inspect
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import TIMEOUT

ROOT = Path(__file__).parent.parent


def python(code, **environment):
    kept = {name: value for name, value in os.environ.items() if name not in environment}
    kept.update({name: value for name, value in environment.items() if value is not None}, PYTHONPATH=str(ROOT))
    return subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, timeout=TIMEOUT)


def test_without_paddle_one_line_says_what_to_install():
    process = python("import sys; sys.modules['paddle'] = None; import plsc")
    assert process.returncode == 1
    assert "pip install '.[cpu]'" in process.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "given, ranks, expected",
    [(None, "1", len(os.sched_getaffinity(0))), (None, "64", 1), ("3", "1", 3)],
)
def test_threads_are_shared_by_the_ranks_unless_the_user_chose(given, ranks, expected):
    code = "import os; import plsc.machine.threads; print(os.environ['OMP_NUM_THREADS'])"
    process = python(code, OMP_NUM_THREADS=given, PADDLE_TRAINERS_NUM=ranks)
    assert process.stdout.split()[-1] == str(expected), process.stderr


def test_paddle_is_imported_and_trains_without_warnings_and_with_the_threads_that_were_chosen():
    code = "import plsc, os, paddle; print(os.environ['OMP_NUM_THREADS'])\n"
    code += "paddle.nn.BatchNorm2D(2)(paddle.zeros([2, 2, 3, 3]))"
    process = python(code, OMP_NUM_THREADS="2")
    assert (process.stdout, process.stderr) == ("2\n", "")


@pytest.mark.parametrize("order", ["plsc, paddle", "paddle, plsc"])
def test_sigterm_ends_a_program_without_a_trace_of_c_code_once_paddle_is_loaded(order):
    process = python(f"import {order}, os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)")
    assert process.returncode == -signal.SIGTERM and "Error" not in process.stderr and "C++" not in process.stderr


@pytest.mark.parametrize(
    "problem, status",
    [("KeyboardInterrupt()", -signal.SIGINT), ("ImportError('failed') from KeyboardInterrupt()", 130)],
)
def test_ctrl_c_while_paddle_loads_for_a_script_is_one_line(problem, status):
    code = f"""
import sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == "paddle":
            raise {problem}
import plsc
sys.meta_path.insert(0, Interrupting())
from plsc import Entry
"""
    process = python(code)
    assert (process.returncode, process.stderr) == (status, "plsc: stopped by Ctrl-C\n")


@pytest.mark.parametrize("name, is_program", [("/bin/plsc", True), ("-m", True), ("mine.py", False)])
def test_ctrl_c_during_the_imports_ends_a_program_with_one_line(name, is_program):
    code = f"""
import os, sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == "plsc.version":
            os.kill(os.getpid(), 2)
sys.meta_path.insert(0, Interrupting())
sys.argv[0] = {name!r}
import plsc.cli
"""
    process = python(code)
    if is_program:
        assert (process.returncode, process.stderr) == (130, "plsc: stopped by Ctrl-C\n")
    else:
        assert process.returncode == -2 and "KeyboardInterrupt" in process.stderr  # the script's own affair


def test_a_program_that_has_begun_handles_ctrl_c_itself():
    code = "import sys; sys.argv[0] = 'plsc'; import os, plsc.arguments as a\n"
    code += "sys.exit(a.exit_status(lambda: os.kill(os.getpid(), 2) or 0))"
    process = python(code)
    assert (process.returncode, process.stderr) == (130, "")


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


# From top to bottom: a room imports from itself and from the rooms below it.
ROOMS = [
    "__main__", "cli", "commands", "entry", "settings", "engine", "evaluation", "inference", "search", "report",
    "datasets", "shuffle", "utils", "fluid", "weights", "checkpoint", "heads", "models", "layers", "optim", "amp",
    "config", "data", "metrics", "storage", "zoo", "arguments", "parallel", "machine", "errors", "version",
]  # fmt: skip


def room_of(module):
    return module.split(".")[1]


def test_every_room_has_its_floor():
    rooms = {path.name.removesuffix(".py") for path in (ROOT / "plsc").iterdir() if path.suffix in ("", ".py")}
    assert rooms - {"__init__", "__pycache__"} == set(ROOMS)


def test_imports_point_one_way():
    floor = {room: number for number, room in enumerate(ROOMS)}
    for path in (ROOT / "plsc").rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        modules = {module for module in imports_of(path) if module}
        if not name.startswith("plsc/parallel/"):
            assert not any(module.startswith("paddle.distributed") for module in modules), name
        if name == "plsc/__init__.py":
            continue
        own = name.split("/")[1].removesuffix(".py")
        for module in modules:
            if module.startswith("plsc.") and room_of(module) in floor:
                assert floor[own] <= floor[room_of(module)], f"{name} imports {module}, which stands above it"


MOST_POSITIONAL = 6
LOGGING = {"debug", "info", "warning", "error", "exception", "critical", "log"}


def long_calls_of(source):
    """Yields the line and the function of each call with more than six positional arguments.

    Calls that log and calls with `*arguments` do not count.
    """
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or len(node.args) <= MOST_POSITIONAL:
            continue
        logs = isinstance(node.func, ast.Attribute) and node.func.attr in LOGGING
        if not logs and not any(isinstance(one, ast.Starred) for one in node.args):
            yield node.lineno, ast.unparse(node.func)


def test_the_guard_against_long_calls_finds_them():
    source = (
        "f(1, 2, 3, 4, 5, 6, a=7)\nf(*x, 2, 3, 4, 5, 6, 7)\nlogger.info('', 1, 2, 3, 4, 5, 6)\na.B(1, 2, 3, 4, 5, 6, 7)"
    )
    assert list(long_calls_of(source)) == [(4, "a.B")]


def test_no_call_has_more_than_six_positional_arguments():
    found = [
        f"{path.relative_to(ROOT)}:{line} {function}"
        for folder in ("plsc", "tools", "demo")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, function in long_calls_of(path.read_text())
    ]
    assert not found, "pass these arguments by keyword, or as a record: " + ", ".join(found)


def unnamed_encodings_of(source):
    """Yields the line of each call that opens a text file without naming its encoding, which locales would decide."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(one.arg == "encoding" for one in node.keywords):
            continue
        modes = [ast.unparse(one) for one in (*node.args[1:2], *(o.value for o in node.keywords if o.arg == "mode"))]
        opens = isinstance(node.func, ast.Name) and node.func.id == "open" and "b" not in "".join(modes)
        if opens or isinstance(node.func, ast.Attribute) and node.func.attr in ("read_text", "write_text"):
            yield node.lineno


def test_files_of_text_have_the_same_encoding_in_every_locale():
    source = "open(a)\nopen(a, 'rb')\nopen(a, mode='w')\nopen(a, encoding='utf-8')\nb.write_text(c)\nos.open(a, 1)"
    assert list(unnamed_encodings_of(source)) == [1, 3, 5]
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for folder in ("plsc", "tools", "demo")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if re.search(r"\bopen\(|_text\(", text := path.read_text(encoding="utf-8"))
        for line in unnamed_encodings_of(text)
    ]
    assert not found, "name the encoding: " + ", ".join(found)


def names_that_plsc_lacks(path):
    """Yields the names that a script outside plsc takes from plsc, and that are not there."""
    tree, modules = ast.parse(path.read_text()), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "plsc":
            for alias in node.names:
                found = getattr(importlib.import_module(node.module), alias.name, None)
                with contextlib.suppress(ModuleNotFoundError):
                    found = importlib.import_module(f"{node.module}.{alias.name}")
                if found is None:
                    yield f"{node.module}.{alias.name}"
                elif inspect.ismodule(found):
                    modules[alias.asname or alias.name] = found
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            module = modules[node.value.id]
            if not hasattr(module, node.attr):
                yield f"{module.__name__}.{node.attr}"


@pytest.mark.parametrize("folder", ["demo", "tools", "tests/benchmarks", "tests/helpers"])
def test_scripts_take_from_plsc_what_is_there(folder):
    """Benchmarks are not run by the tests, so that a move of the names they use would break them unseen."""
    missing = {path.name: list(names_that_plsc_lacks(path)) for path in (ROOT / folder).glob("*.py")}
    assert {name: names for name, names in missing.items() if names} == {}
