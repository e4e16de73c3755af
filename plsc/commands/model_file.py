"""Makes the custom model of a checkpoint from the script that defines it, for `--model-from FILE:NAME`."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from plsc.errors import ConfigError, one_line
from plsc.machine.fluid_finder import OLD, FluidFinder

if TYPE_CHECKING:
    import paddle

_OPTION = "--model-from"


def make_model(text: str, sizes: Mapping[str, Any]) -> paddle.nn.Layer:
    """Returns a new model of a class, or of a function, that a script defines.

    The script runs as when it is imported. If it does not guard its training with `if __name__ == "__main__"`, it ends
    at the first action of an `Entry`.

    Args:
        text: `FILE:NAME`.
        sizes: Arguments that the class or function gets if it has parameters of these names.

    Raises:
        ConfigError: The file cannot be run, or does not define a model of that name.
    """
    file, colon, name = text.rpartition(":")
    if not colon or not file or not name:
        raise ConfigError(f"{_OPTION} {text}: expected FILE:NAME, such as train.py:Net")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"{_OPTION} {text}: {file} is not a file; name the script that defines the model")
    module = _run(path, text)
    maker = getattr(module, name, None)
    if maker is None:
        raise ConfigError(f"{_OPTION} {text}: {file} defines no {name}; {_models_in(module)}")
    if not callable(maker) or not (isinstance(maker, type) or inspect.isroutine(maker)):
        return maker  # `set_model` refuses what is not a layer
    try:
        accepted = inspect.signature(maker).parameters
        return maker(**{size: value for size, value in sizes.items() if size in accepted})
    except Exception as problem:
        raise ConfigError(
            f"{_OPTION} {text}: {name}() raised {type(problem).__name__}: {one_line(str(problem))}; write a function "
            "without arguments that returns the model, and name it"
        ) from problem


def _run(path: Path, text: str) -> ModuleType:
    """Runs a script up to the first action of an `Entry`, and returns it as a module."""
    from plsc.entry import ends_at_actions

    if importlib.util.find_spec(OLD) is None:  # as `plsc run` does it for the training
        sys.meta_path.append(FluidFinder())
    # A script that is called types.py must not replace the module of that name.
    name = path.stem if path.stem not in sys.modules else f"{path.stem} of {_OPTION}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # paddle.jit looks for the source of the model there
    sys.path.insert(0, str(path.resolve().parent))
    try:
        with ends_at_actions():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as problem:
        raise ConfigError(
            f"{_OPTION} {text}: {path} raised {type(problem).__name__}: {one_line(str(problem))}; the file must run "
            "without arguments"
        ) from problem
    return module


def _models_in(module: ModuleType) -> str:
    """Returns which models a module defines, for the message about one that it does not."""
    from paddle.nn import Layer

    names = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Layer) and value.__module__ == module.__name__
    ]
    return f"it defines {', '.join(names)}" if names else "it defines no model"
