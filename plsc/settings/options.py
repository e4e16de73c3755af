"""`--set name=value` and `--config settings.yaml`, and how `plsc run` hands them to its ranks."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from plsc.arguments import Parser
from plsc.errors import ConfigError, one_line
from plsc.settings.apply import check_name, known_words

# The environment variables that carry the settings to the ranks, as JSON, in the order in which they apply.
_VARIABLES = {"--config": "PLSC_CONFIG", "--set": "PLSC_SETTINGS"}
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--set` and `--config` to a command."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting, such as train_batch_size=64 or image_shape=[3,32,32]; may be repeated "
        "(docs/settings.md lists the names)",
    )
    parser.add_argument("--config", metavar="FILE", help="read settings from a YAML file; --set wins over it")
    if isinstance(parser, Parser):
        names = {f"--{word.replace('_', '-')}": name for word, name in known_words().items()}
        parser.synonyms.update({option: f"--set {name}=..." for option, name in names.items()})
        parser.synonyms["--batch-size"] = "--set test_batch_size=..., or train_batch_size to train,"


def read_options(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings of `--config` and `--set` together.

    Raises:
        ConfigError: The file cannot be read, a name is not a setting, or a value is not YAML.
    """
    return {name: value for given in _read(options).values() for name, value in given.items()}


def to_environment(options: argparse.Namespace) -> dict[str, str]:
    """Returns the environment variables that give the settings of a command line to every `Entry` of a process.

    Raises:
        ConfigError: As `read_options`.
    """
    return {_VARIABLES[source]: json.dumps(given) for source, given in _read(options).items() if given}


def from_environment() -> dict[str, Mapping[str, Any]]:
    """Returns the settings of this process's environment by their source, in the order in which they apply."""
    return {source: json.loads(os.environ.get(name, "{}")) for source, name in _VARIABLES.items()}


def _read(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    chosen = {}
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {one_line(text)}: expected NAME=VALUE")
        check_name(name, "--set")  # the value may be a password
        chosen[name] = _parse(value, f"--set {text}")
    return {"--config": {} if options.config is None else _read_file(Path(options.config)), "--set": chosen}


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise ConfigError(f"--config {path}: cannot be read ({problem.strerror})") from None
    except UnicodeDecodeError as problem:
        raise ConfigError(f"--config {path}: is not UTF-8 text ({problem.reason} at byte {problem.start})") from None
    content = _parse(text, f"--config {path}") or {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: expected lines of 'name: value'")
    for name in content:
        check_name(str(name), f"--config {path}")
    return content


def _parse(text: str, where: str) -> Any:
    try:
        return _numbers(yaml.safe_load(text))
    # YAML's own reader raises ValueError for a date that does not exist, and for an integer of thousands of digits.
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        raise ConfigError(f"{one_line(where)}: not YAML: {one_line(' '.join(str(problem).split()))}") from None


def _numbers(value: Any) -> Any:
    """Turns 1e-3 and 1e6 into numbers. YAML 1.1 takes them for strings, because they have no dot."""
    if isinstance(value, dict):
        return {key: _numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_numbers(one) for one in value]
    if not isinstance(value, str) or not _EXPONENT.fullmatch(value):
        return value
    number = float(value)
    return int(number) if number.is_integer() else number
