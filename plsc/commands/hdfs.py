"""`plsc hdfs ls|get|put`: files and checkpoints of HDFS."""

from __future__ import annotations

import argparse
import getpass
import hashlib
import os
import posixpath
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from plsc.arguments import add_command, add_json, at_least, print_json
from plsc.errors import ConfigError, counted
from plsc.machine.names import readable, to_text
from plsc.storage import Kerberos, Retrying, StorageError, open_hdfs
from plsc.storage.address import check_hdfs_address
from plsc.storage.transfer import Advance, files_of, get, put, tree

_PASSWORD = "PLSC_HDFS_PASSWORD"


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    ls = "plsc hdfs ls --fs hdfs://namenode:9000 --user me checkpoints"
    get = "plsc hdfs get --fs hdfs://namenode:9000 --user me checkpoints/19 output/19"
    put = "plsc hdfs put --fs https://gateway:8443 --user me --ask-password output/19 checkpoints/19"
    about = "list, download and upload files, folders and checkpoints of HDFS"
    details = (
        f"The password of a gateway is read from {_PASSWORD} or asked for. No option takes it, because every user of a "
        "machine can see command lines. The command starts no training, so it has no --set or --config."
    )
    group = add_command(commands, "hdfs", about, [ls, get, put], details)
    actions = group.add_subparsers(dest="action", required=True, metavar="<action>", title="actions")
    for name, function, about, arguments, example in (
        ("ls", _ls, "show names, sizes and times", {"path": "file or folder of HDFS"}, ls),
        (
            "get",
            _get,
            "download; a checkpoint is verified, and an interrupted download resumes",
            {
                "source": "file, folder or checkpoint of HDFS",
                "target": "new local name, or a local folder to put it into",
            },
            get,
        ),
        (
            "put",
            _put,
            "upload; it appears in HDFS when it is complete",
            {"source": "local file or folder", "target": "new name in HDFS, or a folder to put it into"},
            put,
        ),
    ):
        action = add_command(actions, name, about, [example])
        action.add_argument(
            "--fs",
            required=True,
            metavar="ADDRESS",
            help="hdfs://host:port, http(s)://host:port, or an HdfsCLI alias",
        )
        action.add_argument("--user", metavar="NAME", help="HDFS user (default: HADOOP_USER_NAME, or your user name)")
        action.add_argument(
            "--ask-password",
            action="store_true",
            help=f"ask for the gateway's password (default: ${_PASSWORD}, if set)",
        )
        action.add_argument(
            "--kerberos",
            action="store_true",
            help="show the Kerberos ticket of this user (default: if the core-site.xml in HADOOP_CONF_DIR says so)",
        )
        action.add_argument("--keytab", metavar="FILE", help="show a ticket that this keytab gives")
        action.add_argument(
            "--retry-seconds",
            type=at_least(0),
            default=300,
            metavar="N",
            help="how long to retry after failures (default 300)",
        )
        add_json(action, "print JSON")
        for argument, meaning in arguments.items():
            action.add_argument(argument, help=meaning)
        action.set_defaults(run=function)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    password = os.environ.pop(_PASSWORD, "")  # so that child processes do not see it
    if options.ask_password:
        password = getpass.getpass(f"Password of {options.user} for {options.fs}: ")
    if password and not options.user:
        raise ConfigError("there is a password, but no name; give --user")
    check_hdfs_address(options.fs, is_alias=options.user is None)
    ugi = f"{options.user},{password}" if options.user else None
    kerberos = Kerberos(options.keytab) if options.kerberos or options.keytab else None
    if kerberos is not None and ugi is not None:
        raise ConfigError("with Kerberos, the ticket or the keytab says who connects; leave out --user")
    options.run(options, open_hdfs(options.fs, ugi, kerberos=kerberos).with_patience(options.retry_seconds))
    return 0


def _ls(options: argparse.Namespace, store: Retrying) -> None:
    status = store.status(options.path)
    if status is None:
        raise StorageError(f"{store.name}: {options.path}: nothing there")
    found = store.list(options.path) if status.is_folder else {posixpath.basename(options.path): status}
    if options.json:
        records = [
            {"name": name, "size": one.size, "folder": one.is_folder, "modified": one.modified}
            for name, one in found.items()
        ]
        print_json(records)
        return
    for name, one in sorted(found.items()):
        size = "-" if one.is_folder else f"{one.size:,}"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.modified))
        print(f"{size:>18}  {when}  {readable(name)}{'/' if one.is_folder else ''}")


def _get(options: argparse.Namespace, store: Retrying) -> None:
    files, target = tree(store, options.source), Path(options.target)
    if "meta.json" in files:
        _get_checkpoint(options, store, target)
        return
    total = sum(status.size for status in files.values())
    with _bar(options, posixpath.basename(options.source.rstrip("/")), total) as advance:
        place = get(store, options.source, target, advance)
    _done(options, place, total)


def _get_checkpoint(options: argparse.Namespace, store: Retrying, target: Path) -> None:
    from plsc.checkpoint import remote  # loads Paddle
    from plsc.checkpoint.folder import remove_old_downloads

    found, name = remote.open_remote(store, options.source), posixpath.basename(options.source.rstrip("/"))
    if found is None:
        raise StorageError(f"{store.name}: {options.source}: the checkpoint is no longer there")
    target = target / name if target.is_dir() else target
    if target.exists():
        raise ConfigError(f"{target}: already exists; name another place")
    files = found.checkpoint.files
    total = sum(one.size for one in files.values())
    remove_old_downloads(target)
    hidden = target.with_name(f".{target.name}.fetching.{hashlib.sha256(found.meta_text).hexdigest()[:12]}")
    with _bar(options, name, total) as advance:
        remote.download(store, found, hidden, files, advance)
    remote.finish_download(found, hidden)
    os.rename(hidden, target)
    _done(options, target, total)


def _put(options: argparse.Namespace, store: Retrying) -> None:
    source = Path(options.source)
    total = sum(path.stat().st_size for path in files_of(source) if path.exists())
    with _bar(options, source.name, total) as advance:
        place = put(store, source, options.target, advance)
    _done(options, place, total)


@contextmanager
def _bar(options: argparse.Namespace, name: str, total: int) -> Iterator[Advance]:
    """Shows a progress bar of bytes on stderr, unless the output is JSON."""
    disable = True if options.json else None  # None: only on a terminal
    with tqdm(total=total, desc=name, unit="B", unit_scale=True, dynamic_ncols=True, disable=disable) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance


def _done(options: argparse.Namespace, place: object, size: int) -> None:
    if options.json:
        print_json({"path": to_text(str(place)), "bytes": size})
    else:
        print(f"{place}: {counted(size, 'byte')}")
