"""Makes `import paddle.fluid` mean plsc.fluid in the scripts of `plsc run`, where Paddle has no such module itself.

It also keeps `import paddle` quiet, and has a rank end when the launcher that started it ends, even by SIGKILL.

Python runs this file at the start of the script and of the processes that the script starts, because `plsc run` adds
its folder, which holds nothing else, to PYTHONPATH. The file imports neither Paddle nor plsc, and then runs the
machine's own sitecustomize.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
import types

LAUNCHER = "PLSC_LAUNCHER_PID"
_PR_SET_PDEATHSIG = 1


def _run_own_sitecustomize() -> None:
    """Restores the path and the name of this module, and imports the machine's own sitecustomize."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != here]
    own = sys.modules.pop("sitecustomize", None)
    try:
        importlib.import_module("sitecustomize")
    except ModuleNotFoundError as problem:
        if problem.name != "sitecustomize":
            raise
        if own is not None:
            sys.modules["sitecustomize"] = own


def _end_with_launcher() -> None:
    """Has Linux send SIGTERM to this process, if it is a rank, when the launcher ends, so that it saves and ends.

    The variable is removed, because the processes that the rank starts are no ranks.
    """
    launcher = os.environ.pop(LAUNCHER, "")
    if not sys.platform.startswith("linux") or launcher != str(os.getppid()):
        return
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    except (ImportError, OSError, AttributeError):  # a Python without ctypes, or a C library without prctl
        return
    if launcher != str(os.getppid()):  # it ended just before the call
        os.kill(os.getpid(), signal.SIGTERM)


def _load(name: str) -> types.ModuleType:
    """Loads a module of plsc/machine by its path, without plsc."""
    path = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"plsc_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_end_with_launcher()
_load("quiet_import").quiet_import()  # the script may import Paddle before plsc
sys.meta_path.append(_load("fluid_finder").FluidFinder())
_run_own_sitecustomize()
