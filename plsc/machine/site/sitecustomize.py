"""Python runs this at the start of a script of `python -m plsc run`, and of the processes that script starts.

The folder of this file is in PYTHONPATH for that; nothing else is in it. It makes `import paddle.fluid` mean plsc.fluid where
Paddle has no such module of its own, loads nothing, and hands on to the machine's own sitecustomize.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import pkgutil
import sys
import types

OLD, NEW = "paddle.fluid", "plsc.fluid"


class FluidFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The last to be asked for a module, so only for what is not there."""

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Finds paddle.fluid; of its modules that are not there, says what to use instead."""
        if fullname == OLD:
            return importlib.util.spec_from_loader(fullname, self)
        if fullname.startswith(OLD + ".") and OLD in sys.modules and sys.modules[OLD].__name__ == NEW:
            try:
                getattr(sys.modules[OLD], fullname.split(".")[2])
            except AttributeError as problem:
                raise ModuleNotFoundError(str(problem), name=fullname) from None
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """plsc.fluid itself."""
        module = importlib.import_module(NEW)
        self._spec = module.__spec__
        # Python would load submodules a second time under their old names.
        for found in pkgutil.iter_modules(module.__path__):
            sys.modules[f"{OLD}.{found.name}"] = importlib.import_module(f"{NEW}.{found.name}")
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """It has run already."""
        module.__spec__ = self._spec  # which the import has just replaced


def _hand_on() -> None:
    """Leaves the path and this module's name as if the folder had never been there."""
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


sys.meta_path.append(FluidFinder())
_hand_on()
