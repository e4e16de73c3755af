"""The credentials that the environment gives to commands: no option takes a password, which others could read."""

from __future__ import annotations

import functools
import getpass
import os
import re
from typing import Optional

from plsc.errors import ConfigError
from plsc.storage.address import is_foreign_address, server_of, servers_of

PASSWORD, HOST = "PLSC_HDFS_PASSWORD", "PLSC_HDFS_HOST"

_withheld: set[str] = set()  # hosts that have not been given the password


@functools.cache
def password() -> str:
    """Returns the password of a gateway of HDFS, or the secret of an access key; '' if the environment has none."""
    return os.environ.pop(PASSWORD, "")  # so that child processes do not see it


def password_for(fs_name: str) -> str:
    """Returns the password of the environment for a store; '' if there is none, or if it is for another one.

    A gateway gets it only if `PLSC_HDFS_HOST` names its host: an address in a command line is easily another one than
    the password was meant for. The secret of an access key is never sent, and needs no such name.

    Args:
        fs_name: The address of the store, or those of several NameNodes.
    """
    if is_foreign_address(fs_name):
        return password()
    servers = servers_of(fs_name)
    hosts = {host for host, _ in servers}
    if not password() or all(map(_is_meant, servers)):
        _withheld.difference_update(hosts)
        return password()
    _withheld.update(hosts)
    return ""


def ugi_of_environment(fs_name: str) -> Optional[str]:
    """Returns `name,password` for an HDFS; None if the environment has no password for it."""
    found = password_for(fs_name)
    return f"{user_name()},{found}" if found else None


def user_name() -> str:
    """Returns the name with which HDFS knows the user, unless an option gives it. Raises ConfigError without one."""
    try:
        return os.environ.get("HADOOP_USER_NAME") or getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number that has no name
        raise ConfigError("the user of this process has no name; set HADOOP_USER_NAME to your name in HDFS") from None


def why_withheld(fs_name: str) -> str:
    """Returns what to do about a server that asks for a password and has not been given that of the environment.

    Args:
        fs_name: The address of the store, as `password_for` got it.

    Returns:
        The words for a message; '' if they have been given it, or if there is none.
    """
    hosts = list(dict.fromkeys(host for host, _ in servers_of(fs_name) if host in _withheld))
    if not hosts:
        return ""
    it, them = ("it", "that server") if len(hosts) == 1 else ("each server of the address", "all of them")
    return (
        f"the server asks for a password, and {PASSWORD} was not sent there, because {HOST} does not name {it}; set "
        f"{HOST}={','.join(hosts)} if the password is for {them}"
    )


def _is_meant(server: tuple[str, str]) -> bool:
    """Returns whether `PLSC_HDFS_HOST` names a server: by its host, or by its host and port."""
    meant = {server_of(part) for part in re.split(r"[;,\s]+", os.environ.get(HOST, "")) if part}
    return server in meant or (server[0], "") in meant
