"""Stores of files behind one small protocol, and what tries again where they fail."""

from __future__ import annotations

from typing import Any, Optional

from plsc.storage.base import Status, Storage, StorageError, StorageUnavailableError
from plsc.storage.local import LocalStorage
from plsc.storage.retry import Retrying, retried

__all__ = [
    "LocalStorage",
    "Retrying",
    "Status",
    "Storage",
    "StorageError",
    "StorageUnavailableError",
    "open_hdfs",
]

CONNECT_SECONDS = 18.0


def open_hdfs(fs_name: Optional[str], fs_ugi: Optional[str], client: Any = None) -> Retrying:
    """See `plsc.storage.hdfs.connect`; waits a little for a NameNode that does not answer.

    Raises:
        ConfigError: the address cannot be read.
        StorageError: the store cannot be reached, or refuses.
    """
    from plsc.storage.hdfs import connect  # what it needs is loaded by those who use it

    return Retrying(retried(lambda: connect(fs_name, fs_ugi, client), CONNECT_SECONDS), CONNECT_SECONDS)
