"""`--set name=value` and `--config settings.yaml`, and how `plsc run` hands them to its ranks."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from plsc.arguments import Parser
from plsc.errors import ConfigError, UsageError, one_line, shown
from plsc.machine.json_files import as_object, parse_json
from plsc.settings.apply import check_name, known_words
from plsc.settings.table import SETTINGS

# The environment variables that carry the settings to the ranks, as JSON, in the order in which they apply.
_VARIABLES = {"--config": "PLSC_CONFIG", "--set": "PLSC_SETTINGS"}
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
_ZEROS = re.compile(r"([+-]?)0+([0-9_]+)")
_TAG = "tag:yaml.org,2002:"
_GUESSED = {f"{_TAG}{kind}" for kind in ("bool", "float", "int", "timestamp")}  # what YAML makes of unquoted words
_LONGEST_FILE = 1 << 20
_MOST_BRACKETS = 500  # the time that YAML takes for them grows with their square
_MOST_VALUES = 100_000  # of a file, whose aliases could stand for many more than it has bytes


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
        UsageError: `--set` has no value, names no setting, or has a value that is not YAML.
        ConfigError: The file cannot be read, or is not YAML with names of settings.
    """
    return {name: value for given in _read(options).values() for name, value in given.items()}


def to_environment(options: argparse.Namespace) -> dict[str, str]:
    """Returns the environment variables that give the settings of a command line to every `Entry` of a process.

    Raises:
        UsageError: As `read_options`.
        ConfigError: As `read_options`.
    """
    return {_VARIABLES[source]: json.dumps(given) for source, given in _read(options).items() if given}


def from_environment() -> dict[str, Mapping[str, Any]]:
    """Returns the settings of this process's environment by their source, in the order in which they apply.

    Raises:
        ConfigError: A variable holds something that `plsc run` does not write.
    """
    return {source: _from_variable(name) for source, name in _VARIABLES.items()}


def _from_variable(name: str) -> dict[str, Any]:
    try:
        return as_object(parse_json(os.environ.get(name, "{}")))
    except ValueError as problem:
        raise ConfigError(
            f"{name} in the environment: {one_line(str(problem))}; unset it, and give settings with plsc run --set"
        ) from None


def _read(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    chosen = {}
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--set {one_line(text)}: expected NAME=VALUE, such as train_batch_size=64")
        try:
            check_name(name, "--set")  # the value may be a password
            chosen[name] = _value(name, value.strip(), f"--set {text}")
        except ConfigError as problem:
            raise UsageError(str(problem)) from None
    return {"--config": {} if options.config is None else _read_file(Path(options.config)), "--set": chosen}


def _read_file(path: Path) -> dict[str, Any]:
    where = f"--config {path}"
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read(_LONGEST_FILE + 1)
    except OSError as problem:
        raise ConfigError(f"{where}: cannot be read ({problem.strerror}); check the path") from None
    except UnicodeDecodeError as problem:
        raise ConfigError(
            f"{where}: is not UTF-8 text ({problem.reason} at byte {problem.start}); save it as UTF-8"
        ) from None
    if len(text) > _LONGEST_FILE:
        raise ConfigError(f"{where}: has more than {_LONGEST_FILE:,} characters; name a file of settings")
    content = _parse(text, where, _type_file) or {}
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected lines of 'name: value'")
    for name in content:
        check_name(str(name), where)
    return content


def _value(name: str, text: str, where: str) -> Any:
    """Returns the value of `--set`: of a setting that is a text, the text itself, unless it is in quotes or brackets.

    A number sign begins a comment in a file, but is part of a text here.
    """
    first = SETTINGS[name].parameters[0]
    if first not in SETTINGS[name].texts:
        return _parse(text, where, lambda node: _type(name, node))
    if text[:1] not in ("'", '"', "[", "{"):
        return None if text in ("~", "null", "Null", "NULL") else text
    with contextlib.suppress(ConfigError):
        return _parse(text, where, lambda node: _type(name, node))
    return text


def _parse(text: str, where: str, type_nodes: Callable[[yaml.Node], None]) -> Any:
    """Returns what a text in YAML holds, after `type_nodes` has decided what its unquoted words are."""
    try:
        if text.count("[") + text.count("{") > _MOST_BRACKETS:
            raise ValueError(f"more than {_MOST_BRACKETS:,} brackets")
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _bound(node, [_MOST_VALUES])
            _check_keys(node, where)
            type_nodes(node)
            value = loader.construct_document(node)
            json.dumps(value)  # refuses sets and bytes, which could not travel to the ranks
            return value
        finally:
            loader.dispose()
    except (TypeError, LookupError, AttributeError):  # for what JSON cannot hold, and `!!bool "x"`
        raise ConfigError(f"{one_line(where)}: no setting takes this value; leave out the tag, as in !!set") from None
    # YAML's own reader raises ValueError for an integer of thousands of digits.
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        raise ConfigError(f"{one_line(where)}: not YAML: {_reason_of(problem)}") from None


def _reason_of(problem: Exception) -> str:
    """Returns what an error says, without the text that YAML quotes: it may hold a password."""
    if not isinstance(problem, yaml.MarkedYAMLError) or problem.problem_mark is None:
        return one_line(" ".join(str(problem).split()))
    mark = problem.problem_mark
    return one_line(f"{problem.problem} (line {mark.line + 1}, column {mark.column + 1})")


def _bound(node: yaml.Node, left: list[int]) -> None:
    """Raises ValueError for more values than a configuration has. A value counts wherever an alias repeats it."""
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"more than {_MOST_VALUES:,} values")
    for inner in _inside(node):
        _bound(inner, left)


