"""Makes `import paddle.fluid` mean plsc.fluid where Paddle has no such module itself.

The `sitecustomize` of `plsc run` loads this file by its path, so it imports plsc only when a script asks for fluid.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import pkgutil
import sys
import types

OLD, NEW = "paddle.fluid", "plsc.fluid"


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
