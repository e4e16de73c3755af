"""Where a data set in a store is, and where its files go."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from plsc.storage.address import Address
from plsc.storage.login import Login


class Place(NamedTuple):
    """Where a data set is, and where its files go.

    Attributes:
        address: Address of the data set.
        cache_dir: Directory of the cache on this machine.
        cache_size: Its size in bytes.
        login: Who connects.
    """

    address: Address
    cache_dir: Path
    cache_size: int
    login: Login = Login()