def _check_keys(node: yaml.Node, where: str) -> None:
    """Raises ConfigError if a mapping has a key twice, of which PyYAML would take the last and say nothing."""
    seen: set[str] = set()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            line = key.start_mark.line + 1
            raise ConfigError(f"{one_line(where)}: {shown(key.value)} is there twice, again in line {line}; leave one")
        if isinstance(key, yaml.ScalarNode):
            seen.add(key.value)
    for inner in _inside(node):
        _check_keys(inner, where)


def _inside(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [one for pair in node.value for one in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _type_file(node: yaml.Node) -> None:
    """Decides what the words of a file of settings are."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
        _type(key.value if isinstance(key, yaml.ScalarNode) else "", value)


def _type(name: str, node: yaml.Node) -> None:
    """Decides what the words of a setting's value are: texts where the setting takes texts, and else what YAML says."""
    texts = SETTINGS[name].texts if name in SETTINGS else []
    parameters = SETTINGS[name].parameters if name in SETTINGS else [""]
    is_first = isinstance(node, yaml.SequenceNode) and name in SETTINGS and SETTINGS[name].takes_list
    if len(parameters) == 1 or isinstance(node, yaml.ScalarNode) or is_first:
        _retag(node, parameters[0] in texts)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _retag(value, key.value in texts)
    else:
        for parameter, value in zip(parameters, node.value):
            _retag(value, parameter in texts)


def _retag(node: yaml.Node, is_text: bool) -> None:
    for inner in _inside(node):
        _retag(inner, is_text)
    if not isinstance(node, yaml.ScalarNode) or node.style is not None:
        return
    if node.tag in _GUESSED and (is_text or ":" in node.value or node.tag == f"{_TAG}timestamp"):
        node.tag = f"{_TAG}str"  # no setting is a date, nor a number to the base 60
    elif not is_text and node.tag == f"{_TAG}str" and _EXPONENT.fullmatch(node.value):
        # YAML 1.1 takes 1e-3 and 1e6 for strings, because they have no dot.
        number = float(node.value)
        is_integer = number.is_integer()
        node.tag, node.value = f"{_TAG}{'int' if is_integer else 'float'}", str(int(number) if is_integer else number)
    elif node.tag == f"{_TAG}int" and (match := _ZEROS.fullmatch(node.value)):
        node.value = f"{match[1]}{match[2].strip('_') or 0}"  # YAML 1.1 would read 010 to the base 8
