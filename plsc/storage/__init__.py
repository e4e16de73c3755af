"""File systems behind one protocol, and the waiting and trying again where they fail for a while."""

from __future__ import annotations

from typing import Any, Optional

from plsc.storage.base import DurableStorage, Status, Storage, StorageError, StorageUnavailableError
from plsc.storage.kerberos import Kerberos
from plsc.storage.local import LocalStorage
from plsc.storage.retry import Retrying, retried

__all__ = [
    "DurableStorage",
    "Kerberos",
    "LocalStorage",
    "Retrying",
    "Status",
    "Storage",
    "StorageError",
    "StorageUnavailableError",
    "open_hdfs",
]

CONNECT_SECONDS = 18.0


def open_hdfs(
    fs_name: Optional[str],
    fs_ugi: Optional[str],
    client: Any = None,
    kerberos: Optional[Kerberos] = None,
    patience: float = CONNECT_SECONDS,
) -> Retrying:
    """Opens an HDFS or another store, and waits a little for a server that does not answer.

    `s3://` and what else `fsspec` knows is opened by `plsc.storage.objects`, `file://` is a folder. Addresses with
    `hdfs://` are opened by RPC where `hdfs-native` is installed. All others of HDFS, and those that do not answer by
    RPC, are opened as `plsc.storage.hdfs.connect` does. A line in the log says which it is.

    Args:
        fs_name: See `plsc.storage.opening.connect`, also for the next three.
        fs_ugi: Name and password.
        client: A client of the `hdfs` package.
        kerberos: Where tickets come from.
        patience: Seconds to wait, 18 at most.

    Raises:
        ConfigError: The address cannot be read.
        StorageError: The store cannot be reached, or refuses.
    """
    from plsc.storage.opening import connect  # loads packages that only users of HDFS need

    patience = min(patience, CONNECT_SECONDS)
    return Retrying(retried(lambda: connect(fs_name, fs_ugi, client, kerberos), patience), patience)
