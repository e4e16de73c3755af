"""Chooses how a store is spoken to: an HDFS by RPC or through WebHDFS, an object store through `fsspec`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Optional

from plsc.errors import ConfigError
from plsc.storage import hdfs, objects, rpc, site
from plsc.storage.address import (
    check_hdfs_address,
    check_takes_kerberos,
    is_foreign_address,
    is_object_address,
    rpc_hosts,
    split_address,
    with_plain_scheme,
)
from plsc.storage.base import Storage, StorageError, StorageUnavailableError
from plsc.storage.kerberos import Kerberos, TicketError
from plsc.storage.local import LocalStorage

logger = logging.getLogger("plsc")


def connect(
    fs_name: Optional[str], fs_ugi: Optional[str], client: Any = None, kerberos: Optional[Kerberos] = None
) -> Storage:
    """Opens a store, and logs how.

    Args:
        fs_name: An address of `set_hdfs_info`: `s3://bucket` or another that `fsspec` knows, `file:///folder`, or one
            of HDFS; with `hdfs://` it may also be a nameservice of hdfs-site.xml. Without
            `fs_ugi` also an alias of HdfsCLI's configuration file.
        fs_ugi: `name,password`. The password goes only to gateways of WebHDFS; see `plsc.storage.hdfs.connect`.
        client: A client of the `hdfs` package to use instead.
        kerberos: Where tickets come from. By default the ticket of the user is shown where core-site.xml says that the
            cluster has Kerberos, unless `fs_ugi` has a password.

    Raises:
        ConfigError: The address, the keytab, or a configuration file of Hadoop cannot be read.
        StorageUnavailableError: No NameNode answers.
        StorageError: A NameNode refuses, or there is no valid ticket.
    """
    fs_name = None if fs_name is None else with_plain_scheme(fs_name)
    if client is None and fs_name is not None and is_foreign_address(fs_name):
        if kerberos is not None:
            check_takes_kerberos("set_hdfs_info: auth and keytab", fs_name)
        check_hdfs_address(fs_name, is_alias=False)
        return _connect_foreign(fs_name, fs_ugi)
    is_alias = fs_ugi is None and fs_name is not None and hdfs.is_alias(fs_name)
    if is_alias and kerberos is not None:
        raise ConfigError(
            f"set_hdfs_info: fs_name: the alias {fs_name!r} of HdfsCLI's configuration file says how to connect; leave "
            "out auth and keytab, or give the address of HDFS"
        )
    if client is not None or fs_name is None or is_alias:
        return hdfs.connect(fs_name, fs_ugi, client)
    check_hdfs_address(fs_name, is_alias=False)
    has_password = bool((fs_ugi or "").partition(",")[2])
    if kerberos is None and not has_password and site.asks_for_kerberos(site.read_settings()):
        kerberos = Kerberos()
    if kerberos is not None:
        kerberos.check()
    try:
        return _connected(fs_name, fs_ugi, kerberos)
    except TicketError as problem:  # at the start, nobody waits for one
        raise StorageError(str(problem)) from None


def _connected(fs_name: str, fs_ugi: Optional[str], kerberos: Optional[Kerberos]) -> Storage:
    hosts, why = rpc_hosts(fs_name), ""
    who = "" if kerberos is None else f", with {kerberos}"
    if hosts and not rpc.is_installed():
        why = "; for RPC, install hdfs-native"
    elif hosts:
        try:
            store = rpc.connect(hosts, fs_name, (fs_ugi or "").partition(",")[0] or None, kerberos)
            logger.info("%s: connected by RPC%s", fs_name, who)
            return store
        except TicketError:
            raise
        except StorageUnavailableError as problem:
            why = f"; by RPC: {str(problem).removeprefix(fs_name).lstrip(': /')}"
    try:
        found = hdfs.connect(fs_name, fs_ugi, kerberos=kerberos)
        if kerberos is not None:
            found.status("/")  # shows the ticket
    except TicketError:
        raise
    except StorageUnavailableError as problem:
        raise StorageUnavailableError(f"{problem}{why}") from None
    logger.info("%s: connected by WebHDFS%s%s", fs_name, who, why)
    return found


def _connect_foreign(fs_name: str, fs_ugi: Optional[str]) -> Storage:
    """Opens a store that is no HDFS."""
    if is_object_address(fs_name):
        return objects.connect(fs_name, fs_ugi)
    if fs_ugi is not None:
        raise ConfigError("set_hdfs_info: file:// takes no fs_ugi; give None")
    address = split_address("set_hdfs_info: fs_name", fs_name)
    assert address is not None
    return LocalStorage(Path(address.path), f"file://{address.path}")
