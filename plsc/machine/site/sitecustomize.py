"""Makes `import paddle.fluid` mean plsc.fluid in the scripts of `plsc run`, where Paddle has no such module itself.

It also keeps `import paddle` quiet, and has a rank end when the launcher that started it ends, even by SIGKILL.

Python runs this file at the start of the script and of the processes that the script starts, because `plsc run` adds
its folder, which holds nothing else, to PYTHONPATH. The file imports neither Paddle nor plsc, and then runs the
machine's own sitecustomize.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import pkgutil
import signal
import sys
import types

OLD, NEW = "paddle.fluid", "plsc.fluid"
LAUNCHER = "PLSC_LAUNCHER_PID"
_PR_SET_PDEATHSIG = 1


class FluidFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """An importer that finds `paddle.fluid` as plsc.fluid.

    It is the last one in `sys.meta_path`, so Python asks it only for modules that do not exist.
    """

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Finds paddle.fluid. For a module that plsc.fluid lacks, raises an error that says what to use instead."""
        if fullname == OLD:
            return importlib.util.spec_from_loader(fullname, self)
        if fullname.startswith(OLD + ".") and OLD in sys.modules and sys.modules[OLD].__name__ == NEW:
            try:
                getattr(sys.modules[OLD], fullname.split(".")[2])
            except AttributeError as problem:
                raise ModuleNotFoundError(str(problem), name=fullname) from None
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Returns plsc.fluid itself."""
        module = importlib.import_module(NEW)
        self._spec = module.__spec__
        # Otherwise Python would load the submodules a second time under their old names.
        for found in pkgutil.iter_modules(module.__path__):
            sys.modules[f"{OLD}.{found.name}"] = importlib.import_module(f"{NEW}.{found.name}")
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Does nothing more than restore the spec, because the module has run already."""
        module.__spec__ = self._spec  # the import has just replaced it


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


def _quieten_paddle() -> None:
    """Runs plsc/machine/quiet_import.py, since the script may import Paddle before plsc."""
    path = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "quiet_import.py")
    spec = importlib.util.spec_from_file_location("plsc_quiet_import", path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.quiet_import()


_end_with_launcher()
_quieten_paddle()
sys.meta_path.append(FluidFinder())
_run_own_sitecustomize()
