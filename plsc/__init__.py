"""plsc trains classifiers with very many classes on PaddlePaddle. The last layer is sharded over the ranks."""

# The first import, so that Ctrl-C during the others ends a program with one line.
from plsc.machine import beginning as _beginning  # noqa: F401

# isort: split
import importlib
import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from plsc.machine.memory import keep_freed_memory
from plsc.machine.processor import MKL_VARIABLE, compute_in_float32, use_fast_mkl
from plsc.machine.quiet_import import quiet_import
from plsc.machine.threads import set_threads_per_rank
from plsc.machine.uncaught import shorten_errors
from plsc.version import __version__

if TYPE_CHECKING:
    from plsc.data.readers import shard_reader
    from plsc.engine.callbacks import Callback
    from plsc.entry import Entry
    from plsc.inference.predictor import Predictor
    from plsc.models.base_model import BaseModel

__all__ = ["Entry", "BaseModel", "Callback", "Predictor", "shard_reader", "__version__"]

if importlib.util.find_spec("paddle") is None:
    raise ImportError(
        "plsc needs PaddlePaddle: run pip install '.[cpu]' in the plsc clone for a CPU, or pip install '.[gpu]' for a "
        "GPU"
    )

# Paddle reads the number of threads once, when it loads its math libraries.
set_threads_per_rank()
quiet_import()
keep_freed_memory()
compute_in_float32()
if not use_fast_mkl():
    logging.getLogger("plsc").warning(
        "Paddle computed a matrix product before plsc was imported, so its math library runs code for old processors, "
        "about a third as fast as this one can be; import plsc first, or set %s=5 in the environment",
        MKL_VARIABLE,
    )

_HOMES = {
    "Entry": "plsc.entry",
    "BaseModel": "plsc.models.base_model",
    "Callback": "plsc.engine.callbacks",
    "Predictor": "plsc.inference.predictor",
    "shard_reader": "plsc.data.readers",
}


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used: paddle takes seconds and 200 MB, which the data tools do not need."""
    if name == "Entry":  # of a script that trains
        shorten_errors()  # Ctrl-C while Paddle loads
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"plsc.{name}") is not None:
        value = importlib.import_module(f"plsc.{name}")
    else:
        raise AttributeError(f"module 'plsc' has no attribute {name!r}")
    globals()[name] = value
    return value
