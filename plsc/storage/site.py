"""What Hadoop's own configuration files say about a cluster: core-site.xml and hdfs-site.xml."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from plsc.errors import ConfigError, one_line

_RPC_PORT, _WEB_PORT, _TLS_PORT = 8020, 9870, 9871


class NameNode(NamedTuple):
    """One of the NameNodes of a nameservice.

    Attributes:
        name: What the settings call it.
        rpc: `host:port` of its RPC.
        web: The base URL of its WebHDFS.
    """

    name: str
    rpc: str
    web: str


def read_settings() -> dict[str, str]:
    """Returns the properties of the configuration files in `HADOOP_CONF_DIR`, or in etc/hadoop of `HADOOP_HOME`.

    Raises:
        ConfigError: A file cannot be read, or is no configuration file of Hadoop.
    """
    variable = "HADOOP_CONF_DIR" if os.environ.get("HADOOP_CONF_DIR") else "HADOOP_HOME"
    folder = Path(os.environ.get(variable, ""), *(("etc", "hadoop") if variable == "HADOOP_HOME" else ()))
    found: dict[str, str] = {}
    for path in (folder / "core-site.xml", folder / "hdfs-site.xml"):
        if variable not in os.environ or not path.exists():
            continue
        try:
            root = ElementTree.parse(path).getroot()
        except (OSError, ElementTree.ParseError, ValueError, LookupError) as problem:
            raise ConfigError(
                f"{path}: cannot be read as a configuration file of Hadoop ({one_line(str(problem))}); check {variable}"
            ) from None
        for one in root.iter("property"):
            key, value = one.findtext("name"), one.findtext("value")
            if key and value is not None:
                found[key.strip()] = value.strip()
    return found


def asks_for_kerberos(settings: dict[str, str]) -> bool:
    """Returns whether the cluster of these settings wants Kerberos."""
    return settings.get("hadoop.security.authentication", "").lower() == "kerberos"


def namenodes(settings: dict[str, str], service: str) -> list[NameNode]:
    """Returns the NameNodes of a nameservice; none if the settings do not know it."""
    has_tls = settings.get("dfs.http.policy", "").upper() == "HTTPS_ONLY"
    found = []
    for name in filter(None, map(str.strip, settings.get(f"dfs.ha.namenodes.{service}", "").split(","))):
        rpc = settings.get(f"dfs.namenode.rpc-address.{service}.{name}", "")
        kind, default = ("https", _TLS_PORT) if has_tls else ("http", _WEB_PORT)
        web = settings.get(f"dfs.namenode.{kind}-address.{service}.{name}", "")
        host = rpc.rpartition(":")[0] or rpc or web.rpartition(":")[0]
        if not host:
            continue
        # A web address of 0.0.0.0 means all addresses of the machine.
        web = f"{host}:{web.rpartition(':')[2]}" if web.startswith("0.0.0.0:") else web
        found.append(NameNode(name, rpc or f"{host}:{_RPC_PORT}", f"{kind}://{web or f'{host}:{default}'}"))
    return found
