"""`plsc fs ls|du|get|put|rm`: files and checkpoints of HDFS, object stores and other file systems."""

from __future__ import annotations

import argparse
import getpass
import hashlib
import os
import posixpath
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from plsc.arguments import add_command, add_json, at_least, print_json
from plsc.commands.bars import byte_bar
from plsc.errors import ConfigError, counted
from plsc.machine.memory import size_text
from plsc.machine.names import readable, to_text
from plsc.storage import Kerberos, Retrying, StorageError, credentials, open_hdfs
from plsc.storage.address import check_hdfs_address, check_takes_kerberos, is_foreign_address, split_address
from plsc.storage.base import COMMIT, Status, missing, place_of
from plsc.storage.local import LOCAL
from plsc.storage.transfer import Advance, copied, files_of, get, place_in, put, tree
from plsc.storage.working import StorePlace, claimed


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    ls = "plsc fs ls hdfs://namenode:9000/user/me/checkpoints"
    du = "plsc fs du s3://bucket/checkpoints"
    get = "plsc fs get --fs hdfs://namenode:9000 --user me checkpoints/19 output/19"
    put = "plsc fs put --fs https://gateway:8443 --user me --ask-password output/19 checkpoints/19"
    rm = "plsc fs rm --dry-run s3://bucket/checkpoints/earlier_1"
    about = "list, download, upload and remove files, folders and checkpoints of HDFS, S3 and other stores"
    details = (
        f"The secret of an access key, or the password of the gateways that {credentials.HOST} names, is read from "
        f"{credentials.PASSWORD}, or asked for. "
        "No option takes it, because every user of a machine can see command lines. The command starts no training, so "
        "it has no --set or --config."
    )
    group = add_command(commands, "fs", about, [ls, du, get, put, rm], details)
    actions = group.add_subparsers(dest="action", required=True, metavar="<action>", title="actions")
    there = "file or folder of the store, or its address"
    for name, function, about, arguments, example in (
        ("ls", _ls, "show names, sizes and times", {"path": there}, ls),
        ("du", _du, "show how much a folder and each part of it holds", {"path": there}, du),
        (
            "get",
            _get,
            "download; a checkpoint is verified, and an interrupted download resumes",
            {
                "source": "file, folder or checkpoint of the store, or its address",
                "target": "new local name, or a local folder to put it into",
            },
            get,
        ),
        (
            "put",
            _put,
            "upload; it appears when it is complete, in an object store file by file and meta.json last",
            {
                "source": "local file or folder",
                "target": "new name in the store or its address, or a folder to put it into",
            },
            put,
        ),
        ("rm", _rm, "remove a file, or a folder with everything in it, after a question", {"path": there}, rm),
    ):
        action = add_command(actions, name, about, [example])
        _add_options(action)
        if name in ("get", "put", "rm"):
            action.add_argument("--dry-run", action="store_true", help="show what would be done, and do nothing")
        if name == "rm":
            action.add_argument("--yes", action="store_true", help="ask no question")
        for argument, meaning in arguments.items():
            action.add_argument(argument, help=meaning)
        action.set_defaults(run=function, remote="target" if name == "put" else next(iter(arguments)))


