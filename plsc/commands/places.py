"""Files and folders of a command line that may be in a store: `hdfs://`, `s3://` and the other addresses.

An argument says what it names by its type, `place(NEW_FOLDER)` for instance. For the time of the command, each address
gives way to a path on this machine: an input has been fetched to it, and an output is uploaded from it when the command
is done. Whatever the command prints, logs or raises names the address.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import posixpath
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional, Union

from plsc import settings
from plsc.commands.bars import byte_bar
from plsc.datasets.remote_staging import check_target
from plsc.errors import ConfigError, PlscError, UsageError
from plsc.machine.logs import reworded
from plsc.storage import Retrying, credentials
from plsc.storage.address import check_path, is_address, is_inside, split_address
from plsc.storage.base import COMMIT, missing
from plsc.storage.local import NO_ROOM, check_room
from plsc.storage.login import open_address
from plsc.storage.transfer import each, files_of, get, tree
from plsc.storage.working import StorePlace, Workspace, check_new, claimed, fetch_earlier, name_at, upload, workspace

_FULL = re.compile("|".join([os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), NO_ROOM, "is the disk of .* full"]))
_MORE_ROOM = "make room there, or set TMPDIR to a folder on a larger disk"
_NAMES = "PLSC_PLACES"  # carries the names of paths to the ranks that a command starts


@dataclass(frozen=True)
class Role:
    """What a command does with a place.

    Attributes:
        is_output: Whether it writes it.
        parts: What the names of several files have in addition to that of the place, `""` for itself. The last one of
            an output shows that the others are complete, and that a command may replace it.
        resumes: Whether a repeated command resumes an output from what an interrupted one has made.
        fetches: Which files of an input are fetched: 'all', 'top' for those that are directly in the folder, or
            'network' for those of a checkpoint but the class centres.
        marks: Files of which an input folder must hold one, so that nothing else is fetched.
        what: What a folder with one of them is, for messages.
        is_direct: Returns whether the command itself uploads the output while it makes it, to `options.target`.
    """

    is_output: bool = False
    parts: tuple[str, ...] = ()
    resumes: bool = False
    fetches: str = "all"
    marks: tuple[str, ...] = ()
    what: str = ""
    is_direct: Callable[[argparse.Namespace], bool] = lambda options: False


NEW_FOLDER = NEW_FILE = Role(is_output=True)
RESUMED_FOLDER = Role(is_output=True, resumes=True)
PAGE, INDEX_TO_WRITE = Role(is_output=True, parts=("",)), Role(is_output=True, parts=("", ".tsv", ".json"))
_NETWORK_MARKS = (COMMIT, "inference_meta.json")  # a checkpoint, an export
CLASSES = Role(marks=_NETWORK_MARKS, what="a checkpoint or an export")
NETWORK = replace(CLASSES, fetches="network")
FOLDER, RUN = Role(), Role(fetches="top", marks=("metrics.jsonl",), what="the folder of a run")
EMBEDDINGS = Role(fetches="top", marks=("manifest.json",), what="a folder of embeddings")
INDEX = Role(parts=("", ".tsv", ".json"))
RETRYING = "hdfs_upload"


class Away(str):
    """An address in a command line.

    Attributes:
        role: What the command does with it.
        make: Makes the value of the argument from a path on this machine.
    """

    role: Role
    make: Callable[[str], Any]


def place(role: Role, make: Callable[[str], Any] = Path) -> Callable[[str], Any]:
    """Returns an `argparse` type: a path on this machine, or the address of a place in a store.

    Args:
        role: What the command does with the place.
        make: Makes the value from a path on this machine: `Path` or `str`.
    """

    def read(text: str) -> Any:
        name = _name_of(role)
        if not text:
            raise ConfigError(f"{name}: the path is empty; name a file or a folder")
        if not is_address(text):
            check_path(name, text)
            return make(text)
        found = Away(text)
        found.role, found.make = role, make
        return found

    return read


def _name_of(role: Role) -> str:
    return "output" if role.is_output else "input"


def on_disk(option: str) -> Callable[[str], str]:
    """Returns an `argparse` type: a path on this machine, which cannot be in a store.

    Args:
        option: The option, for the message.
    """

    def read(text: str) -> str:
        if is_address(text):
            raise ConfigError(f"{option}: {text} is an address; name a folder of this machine")
        check_path(option, text)
        return text

    return read


def check_outside(options: argparse.Namespace, output: Union[str, Path]) -> None:
    """Checks that a new data set does not go into its source, where the next command would read it as a part of that.

    Paths on this machine alone are left to the command, which knows the format of the data.

    Args:
        options: The parsed command line, with the `source`.
        output: The output, or the path that stands for its address.

    Raises:
        ConfigError: It does.
    """
    address = address_of(options, output) or str(output)
    if (is_address(address) or is_address(options.source)) and is_inside(address, options.source):
        raise ConfigError(f"{address}: is the source, or a folder in it; give a folder outside {options.source}")


def address_of(options: argparse.Namespace, path: Union[str, Path]) -> Optional[str]:
    """Returns the address for which a path stands; None for a path that the command line names."""
    return getattr(options, "addresses", {}).get(str(path))


def variables_of_ranks(options: argparse.Namespace) -> dict[str, str]:
    """Returns environment variables for the ranks of a command: what paths are called, and the password."""
    names = getattr(options, "addresses", {})
    found = {_NAMES: json.dumps(names) if names else "", credentials.PASSWORD: credentials.password()}
    return {name: value for name, value in found.items() if value}


def add_retrying(parser: argparse.ArgumentParser) -> None:
    """Adds `--set` and `--config` to a command that takes no other setting than `hdfs_upload`."""
    settings.add_options(parser)
    for action in parser._actions:
        if action.dest == "set":
            action.help = "hdfs_upload=[end,SECONDS]: how long to try again when a store fails (default 300)"
        elif action.dest == "config":
            action.help = "read hdfs_upload from a YAML file, which may hold other settings too"
    parser.set_defaults(takes_retrying_alone=True)


class _Stores:
    """The stores that a command line names, each opened once.

    The environment says who connects, as with `plsc fs`: no option takes a password.

    Args:
        options: The parsed command line.

    Raises:
        UsageError: `--set` names another setting, and the command takes none.
        ConfigError: A setting cannot work.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        given = settings.read_options(options) if hasattr(options, "set") else {}
        if getattr(options, "takes_retrying_alone", False):
            for text in options.set:
                if text.partition("=")[0].strip() != RETRYING:
                    raise UsageError(f"--set {text.partition('=')[0]}: this command takes {RETRYING} alone")
        self._login = settings.make_config({RETRYING: given[RETRYING]} if RETRYING in given else {}).login
        self._opened: dict[str, Retrying] = {}

    def open(self, text: str, role: Role) -> StorePlace:
        """Opens the store of an address. That of an output is tried out."""
        address = split_address(_name_of(role), text)
        assert address is not None
        if address.path == "/":
            raise ConfigError(f"{text}: names the whole store; name a place in it")
        if address.is_fleeting and role.is_output:
            raise ConfigError(f"{text}: what is in memory:// ends with this command; name a store that keeps it")
        if address.server not in self._opened:
            self._opened[address.server] = open_address(address, self._login)
        target = StorePlace(text, self._opened[address.server], address.path)
        if role.is_output:
            target.check()
        return target


