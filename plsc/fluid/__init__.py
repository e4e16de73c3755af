"""The names of Paddle 1.x for models, optimizers and their settings, on today's Paddle.

In a script that `plsc run` starts, `import paddle.fluid as fluid` means this module; elsewhere write
`from plsc import fluid`. docs/fluid.md lists the supported names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import paddle

from plsc.fluid import clip, initializer, layers, optimizer, param_attr, regularizer
from plsc.fluid.param_attr import ParamAttr
from plsc.layers.losses import one_hot_rows
from plsc.layers.missing import not_here
from plsc.layers.parametric import table_rows

# fmt: off
__all__ = [
    "ParamAttr", "clip", "embedding", "initializer", "layers", "one_hot", "optimizer", "param_attr", "regularizer",
]
# fmt: on

_ENTRY = "plsc.Entry trains, tests and saves, and needs no program: see its setters, train() and test()"
_HINTS = {
    **dict.fromkeys(
        (
            *("Executor", "Program", "ParallelExecutor", "CompiledProgram", "BuildStrategy", "ExecutionStrategy"),
            *("default_main_program", "default_startup_program", "program_guard", "global_scope", "scope_guard"),
            *("Scope", "backward", "transpiler", "DistributeTranspiler", "compiler", "framework", "executor", "nets"),
        ),
        _ENTRY,
    ),
    **dict.fromkeys(
        ("io", "save", "load"), "Entry.train() saves, set_checkpoint_dir loads; use paddle.save for other data"
    ),
    **dict.fromkeys(("data", "DataFeeder", "reader", "DataLoader"), "assign ins.train_reader: see paddle.batch"),
    **dict.fromkeys(("CPUPlace", "CUDAPlace", "CUDAPinnedPlace", "cuda_places", "cpu_places"), "use paddle.set_device"),
    **dict.fromkeys(
        ("dygraph", "enable_dygraph"), "today's Paddle always runs in this mode: make paddle.nn layers in __init__"
    ),
    "core": "use paddle.device, such as paddle.device.is_compiled_with_cuda()",
    "is_compiled_with_cuda": "use paddle.device.is_compiled_with_cuda()",
    "contrib": "use set_mixed_precision of Entry, and plsc.amp.AutoMixedPrecisionLists",
    "metrics": "Entry.test() measures; set_calc_acc(True) logs the accuracy of training",
    "profiler": "use paddle.profiler",
    "unique_name": "layers are named automatically; give name= to choose a name",
    "WeightNormParamAttr": "use paddle.nn.utils.weight_norm on a layer made in __init__",
    "learning_rate_decay": "use fluid.layers.piecewise_decay or another schedule of fluid.layers",
    "install_check": "use paddle.utils.run_check()",
    "LoDTensor": "use paddle.Tensor",
    "Variable": "use paddle.Tensor",
}


def embedding(
    input: paddle.Tensor,
    size: Sequence[int],
    is_sparse: bool = False,
    is_distributed: bool = False,
    padding_idx: Optional[int] = None,
    param_attr: Any = None,  # noqa: F811
    dtype: str = "float32",
) -> paddle.Tensor:
    """Looks up rows as `layers.embedding` does, but drops no dimension: numbers [...] -> [..., size[1]]."""
    return table_rows(input, size, padding_idx, param_attr, dtype, None)


def one_hot(input: paddle.Tensor, depth: int, allow_out_of_range: bool = False) -> paddle.Tensor:
    """Returns one-hot rows as `layers.one_hot` does, but drops no dimension: numbers [...] -> [..., depth]."""
    return one_hot_rows(input, depth, allow_out_of_range)


def __getattr__(name: str) -> Any:
    raise not_here("fluid", name, _HINTS, _ENTRY)