def _add_options(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--fs",
        metavar="ADDRESS",
        help="hdfs://host:port, http(s)://host:port, s3://bucket, another address of fsspec, or an HdfsCLI alias "
        "(default: that of the path)",
    )
    action.add_argument(
        "--user",
        metavar="NAME",
        help="HDFS user (default: HADOOP_USER_NAME, or your user name), or access key of an object store (default: "
        "that of the environment)",
    )
    action.add_argument(
        "--ask-password",
        action="store_true",
        help=f"ask for the password or secret (default: that of {credentials.PASSWORD}; for a gateway, if "
        f"{credentials.HOST} names it)",
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


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    _name_store(options)
    options.run(options, _open(options).with_patience(options.retry_seconds))
    return 0


def _name_store(options: argparse.Namespace) -> None:
    """Divides an address among `--fs` and the path. Raises ConfigError if no store is named, or two are."""
    path = getattr(options, options.remote)
    local = getattr(options, "target" if options.remote == "source" else "source", None)
    if local is not None and "://" in local and not os.path.exists(local):
        raise ConfigError(
            f"{local}: is an address, and the command copies between a store and this machine; give a local "
            f"{'target' if options.remote == 'source' else 'source'}"
        )
    web = re.fullmatch(r"(https?://[^/@]+)(/.*)", path, re.IGNORECASE)
    if web is not None and options.fs is None:  # of a NameNode; that of a gateway has a path, which --fs must give
        options.fs = web[1]
        setattr(options, options.remote, web[2])
        return
    address = split_address(options.remote, path)
    if address is not None and options.fs is not None:
        raise ConfigError(f"--fs {options.fs} and the address {path} both name a store; give one of them")
    if options.run is _rm and ".." in path.split("/"):  # `split_address` resolves them
        raise ConfigError(f"{path}: contains '..'; name what to remove without it")
    if address is not None:
        options.fs = address.server
        setattr(options, options.remote, address.path)
    if address is not None and address.is_fleeting and options.run is _put:
        raise ConfigError(f"{path}: what is in memory:// ends with this command; name a store that keeps it")
    if options.fs is None:
        raise ConfigError(
            f"{path or repr(path)}: no store is named; give an address such as s3://bucket/folder or file:///folder, "
            "or --fs"
        )


def _open(options: argparse.Namespace) -> Retrying:
    """Opens the store. Raises ConfigError for options that do not fit together."""
    check_hdfs_address(options.fs, is_alias=options.user is None)
    kerberos = Kerberos(options.keytab) if options.kerberos or options.keytab else None
    if kerberos is not None:
        check_takes_kerberos("--kerberos and --keytab", options.fs)
        if options.user or options.ask_password:
            raise ConfigError(
                "with Kerberos, the ticket or the keytab says who connects; leave out --user and --ask-password"
            )
    ugi = None if kerberos is not None else _ugi(options)
    return open_hdfs(options.fs, ugi, kerberos=kerberos, patience=options.retry_seconds)


def _ugi(options: argparse.Namespace) -> Optional[str]:
    """Returns `name,password`; None if the store is opened without, or its own configuration gives them."""
    if options.ask_password:
        if not options.user and is_foreign_address(options.fs):
            raise ConfigError("--ask-password asks for the secret of an access key; give the key with --user")
        name = options.user or credentials.user_name()
        return f"{name},{_asked(f'Password of {name} for {options.fs}: ')}"
    if options.user:
        return f"{options.user},{credentials.password_for(options.fs)}"
    if is_foreign_address(options.fs):  # an access key and its secret come from the same place
        return None
    from plsc.storage.hdfs import is_alias  # loads packages that only users of HDFS need

    return None if is_alias(options.fs) else credentials.ugi_of_environment(options.fs)


def _asked(prompt: str) -> str:
    """Returns the password that the user types. Raises ConfigError if there is nobody to type it."""
    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise ConfigError(f"no password was typed; set {credentials.PASSWORD}, or run it in a terminal") from None


def _ls(options: argparse.Namespace, store: Retrying) -> None:
    status = store.status(options.path)
    if status is None:
        raise missing(store, options.path)
    found = store.list(options.path) if status.is_folder else {posixpath.basename(options.path): status}
    if options.json:
        records = [
            {"name": name, "size": one.size, "folder": one.is_folder, "modified": one.modified}
            for name, one in found.items()
        ]
        print_json(records)
        return
    for name, one in sorted(found.items()):
        path = posixpath.join(options.path, name) if status.is_folder else options.path
        size = "-" if one.is_folder else f"{one.size:,}"
        # Folders of an object store have no time.
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.modified)) if one.modified else "-"
        print(f"{size:>18}  {when:>16}  {readable(place_of(store, path))}{'/' if one.is_folder else ''}")


def _du(options: argparse.Namespace, store: Retrying) -> None:
    files = tree(store, options.path)
    parts: dict[str, list[int]] = {}
    for name, status in files.items():
        first, is_inside, _ = name.partition("/")
        part = parts.setdefault(f"{first}/" if is_inside else first or posixpath.basename(options.path), [0, 0])
        part[0] += status.size
        part[1] += 1
    total = sum(size for size, _ in parts.values())
    if options.json:
        records = [{"name": name, "bytes": size, "files": count} for name, (size, count) in sorted(parts.items())]
        address = to_text(place_of(store, options.path))
        print_json({"path": options.path, "address": address, "bytes": total, "files": len(files), "parts": records})
        return
    whole = place_of(store, options.path)
    places = {} if "" in files else {place_of(store, posixpath.join(options.path, name)): parts[name] for name in parts}
    for place, (size, count) in [*sorted(places.items()), (whole, (total, len(files)))]:
        print(f"{size_text(size):>10}  {count:>9,}  {readable(place)}")