@contextlib.contextmanager
def on_this_machine(options: argparse.Namespace) -> Iterator[None]:
    """Has a command work on this machine, where its arguments name places in a store.

    Outputs are checked before anything is fetched or done: the address, the login, that nothing is overwritten, and
    that the store takes files there.

    Raises:
        PlscError: A place cannot be used; an input cannot be fetched; or an output cannot be uploaded.
    """
    names = json.loads(os.environ.get(_NAMES, "{}"))
    away = list(_away_in(options))
    with contextlib.ExitStack() as resources:
        if names or away:
            resources.enter_context(_worded(names))
        if away:
            resources.enter_context(_replaced(options, away, names))
        yield


def _away_in(options: argparse.Namespace) -> Iterator[Away]:
    for value in vars(options).values():
        yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, Away))


@contextlib.contextmanager
def _replaced(options: argparse.Namespace, away: Sequence[Away], names: dict[str, str]) -> Iterator[None]:
    """Puts paths of this machine in place of addresses, and uploads the outputs at the end of the block."""
    outputs = [one for one in away if one.role.is_output]
    twice = next((one for one in outputs if away.count(one) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice}: is named twice; name another place for the output")
    if outputs and "PADDLE_TRAINER_ID" in os.environ:
        raise ConfigError(
            f"{outputs[0]}: ranks that another program has started cannot write to a store together; start them with "
            "--ranks of this command, or name a folder that they share"
        )
    stores = _Stores(options)
    targets = {one: stores.open(one, one.role) for one in away}
    for one in outputs:
        _check_output(targets[one], one.role, options)
    with contextlib.ExitStack() as spaces:
        made: dict[Away, Path] = {}
        kept: dict[Away, Workspace] = {}
        for one in away:
            space = spaces.enter_context(workspace(str(one) if one.role.is_output else None))
            made[one] = space.path / name_at(targets[one].path)
            names[str(made[one])] = str(one)
            if one.role.is_output:
                targets[one] = spaces.enter_context(claimed(targets[one]))
                kept[one] = space
                _begin_output(targets[one], one.role, space, made[one], options)
        for one in away:
            if not one.role.is_output:
                _fetch(targets[one], one.role, made[one], options)
        _put_into(options, made)
        yield
        for one, space in kept.items():
            if one.role.is_direct(options):
                continue
            if made[one].exists() and not getattr(options, "is_incomplete", False):
                _upload(targets[one], one.role, made[one], space, names)
                space.stays = False


def _check_output(target: StorePlace, role: Role, options: argparse.Namespace) -> None:
    """Checks that an output overwrites nothing; `fetch_earlier` does so for those that may replace an earlier one."""
    if role.is_direct(options):
        check_target(target)
    elif not role.parts:
        check_new(target)


def _begin_output(target: StorePlace, role: Role, space: Workspace, local: Path, options: argparse.Namespace) -> None:
    """Prepares the folder of an output: with what an interrupted command has left, or with nothing."""
    _check_output(target, role, options)  # again: the command that had the claim before may have finished it
    if role.is_direct(options):
        options.target = target
    space.stays = role.resumes and not role.is_direct(options)
    if not space.stays:
        space.clear()
    if role.parts:
        fetch_earlier(target, role.parts, local)


def _upload(target: StorePlace, role: Role, local: Path, space: Workspace, names: dict[str, str]) -> None:
    """Uploads an output. It stays on this machine if that fails, since it may have taken long to make."""
    files = [local.with_name(local.name + part) for part in role.parts] or files_of(local)
    try:
        target.check_claim()
        with byte_bar(f"uploading {local.name}", sum(file.stat().st_size for file in files)) as advance:
            upload(target, local, role.parts, advance)
    except (PlscError, KeyboardInterrupt) as problem:
        space.stays = True
        del names[str(local)]  # the message tells where it is
        if isinstance(problem, KeyboardInterrupt):
            print(f"plsc: NOT UPLOADED: {local} is complete; it goes to {target.address}", file=sys.stderr)
            raise
        raise type(problem)(f"NOT UPLOADED: {problem}; the output is complete in {local}, so that plsc fs put can "
                            f"upload it to {target.address}") from None  # fmt: skip


def _fetch(target: StorePlace, role: Role, local: Path, options: argparse.Namespace) -> None:
    """Fetches an input.

    Raises:
        StorageError: It is missing, or cannot be read.
        ConfigError: The disk is too small.
    """
    store, path = target.store, target.path
    if role.parts:
        for part in role.parts:
            _get(store, path + part, local.with_name(local.name + part))
        return
    status = store.status(path)
    if status is None:
        raise missing(store, path)
    _check_marks(target, role)
    if status.is_folder and store.status(posixpath.join(path, COMMIT)) is not None and role.fetches != "top":
        _fetch_checkpoint(store, path, local, role.fetches == "all" or getattr(options, "with_classes", False))
    elif status.is_folder and role.fetches == "top":
        files = {name: one for name, one in store.list(path).items() if one.is_file}
        check_room(local, sum(one.size for one in files.values()))
        local.mkdir()
        each(store, lambda name: get(store, posixpath.join(path, name), local / name), [(name,) for name in files])
    else:
        _get(store, path, local)


def _check_marks(target: StorePlace, role: Role) -> None:
    """Raises ConfigError if a folder cannot be what the command takes. It may be the folder of a whole run, or more."""
    if role.marks and all(target.store.status(posixpath.join(target.path, mark)) is None for mark in role.marks):
        marks = " or ".join(role.marks)
        hint = "" if role.marks != _NETWORK_MARKS else ", such as that of one epoch"
        raise ConfigError(f"{target.address}: is not {role.what}, as it holds no {marks}; name another folder{hint}")


def _get(store: Retrying, path: str, local: Path) -> None:
    files = tree(store, path)
    with byte_bar(f"fetching {local.name}", sum(one.size for one in files.values())) as advance:
        get(store, path, local, advance, files)


def _fetch_checkpoint(store: Retrying, path: str, local: Path, is_whole: bool) -> None:
    """Fetches a checkpoint, and checks its files. Only those of the head may be left out."""
    from plsc.checkpoint import head_number, remote  # loads Paddle

    found = remote.open_remote(store, path)
    if found is None:
        raise missing(store, posixpath.join(path, COMMIT))
    files = {name: one for name, one in found.checkpoint.files.items() if is_whole or head_number(name) is None}
    with byte_bar(f"fetching {local.name}", sum(one.size for one in files.values())) as advance:
        remote.download(store, found, local, files, advance)
    remote.finish_download(found, local)


def _put_into(options: argparse.Namespace, made: Mapping[Away, Path]) -> None:
    """Puts paths of this machine in place of addresses, in the options and in the words of the command line."""
    from plsc.inference.export_folder import is_checkpoint

    for name, value in list(vars(options).items()):
        if isinstance(value, list):
            setattr(options, name, [one.make(str(made[one])) if isinstance(one, Away) else one for one in value])
        elif isinstance(value, Away):
            setattr(options, name, value.make(str(made[value])))
            if name == "model" and is_checkpoint(made[value]):  # the option names an export, or a checkpoint
                options.checkpoint, options.model = value.make(str(made[value])), None
    words = {str(one): str(path) for one, path in made.items()}
    options.addresses = {path: one for one, path in words.items()}
    options.arguments = [_local_word(word, words) for word in getattr(options, "arguments", [])]


def _local_word(word: str, words: Mapping[str, str]) -> str:
    option, equals, value = word.partition("=")
    return f"{option}={words[value]}" if equals and value in words else words.get(word, word)


@contextlib.contextmanager
def _worded(names: Mapping[str, str]) -> Iterator[None]:
    """Has everything that the command prints, logs and raises call places by their addresses.

    Args:
        names: What each path is called; more may be added during the block.
    """

    def worded(text: str) -> str:
        full = next((path for path in names if os.path.dirname(path) in text), "") if _FULL.search(text) else ""
        if full:  # the user has to know the folder of this machine
            return f"{text}; what is there for the time of the command is {names[full]}: {_MORE_ROOM}"
        for path in sorted(names, key=len, reverse=True):
            text = text.replace(path, names[path])
        return text

    with reworded(worded), contextlib.redirect_stdout(_Worded(sys.stdout, worded)):  # type: ignore[type-var]
        yield


class _Worded:
    """A text stream that changes what is written to it."""

    def __init__(self, stream: Any, change: Callable[[str], str]) -> None:
        self._stream, self._change = stream, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes a text and returns its length."""
        return self._stream.write(self._change(text))
