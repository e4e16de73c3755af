"""plsc trains classifiers with very many classes on PaddlePaddle; the last layer is sharded over the ranks."""

import importlib.util

from plsc.threads import set_threads_per_rank
from plsc.version import __version__

__all__ = ["Entry", "BaseModel", "__version__"]

if importlib.util.find_spec("paddle") is None:
    raise ImportError(
        "plsc needs PaddlePaddle: run pip install '.[cpu]' in the plsc clone for a CPU, or pip install '.[gpu]' for a GPU"
    )

# The number of threads is read once, when paddle loads its math libraries.
set_threads_per_rank()

from plsc.entry import Entry  # noqa: E402
from plsc.models.base_model import BaseModel  # noqa: E402
