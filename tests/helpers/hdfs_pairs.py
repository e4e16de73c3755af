"""A real HDFS with two NameNodes: shared edits in a local folder, and failover by command.

with HdfsPair(folder) as pair:
    pair.address  # hdfs://cluster, a nameservice of the hdfs-site.xml in pair.settings
    pair.fail_over()
    pair.kill_active()
"""

from __future__ import annotations

import shutil

from hdfs_server import DATANODE, NAMENODE, HdfsServer

HAADMIN = "org.apache.hadoop.hdfs.tools.DFSHAAdmin"
SERVICE = "cluster"
NAMES = ("a", "b")


class HdfsPair(HdfsServer):
    """Two NameNodes, of which one is active, and a DataNode.

    Attributes:
        settings: The folder of core-site.xml and hdfs-site.xml, for `HADOOP_CONF_DIR`.
        active: The name of the active NameNode; None if both are on standby.
        hosts: `host:port` of the RPC of each NameNode by its name.
    """

    _host = "127.0.0.1"
    _ports = (
        *(f"{kind}-{name}" for kind in ("rpc", "web") for name in NAMES),
        "datanode",
        "datanode-web",
        "datanode-rpc",
    )

    def __enter__(self) -> HdfsPair:
        self.active = None
        super().__enter__()
        return self

    @property
    def settings(self):
        return self._settings

    def start(self) -> None:
        """Starts the servers that do not run, and waits until files can be written."""
        names = self.folder / "data"
        if not (names / "names-b").exists():  # as `-bootstrapStandby` does, without a Java of its own
            shutil.copytree(names / "names-a", names / "names-b")
        for name in NAMES:
            self._launch(NAMENODE, name)
        self._launch(DATANODE)
        for name in NAMES:
            self._wait_for(name, lambda state: True)
        if self.active is None:
            self.activate("a")
        self._wait_for(self.active, lambda state: state["NumLiveDataNodes"] >= 1 and state["FSState"] == "Operational")

    def activate(self, name: str) -> None:
        """Makes a NameNode active while none is."""
        self._java(HAADMIN, "-transitionToActive", "--forceactive", name)
        self._become(name)

    def stand_by(self) -> None:
        """Has the active NameNode stand by, so that none is active."""
        self._java(HAADMIN, "-transitionToStandby", self.active)
        self.active = None

    def fail_over(self) -> None:
        """Makes the other NameNode active, and this one a standby."""
        other = self.standby
        self._java(HAADMIN, "-failover", self.active, other)
        self._become(other)

    def kill_active(self) -> None:
        """Ends the active NameNode as a power cut would."""
        self.kill(self.active)
        self.active = None

    def kill(self, name: str) -> None:
        """Ends a NameNode, whether it is active or not."""
        self._kill(NAMENODE + name)

    @property
    def standby(self) -> str:
        """The name of the NameNode that is not active."""
        return next(name for name in NAMES if name != self.active)

    def reset(self) -> None:
        """Restarts what a test killed, and makes sure that one NameNode is active. Files stay."""
        self.start()

    def _become(self, name: str) -> None:
        self.active, self.web = name, self.webs[name]

    def _wait_for(self, name: str, is_ready) -> None:
        self.web = self.webs[name]
        self._wait(is_ready)
        if self.active is not None:
            self.web = self.webs[self.active]

    def _java(self, kind: str, *arguments: str, name: str = "a") -> str:
        return super()._java(kind, *arguments, name=name)

    def _set_addresses(self, ports) -> None:
        self.hosts = {name: f"{self._host}:{ports[f'rpc-{name}']}" for name in NAMES}
        self.webs = {name: f"http://{self._host}:{ports[f'web-{name}']}" for name in NAMES}
        self.address, self.web = f"hdfs://{SERVICE}", self.webs["a"]

    def _hdfs_settings(self, ports) -> dict[str, object]:
        data = self.folder / "data"
        settings = super()._hdfs_settings({**ports, "web": 0})
        del settings["dfs.namenode.http-address"]
        settings |= {
            "dfs.nameservices": SERVICE,
            f"dfs.ha.namenodes.{SERVICE}": ",".join(NAMES),
            "dfs.ha.namenode.id": "${plsc.name}",
            "dfs.namenode.name.dir": f"{data.as_uri()}/names-${{plsc.name}}",
            "dfs.namenode.shared.edits.dir": f"{data.as_uri()}/edits",
            "dfs.ha.fencing.methods": "shell(true)",
            "dfs.ha.tail-edits.period": 1,
            f"dfs.client.failover.proxy.provider.{SERVICE}": (
                "org.apache.hadoop.hdfs.server.namenode.ha.ConfiguredFailoverProxyProvider"
            ),
        }
        for name in NAMES:
            settings[f"dfs.namenode.rpc-address.{SERVICE}.{name}"] = self.hosts[name]
            settings[f"dfs.namenode.http-address.{SERVICE}.{name}"] = self.webs[name].removeprefix("http://")
        return settings
