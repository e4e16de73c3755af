"""Chooses how an HDFS is spoken to: by RPC, or through WebHDFS."""

from __future__ import annotations

import logging
from typing import Any, Optional

from plsc.storage import hdfs, rpc
from plsc.storage.address import check_hdfs_address, rpc_hosts
from plsc.storage.base import Storage, StorageUnavailableError

logger = logging.getLogger("plsc")


def connect(fs_name: Optional[str], fs_ugi: Optional[str], client: Any = None) -> Storage:
    """Opens an HDFS, and logs how.

    Args:
        fs_name: An address of `set_hdfs_info`; with `hdfs://` it may also be a nameservice of hdfs-site.xml. Without
            `fs_ugi` also an alias of HdfsCLI's configuration file.
        fs_ugi: `name,password`. The password goes only to gateways of WebHDFS; see `plsc.storage.hdfs.connect`.
        client: A client of the `hdfs` package to use instead.

    Raises:
        ConfigError: The address cannot be read.
        StorageUnavailableError: No NameNode answers.
        StorageError: A NameNode refuses.
    """
    is_alias = fs_ugi is None and fs_name is not None and hdfs.is_alias(fs_name)
    if client is not None or fs_name is None or is_alias:
        return hdfs.connect(fs_name, fs_ugi, client)
    check_hdfs_address(fs_name, is_alias=False)
    hosts, why = rpc_hosts(fs_name), ""
    if hosts and not rpc.is_installed():
        why = "; for RPC, install hdfs-native"
    elif hosts:
        try:
            store = rpc.connect(hosts, fs_name, (fs_ugi or "").partition(",")[0] or None)
            logger.info("%s: connected by RPC", fs_name)
            return store
        except StorageUnavailableError as problem:
            why = f"; by RPC: {str(problem).removeprefix(f'{fs_name}: ')}"
    try:
        found = hdfs.connect(fs_name, fs_ugi)
    except StorageUnavailableError as problem:
        raise StorageUnavailableError(f"{problem}{why}") from None
    logger.info("%s: connected by WebHDFS%s", fs_name, why)
    return found
