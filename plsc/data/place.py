"""Where a data set in a store is, and where its files go."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Optional

from plsc.storage.address import Address
from plsc.storage.kerberos import Kerberos


class Place(NamedTuple):
    """Where a data set is, and where its files go.

    Attributes:
        address: Address of the data set.
        cache_dir: Directory of the cache on this machine.
        cache_size: Its size in bytes.
        fs_name: Address of the HDFS of `set_hdfs_info`; None without one.
        fs_ugi: `name,password`, or None.
        client: The client of `set_hdfs_client`, or None.
        kerberos: Where Kerberos tickets come from, or None.
        patience: Seconds without progress after which a transfer is given up.
    """

    address: Address
    cache_dir: Path
    cache_size: int
    fs_name: Optional[str] = None
    fs_ugi: Optional[str] = None
    client: Any = None
    kerberos: Optional[Kerberos] = None
    patience: float = 300.0

    def __repr__(self) -> str:
        return f"Place({self.address.text!r})"  # without the credentials
