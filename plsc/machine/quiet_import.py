"""Keeps Paddle from warning about what plsc has chosen, or does not use, and from showing C++ code after a signal.

It imports nothing of plsc, because `plsc run` loads it by itself, before a script that may never import plsc.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import signal
import sys
import threading
import types
import warnings
from collections.abc import Sequence
from typing import Optional

_THREADS = "OMP_NUM_THREADS"
_CHECKS_THREADS = "paddle.base"  # the module that reads the variable when it is imported


def quiet_import() -> None:
    """Prepares a quiet `import paddle`. Once Paddle is loaded, it only takes SIGTERM from it.

    Paddle looks for ccache, which would only make its C++ extensions compile faster: plsc has none. Whenever a batch
    normalisation trains, it also warns that running statistics are tracked, which is what they are for. At the end of
    its import it takes over SIGTERM, to print a C++ traceback.
    """
    for message in ("No ccache found", "When training, we now always track global mean and variance"):
        warnings.filterwarnings("ignore", message, UserWarning)
    if _CHECKS_THREADS in sys.modules:
        end_quietly()
    elif not any(isinstance(one, _Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def end_quietly() -> None:
    """Gives SIGTERM its usual effect, unless Python handles it: Paddle's handler would print a C++ traceback first.

    Python does not notice the handlers of libraries in C.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) in (None, signal.SIG_DFL):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Finder(importlib.abc.MetaPathFinder):
    """A finder that has `paddle.base` loaded by `_Loader`."""

    def find_spec(
        self, fullname: str, path: Optional[Sequence[str]] = None, target: Optional[types.ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        if fullname != _CHECKS_THREADS or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """A loader that shows `paddle.base` a number of threads about which it does not warn.

    Paddle warns of more than one thread, because a build on OpenBLAS could not use them; its wheels have MKL. It does
    not understand a list of levels, such as `2,1`, and then says nothing. The libraries that read the variable when
    they are loaded take the first number of the list, and those that read it at the first product find it restored.
    """

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Optional[types.ModuleType]:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__spec__ is not None:  # Tools that look for the source of the module ask the loader of its file.
            module.__spec__.loader = module.__loader__ = self._loader
        threads = os.environ.get(_THREADS, "")
        if threads.isdecimal() and int(threads) > 1:
            os.environ[_THREADS] = f"{threads},1"
        try:
            self._loader.exec_module(module)
        finally:
            if threads:
                os.environ[_THREADS] = threads
            end_quietly()
