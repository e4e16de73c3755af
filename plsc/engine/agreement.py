"""What all ranks of a training must share. It is compared before the first step."""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path
from typing import Any, Union

import paddle

from plsc import parallel
from plsc.config import Config, plain_attributes, plain_settings
from plsc.data.loader import ImageLoader
from plsc.data.readers import ReaderLoader
from plsc.engine.run_record import objects_of
from plsc.optim import rate_of
from plsc.version import __version__

# These settings may differ: where a machine keeps its files and reaches HDFS, and what only speed or the log depend on.
# `check_data` compares what the files hold.
_MAY_DIFFER = {
    "dataset_dir",
    "exclude",
    "data_cache.directory",
    "data_cache.size",
    "model_save_dir",
    "checkpoint_dir",
    "pretrained.source",
    "teacher.source",
    "export_dir",
    "test_embeddings_dir",
    "scalars",
    "hdfs.fs_name",
    "hdfs.keytab",
    "num_workers",
    "log_period",
}
_DIGITS = 16  # of the digest that checkpoints keep
# These may differ too, but must be set on all ranks or on none: a rank makes other calls where they are empty.
_SET_ON_ALL = ("model_save_dir", "checkpoint_dir", "pretrained", "teacher")


def check_settings(config: Config) -> None:
    """Checks that all ranks run the same script with the same settings and versions.

    Environment variables and options such as `--set` are compared through the settings that they lead to.

    Raises:
        ConfigError: They do not; the message names the differences.
    """
    if parallel.world_size() == 1:
        return
    values = {"plsc": __version__, "paddle": paddle.__version__, "python": platform.python_version()}
    values["the script"] = _script()
    objects = {name: kind for name, kind in objects_of(config).items() if name != "callbacks"}
    for name, value in _flat({**plain_settings(config), **objects}).items():
        if name not in _MAY_DIFFER:
            values[f"the setting {name}"] = repr(value)
    values.update(_attributes(type(config.margin_object).__name__, config.margin_object))
    for kind in ("param_attr", "bias_attr"):
        attr = getattr(config, kind)
        values.update(_attributes(kind, attr))
        values.update(_attributes(f"{kind}.regularizer", getattr(attr, "regularizer", None)))
        values.pop(f"{kind}.name", None)
    for name in _SET_ON_ALL:
        values[f"whether {name} is set"] = "yes" if getattr(config, name) else "no"
    parallel.check_same(values, "give all ranks the same script, settings and versions")


def check_data(loader: Union[ImageLoader, ReaderLoader]) -> str:
    """Checks that all ranks train on the same images with the same labels, as far as the loader shares them out.

    Returns:
        A digest of the images, in hexadecimal.

    Raises:
        ConfigError: They do not; the message names the differences.
    """
    digests = loader.digests()
    if parallel.world_size() > 1:
        parallel.check_same(digests, "give all machines the same data set")
    return hashlib.sha256("\n".join(digests.values()).encode()).hexdigest()[:_DIGITS]


def check_rate(optimizer: paddle.optimizer.Optimizer) -> None:
    """Checks that all ranks begin with the same learning rate, which a custom optimizer brings along.

    With different rates, the backbones of the ranks would drift apart.

    Raises:
        ConfigError: They do not.
    """
    parallel.check_same({"the learning rate": repr(rate_of(optimizer))}, "give all ranks the same set_optimizer")


def _attributes(owner: str, thing: Any) -> dict[str, str]:
    """Returns the plain values that an object holds."""
    return {f"{owner}.{name}": repr(value) for name, value in plain_attributes(thing).items()}


def _script() -> str:
    """Returns a digest of the text of the running script."""
    path = getattr(sys.modules["__main__"], "__file__", None)
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""
    except OSError:
        return ""


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings, with those of several parts under names such as `hdfs.fs_name`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update({f"{name}.{part}": one for part, one in value.items()})
        else:
            flat[name] = value
    return flat
