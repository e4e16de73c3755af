"""Who connects to the store of an address, and with which credentials."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, NamedTuple, Optional

from plsc.errors import ConfigError
from plsc.storage import Retrying, open_hdfs
from plsc.storage.address import Address, is_foreign_address
from plsc.storage.credentials import ugi_of_environment
from plsc.storage.kerberos import Kerberos
from plsc.storage.local import LocalStorage


class Login(NamedTuple):
    """What `set_hdfs_info`, `set_hdfs_client` and `set_hdfs_upload` say about connections.

    Attributes:
        fs_name: Address of the HDFS or the object store of `set_hdfs_info`; None without one.
        fs_ugi: `name,password`, or None.
        client: The client of `set_hdfs_client`, or None.
        kerberos: Where Kerberos tickets come from, or None.
        patience: Seconds without progress after which a transfer is given up.
    """

    fs_name: Optional[str] = None
    fs_ugi: Optional[str] = None
    client: Any = None
    kerberos: Optional[Kerberos] = None
    patience: float = 300.0

    def __repr__(self) -> str:
        return "Login()"  # without the credentials


def open_address(address: Address, login: Login, stop: Optional[threading.Event] = None) -> Retrying:
    """Opens the store of an address; paths in it are those of the address.

    The HDFS of `set_hdfs_info` serves the addresses of its hosts: its own address may name the port of WebHDFS, and its
    password belongs to its gateway. Another HDFS gets the name of the user alone, or a Kerberos ticket, with which it
    can do nothing elsewhere. Object stores of one kind share the credentials. Without `set_hdfs_info`, the environment
    says who connects, and `PLSC_HDFS_PASSWORD` is the password of the gateways that `PLSC_HDFS_HOST` names.

    Args:
        address: The address.
        login: Who connects.
        stop: Ends what waits for the store.

    Raises:
        ConfigError: The address cannot be read.
        StorageError: The store does not answer, or refuses.
    """
    if address.scheme == "file":
        return Retrying(LocalStorage(Path("/"), "file:///"), 0.0, stop)
    if login.fs_name is None and login.client is None and address.host and not address.is_object:
        ugi = ugi_of_environment(address.server)
        login = login if ugi is None else login._replace(fs_name=address.server, fs_ugi=ugi)
    is_known = login.fs_name is not None and address.is_served_by(login.fs_name)
    is_hdfs = login.fs_name is not None and not is_foreign_address(login.fs_name)
    if not (address.host or address.is_object or is_hdfs or login.client is not None):
        raise ConfigError(
            f"{address.text}: names no server; write hdfs://host:port/path, or give the server with set_hdfs_info"
        )
    patience = login.patience
    if address.is_object:
        store = open_hdfs(address.server, login.fs_ugi if is_known else None, patience=patience)
    elif is_known or login.client is not None:
        store = open_hdfs(login.fs_name, login.fs_ugi, login.client, login.kerberos, patience)
    else:
        user = (login.fs_ugi or "").partition(",")[0] if is_hdfs else ""
        kerberos = login.kerberos if is_hdfs else None
        store = open_hdfs(address.server, f"{user}," if user else None, kerberos=kerberos, patience=patience)
    return store.with_patience(patience, stop)
