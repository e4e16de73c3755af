"""Settings from the command line or a file: `--set name=value`, `--config settings.yaml`. They win over a script's setters."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from plsc.errors import ConfigError

_VARIABLE = "PLSC_SETTINGS"  # carries them to the ranks, as JSON

# The setter of each setting. What takes several arguments is given as a list, or as a mapping by their names.
SETTERS = {
    "train_batch_size": "set_train_batch_size",
    "test_batch_size": "set_test_batch_size",
    "dataset_dir": "set_dataset_dir",
    "data_format": "set_data_format",
    "train_image_num": "set_train_image_num",
    "train_epochs": "set_train_epochs",
    "warmup_epochs": "set_warmup_epochs",
    "lr": "set_lr",
    "lr_steps": "set_step_boundaries",
    "lr_decay_factor": "set_lr_decay_factor",
    "val_targets": "set_val_targets",
    "test_fars": "set_test_fars",
    "identification": "set_identification",
    "test_embeddings_dir": "set_test_embeddings_dir",
    "with_test": "set_with_test",
    "model_name": "set_model_name",
    "checkpoint_dir": "set_checkpoint_dir",
    "export_dir": "set_export_dir",
    "model_save_dir": "set_model_save_dir",
    "loss_type": "set_loss_type",
    "num_classes": "set_class_num",
    "image_shape": "set_image_shape",
    "margin": "set_margin",
    "scale": "set_scale",
    "emb_dim": "set_emb_size",
    "log_period": "set_log_period",
    "calc_acc": "set_calc_acc",
    "save_period": "set_save_period",
    "keep_checkpoints": "set_keep_checkpoints",
    "background_save": "set_background_save",
    "head_init": "set_head_init",
    "sample_ratio": "set_sample_ratio",
    "head_chunk": "set_head_chunk",
    "gradient_clip": "set_gradient_clip",
    "gradient_accumulation": "set_gradient_accumulation",
    "max_skipped_steps": "set_max_skipped_steps",
    "resume": "set_resume",
    "seed": "set_seed",
    "num_workers": "set_num_workers",
    "augmentation": "set_augmentation",
    "mixed_precision": "set_mixed_precision",
    "hdfs_upload": "set_hdfs_upload",
    "scalars": "set_scalars",
}
_WITH_SEVERAL_ARGUMENTS = ("augmentation", "data_format", "hdfs_upload", "identification", "mixed_precision", "scalars")
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--set` and `--config` to a command."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting, such as train_batch_size=64 or image_shape=[3,32,32]; may be given again (names: docs/settings.md)",
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML file of settings; --set wins over it")


def read_options(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of `--config` and `--set`.

    Raises:
        ConfigError: a file that cannot be read, a name that is no setting, or a value that is not YAML.
    """
    settings: dict[str, Any] = {}
    if options.config is not None:
        settings.update(_read_file(Path(options.config)))
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: expected NAME=VALUE")
        _check_name(name, f"--set {text}")
        settings[name] = _parse(value, f"--set {text}")
    return settings


def to_environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """The environment that gives the settings to every `Entry` of a process."""
    return {_VARIABLE: json.dumps(settings)} if settings else {}


def apply(entry: Any) -> list[str]:
    """Calls the setters of an `Entry` with the settings of the environment; returns the names of what was set.

    Raises:
        ConfigError: a value that a setter refuses.
    """
    settings = json.loads(os.environ.get(_VARIABLE, "{}"))
    for name, value in settings.items():
        setter = getattr(entry, SETTERS[name])
        try:
            if name in _WITH_SEVERAL_ARGUMENTS and isinstance(value, dict):
                setter(**value)
            elif name in _WITH_SEVERAL_ARGUMENTS and isinstance(value, list):
                setter(*value)
            else:
                setter(value)
        except TypeError as problem:
            raise ConfigError(f"{name}={value!r}: {problem}") from None
    return list(settings)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"--config {path}: cannot be read ({problem})") from None
    content = _parse(text, f"--config {path}") or {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: expected lines of 'name: value'")
    for name in content:
        _check_name(str(name), f"--config {path}")
    return content


def _parse(text: str, where: str) -> Any:
    try:
        return _numbers(yaml.safe_load(text))
    except yaml.YAMLError as problem:
        raise ConfigError(f"{where}: not YAML: {' '.join(str(problem).split())}") from None


def _numbers(value: Any) -> Any:
    """Takes 1e-3 for a number too, which YAML 1.1 takes for a text."""
    if isinstance(value, dict):
        return {key: _numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_numbers(one) for one in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _check_name(name: str, where: str) -> None:
    if name not in SETTERS:
        alike = difflib.get_close_matches(name, SETTERS, 1)
        hint = f"did you mean {alike[0]!r}?" if alike else f"the settings are {', '.join(SETTERS)}"
        raise ConfigError(f"{where}: {name!r} is not a setting; {hint}")