def _rm(options: argparse.Namespace, store: Retrying) -> None:
    if all(part in ("", ".") for part in options.path.split("/")):
        raise ConfigError(f"{options.path}: names the whole store; name what to remove")
    files = tree(store, options.path, follow_links=False)  # links are removed, and what they lead to stays
    size, place = sum(status.size for status in files.values()), place_of(store, options.path)
    what = f"{counted(len(files), 'file')} with {size_text(size)}"
    if options.dry_run:
        _show(options, place, files)
        return
    if not options.yes:
        if options.json or not sys.stdin.isatty():
            raise ConfigError(f"{place}: holds {what}; give --yes to remove it, or --dry-run to see it")
        try:
            answer = input(f"Remove {readable(place)}, {what}? [y/N] ")
        except EOFError:  # Ctrl-D
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return
    store.delete(options.path)
    if options.json:
        print_json({"path": options.path, "address": to_text(place), "bytes": size, "files": len(files)})
    else:
        print(f"{readable(place)}: removed {what}")


def _show(options: argparse.Namespace, place: object, files: Mapping[str, Status]) -> None:
    """Shows what a command without --dry-run would copy or remove."""
    size = sum(status.size for status in files.values())
    if options.json:
        print_json({"path": to_text(str(place)), "bytes": size, "files": len(files), "dry_run": True})
        return
    for name, status in files.items():
        print(f"{status.size:>18,}  {readable(name or posixpath.basename(str(place)))}")
    does = {"get": "would be downloaded to", "put": "would be uploaded to", "rm": "would be removed from"}
    print(f"{counted(len(files), 'file')} with {size_text(size)} {does[options.action]} {readable(str(place))}")


def _get(options: argparse.Namespace, store: Retrying) -> None:
    files, target = tree(store, options.source), Path(options.target)
    if options.dry_run:
        _show(options, _inside(target, options.source), copied(place_of(store, options.source), files))
        return
    if COMMIT in files:
        _get_checkpoint(options, store, target)
        return
    total = sum(status.size for status in files.values())
    with byte_bar(posixpath.basename(options.source.rstrip("/")), total, options.json, leave=True) as advance:
        place = get(store, options.source, target, advance, files)
    _done(options, place, total)


def _get_checkpoint(options: argparse.Namespace, store: Retrying, target: Path) -> None:
    from plsc.checkpoint import remote  # loads Paddle
    from plsc.checkpoint.folder import remove_old_downloads

    found, name = remote.open_remote(store, options.source), posixpath.basename(options.source.rstrip("/"))
    if found is None:
        raise StorageError(f"{place_of(store, options.source)}: the checkpoint is no longer there")
    target = _inside(target, options.source)
    if target.exists():
        raise ConfigError(f"{target}: already exists; name another place")
    files = found.checkpoint.files
    total = sum(one.size for one in files.values()) + len(found.meta_text)
    remove_old_downloads(target)
    hidden = target.with_name(f".{target.name}.fetching.{hashlib.sha256(found.meta_text).hexdigest()[:12]}")
    with byte_bar(name, total, options.json, leave=True) as advance:
        remote.download(store, found, hidden, files, advance)
        remote.finish_download(found, hidden)
        advance(len(found.meta_text))
    os.rename(hidden, target)
    _done(options, target, total)


def _put(options: argparse.Namespace, store: Retrying) -> None:
    source = Path(options.source)
    if options.dry_run:
        found = {path: LOCAL.status(str(path)) for path in files_of(source)}
        names = {path: path.relative_to(source).as_posix() if source.is_dir() else source.name for path in found}
        target = place_of(store, place_in(store, options.target, source.resolve().name))
        _show(options, target, {names[path]: one for path, one in found.items() if one})
        return
    total = sum(path.stat().st_size for path in files_of(source) if path.exists())
    with byte_bar(source.name, total, options.json, leave=True) as advance:
        place = _put_alone(store, source, options.target, advance)
    _done(options, place, total, place_of(store, place))


def _put_alone(store: Retrying, source: Path, target: str, advance: Advance) -> str:
    """Uploads as `put` does, and lets no other process write there, where the files of a folder appear one by one."""
    if store.renames or not source.is_dir():
        return put(store, source, target, advance)
    whole = place_in(store, target, source.resolve().name)
    with claimed(StorePlace(place_of(store, whole), store, whole)) as place:
        place.check_claim()
        return put(store, source, target, advance)


def _inside(target: Path, source: str) -> Path:
    """Returns where a download goes: into a folder, or to a new name."""
    return target / posixpath.basename(source.rstrip("/")) if target.is_dir() else target


def _done(options: argparse.Namespace, path: object, size: int, address: str = "") -> None:
    """Shows what has been copied, to a path of this machine or to an address of the store."""
    if options.json:
        print_json({"path": to_text(str(path)), **({"address": to_text(address)} if address else {}), "bytes": size})
    else:
        print(f"{readable(address or str(path))}: {counted(size, 'byte')}")
