"""HDFS through its own RPC protocol, without Java. The only module that imports the `hdfs-native` package.

It needs no WebHDFS, finds the active one of several NameNodes, and reads core-site.xml and hdfs-site.xml in
`HADOOP_CONF_DIR`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import itertools
import os
import posixpath
import queue
import re
import threading
import weakref
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Callable, Optional, TypeVar, Union

from plsc.errors import one_line
from plsc.machine.json_files import as_integer
from plsc.storage import site
from plsc.storage.answers import answer, limited, raisable
from plsc.storage.base import (
    CHUNK_BYTES,
    Chunks,
    Status,
    StorageError,
    StorageUnavailableError,
    check_absent,
    missing,
    not_utf8,
    place_of,
)
from plsc.storage.failover import STANDBY, NameNodes
from plsc.storage.kerberos import Kerberos
from plsc.storage.refusals import first_line, refusal

T = TypeVar("T")

ANSWER_SECONDS, PROBE_SECONDS = 60.0, 10.0
# hdfs-native gives 64 kB at a time. To pass on each of them, or to join them, costs more than to read them.
_PARTS_IN_BATCH, _BATCHES_AHEAD, _LOOK_SECONDS = 16, 2, 0.5
_ATTEMPTS = "dfs.client.failover.max.attempts"
# hdfs-native tries again by itself, for 3 minutes by default; `Retrying` does so with a line in the log.
_SETTINGS = {
    _ATTEMPTS: "4",
    "dfs.client.failover.sleep.base.millis": "100",
    "dfs.client.failover.sleep.max.millis": "500",
}
_PROTECTION = "dfs.data.transfer.protection"
_DEFAULT_PORT, _SERVICE = 8020, "plsc"
_USER = "HADOOP_USER_NAME"
# `RPCError("org.apache...SafeModeException", "Cannot create file...\n\tat ...")`, as Rust shows it.
_RPC_ERROR = re.compile(r'RPCError\("(?:[\w.]*\.)?([\w$]+)", "(.*)"\)', re.DOTALL)
_DATANODE = re.compile(r'ip_addr: \\?"([^"\\]*)\\?".*?xfer_port: (\d+)')
# What hdfs-native itself finds wrong, and waiting does not change; other failures may pass.
_FINAL = ("InvalidArgument", "InvalidPath", "Unsupported", "SASLError", "GSSAPIError", "NoSASLMechanism", "UrlParse")


class RpcStorage:
    """A `Storage` on HDFS.

    Args:
        cluster: The cluster.
        name: What messages call the store.
        user: The HDFS user; None leaves it to `hdfs-native`.

    Attributes:
        has_changed: Whether the NameNode that was asked first has been left, because it never answered.
    """

    def __init__(self, cluster: _Cluster, name: str, user: Optional[str] = None) -> None:
        self._cluster, self.name, self.user, self.has_changed = cluster, name, user, False
        self._kerberos = cluster.kerberos or Kerberos()
        hosts = cluster.namenodes.values()
        self._namenodes = NameNodes(name, {host: functools.partial(cluster.ask, host) for host in hosts})
        try:
            self._client = cluster.client()
        except (RuntimeError, OSError) as problem:
            raise _error(name, str(problem), self._kerberos) from None

    def check(self) -> None:
        """Asks for the root folder. Raises StorageError."""
        with self._worded("/"):
            _answer(lambda: self._client.get_file_info("/"), PROBE_SECONDS)

    def status(self, path: str) -> Optional[Status]:
        """Returns the status of a path, or None if nothing has that name."""
        with self._worded(path):
            try:
                return _status(_answer(lambda: self._client.get_file_info(self._place(path))))
            except FileNotFoundError:
                return None

    def list(self, path: str) -> dict[str, Status]:
        """Returns the names in a folder with their status."""
        with self._worded(path):
            place = self._place(path)
            found = _answer(lambda: [*self._client.list_status(place)])
            return {self._name_in(place, one): _status(one) for one in found}

    def read(self, path: str, offset: int, count: int) -> Iterator[bytes]:
        """Yields `count` bytes from `offset` on in parts; fewer if the connection or the file ends."""
        with self._worded(path):
            reader = _answer(lambda: self._client.read(self._place(path)))
            count = min(count, len(reader) - offset)  # hdfs-native panics beyond the end
            if count <= 0:
                return
            batches = _read_ahead(reader.read_range_stream(offset, count))
        with contextlib.closing(batches):
            while True:
                with self._worded(path):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield from batch

    def write(self, path: str, chunks: Chunks, size: int) -> None:
        """Makes a file and the folders above it; replaces a file of that name."""
        if size <= CHUNK_BYTES:  # all requests in one thread, which costs more than they do
            data = b"".join(chunks())
            with self._worded(path):
                _answer(lambda: self._write_at_once(path, data))
        else:
            self._write_parts(path, chunks)
        kept = self.status(path)
        if kept is None or kept.size != size:
            raise StorageUnavailableError(
                f"{place_of(self, path)}: the server kept {kept.size if kept else 0:,} of {size:,} bytes"
            )

    def rename(self, source: str, target: str) -> None:
        """Moves a file or a folder to a path that nothing has yet."""
        check_absent(self, target)
        with self._worded(source):
            _answer(lambda: self._client.rename(self._place(source), self._place(target)))

    def delete(self, path: str) -> None:
        """Removes a file, or a folder with everything in it; does nothing if the path is missing."""
        with self._worded(path), contextlib.suppress(FileNotFoundError):
            _answer(lambda: self._client.delete(self._place(path), True))

    def mkdirs(self, path: str) -> None:
        """Makes a folder and those above it, unless they exist."""
        with self._worded(path):
            _answer(lambda: self._client.mkdirs(self._place(path), 0o755, True))

    def _create(self, path: str) -> Any:
        from hdfs_native import WriteOptions

        return self._client.create(self._place(path), WriteOptions(overwrite=True, create_parent=True))

    def _write_at_once(self, path: str, data: bytes) -> None:
        writer = self._create(path)
        if data:
            writer.write(data)
        writer.close()

    def _write_parts(self, path: str, chunks: Chunks) -> None:
        with self._worded(path):
            writer = _answer(lambda: self._create(path))
        for chunk in chunks():
            if chunk:
                with self._worded(path):
                    _answer(functools.partial(writer.write, chunk))
        with self._worded(path):
            _answer(writer.close)

    def _name_in(self, place: str, found: Any) -> str:
        """Returns what the server calls a part of a folder, all of it, so that `check_names` sees what is wrong."""
        before = f"{place.rstrip('/')}/"
        if found.path == place and not found.isdir:
            raise StorageError(f"{place_of(self, place)}: is a file, not a folder", "is a file, not a folder")
        return str(found.path).removeprefix(before)

    def _place(self, path: str) -> str:
        """Returns a path as `hdfs-native` wants it, for which the home folder of the user has an empty path."""
        place = posixpath.normpath(path)
        if place == ".":
            return ""
        return f"/{place.lstrip('/')}" if place.startswith("/") else place

    def _refused(self, path: str, text: str) -> StorageError:
        """Returns the error for a RuntimeError of `hdfs-native`."""
        why = self._namenodes.why_none_is_active() if "StandbyException" in text else None
        if why is not None:
            return StorageUnavailableError(f"{place_of(self, path)}: {why}")
        return _error(place_of(self, path), text, self._kerberos)

    @contextlib.contextmanager
    def _worded(self, path: str) -> Iterator[None]:
        """Turns the client's exceptions into StorageErrors."""
        try:
            yield
            self._namenodes.look()
        except StorageError:
            raise
        except FileNotFoundError as problem:
            if "Path is not a file" in str(problem):
                raise StorageError(f"{place_of(self, path)}: is a folder", "is a folder") from None
            raise missing(self, path) from None
        except FileExistsError as problem:
            raise refusal(place_of(self, path), "", first_line(str(problem))) from None
        except TimeoutError as problem:
            # hdfs-native would wait for the same NameNode for ever.
            active = self._namenodes.active()
            if active is not None:
                self._client, self.has_changed = self._cluster.client(active), True
            raise StorageUnavailableError(f"{place_of(self, path)}: {_reason(problem)}") from None
        except OSError as problem:
            reason = self._namenodes.why_none_is_active() or _reason(problem)
            raise StorageUnavailableError(f"{place_of(self, path)}: {reason}") from None
        except RuntimeError as problem:
            raise self._refused(path, str(problem)) from None  # a variable of it would keep the store alive
        except UnicodeEncodeError:
            raise not_utf8(self, path) from None
        except (ValueError, TypeError, AttributeError, OverflowError) as problem:
            reason = f"the server does not answer as HDFS does ({one_line(str(problem))}); check the address"
            raise StorageError(f"{place_of(self, path)}: {reason}") from None


def is_installed() -> bool:
    """Returns whether `hdfs-native` is."""
    return importlib.util.find_spec("hdfs_native") is not None


def connect(hosts: list[str], name: str, user: Optional[str], kerberos: Optional[Kerberos] = None) -> RpcStorage:
    """Opens an HDFS, and asks it for its root folder.

    Args:
        hosts: `host:port` of each NameNode, or one name that `hdfs-site.xml` knows.
        name: What messages call the store.
        user: The HDFS user on clusters without Kerberos; None is that of `HADOOP_USER_NAME`, or of the process.
        kerberos: Where tickets come from, on clusters with Kerberos.

    Raises:
        ConfigError: The configuration files of Hadoop, or the keytab, cannot be read.
        TicketError: There is no valid ticket.
        StorageUnavailableError: No NameNode answers by RPC, or another user of HDFS is in use in this process.
        StorageError: It refuses.
    """
    cluster = _Cluster.of(hosts, kerberos)
    with _USERS.lock:
        if kerberos is None:
            _USERS.become(user, name)
        store = RpcStorage(cluster, name, user)
        try:
            store.check()
        except StorageUnavailableError as problem:
            if kerberos is None and "listener disconnected" in str(problem):
                raise StorageUnavailableError(
                    f"{problem}, as it does where a NameNode asks for Kerberos; if it does, call set_hdfs_info with "
                    "auth='kerberos', or plsc fs with --kerberos"
                ) from None
            if not store.has_changed:
                raise
            store.check()  # another NameNode
        if kerberos is None:
            _USERS.stores.add(store)
        return store


@dataclass(frozen=True)
class _Cluster:
    """What `hdfs-native` needs to know of a cluster.

    Attributes:
        host: `host:port` of its NameNode, or the name of several.
        namenodes: `host:port` of each of several NameNodes, by what the settings call it.
        settings: The settings for `hdfs-native`, in addition to those of Hadoop's configuration files.
        kerberos: Where tickets come from; None without Kerberos.
    """

    host: str
    namenodes: dict[str, str]
    settings: dict[str, str]
    kerberos: Optional[Kerberos]

    @classmethod
    def of(cls, hosts: list[str], kerberos: Optional[Kerberos]) -> _Cluster:
        """Returns the cluster of some NameNodes, or of a name. Raises ConfigError."""
        known, settings = site.read_settings(), dict(_SETTINGS)
        if kerberos is not None:
            settings["hadoop.security.authentication"] = "kerberos"
            # With any value, hdfs-native lets the DataNodes choose; without one, those that protect transfers refuse.
            settings[_PROTECTION] = known.get(_PROTECTION) or "authentication"
        if len(hosts) == 1:
            names = {one.name: one.rpc for one in site.namenodes(known, hosts[0])}
            return cls(hosts[0], names, settings, kerberos)
        several = {f"n{number}": _with_port(host) for number, host in enumerate(hosts)}
        settings["dfs.nameservices"] = _SERVICE
        settings |= {f"dfs.namenode.rpc-address.{_SERVICE}.{name}": host for name, host in several.items()}
        return cls(_SERVICE, several, settings, kerberos)

    def client(self, first: Optional[str] = None) -> Any:
        """Returns a client that asks the NameNode `first` before the others. It does not connect yet."""
        if not self.namenodes:
            try:
                return self._opened(self.host, {})
            except RuntimeError as problem:
                if "No NameNode hosts found" not in str(problem) or _with_port(self.host) == self.host:
                    raise
                return self._opened(_with_port(self.host), {})  # it is the name of a machine, and no nameservice
        names = sorted(self.namenodes, key=lambda name: self.namenodes[name] != first)
        return self._opened(self.host, {f"dfs.ha.namenodes.{self.host}": ",".join(names)})

    def ask(self, host: str) -> Optional[str]:
        """Returns why one of the NameNodes does not serve, or None."""
        try:
            _answer(lambda: self._opened(host, {_ATTEMPTS: "1"}).get_file_info("/"), PROBE_SECONDS)
        except OSError as problem:
            return f"does not answer ({_reason(problem)})"
        except Exception as problem:  # noqa: BLE001 - whatever else it says, it answers
            return STANDBY if "StandbyException" in str(problem) else None
        return None

    def _opened(self, host: str, more: dict[str, str]) -> Any:
        import hdfs_native

        who: dict[str, Any] = {}
        if self.kerberos is not None and self.kerberos.keytab is not None:
            who = {"kerberos_principal": self.kerberos.principal, "kerberos_keytab": self.kerberos.keytab}
        return hdfs_native.Client(f"hdfs://{host}", {**self.settings, **more}, **who)


class _Users:
    """The user of this process in HDFS: `hdfs-native` takes it from the environment whenever it connects."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stores: weakref.WeakSet[RpcStorage] = weakref.WeakSet()
        self._before: Optional[str] = None  # what others have set
        self._own: Optional[str] = None  # what this class has set

    def become(self, user: Optional[str], name: str) -> None:
        """Has new connections be those of a user. Raises StorageUnavailableError while those of another are in use."""
        others = {store.user for store in self.stores} - {user}
        if others:
            gc.collect()  # the traceback of an error may be all that still holds a store
            others = {store.user for store in self.stores} - {user}
        if others:
            raise StorageUnavailableError(
                f"{name}: hdfs-native connects as one user in a process, which is "
                f"{' or '.join(other or 'the user of the process' for other in others)} now"
            )
        if self._own is None or os.environ.get(_USER) != self._own:
            self._before = os.environ.get(_USER)
        value = self._before if user is None else user
        self._own = user
        if value is None:
            os.environ.pop(_USER, None)
        else:
            os.environ[_USER] = value


_USERS = _Users()


def _with_port(host: str) -> str:
    return host if re.search(r":\d+$", host) else f"{host}:{_DEFAULT_PORT}"


def _answer(action: Callable[[], T], seconds: Optional[float] = None) -> T:
    """Calls what waits for a server. Raises TimeoutError if there is no answer in time."""
    return answer(action, ANSWER_SECONDS if seconds is None else seconds)


def _read_ahead(stream: Iterator[bytes]) -> Generator[list[bytes], None, None]:
    """Yields the parts of a stream, several at a time. A thread reads ahead, so that neither side waits for the other.

    Raises:
        TimeoutError: The server is silent for too long.
    """
    batches: queue.Queue[Union[list[bytes], BaseException]] = queue.Queue(_BATCHES_AHEAD)
    left = threading.Event()

    def run() -> None:
        batch: Union[list[bytes], BaseException] = [b""]
        while batch and not isinstance(batch, BaseException):
            try:
                batch = list(itertools.islice(stream, _PARTS_IN_BATCH))
            except BaseException as problem:  # noqa: BLE001 - raised below
                batch = problem
            while not left.is_set():
                with contextlib.suppress(queue.Full):
                    batches.put(batch, timeout=_LOOK_SECONDS)
                    break
            if left.is_set():
                return

    threading.Thread(target=run, name="plsc-rpc", daemon=True).start()
    try:
        while True:
            try:
                batch = batches.get(timeout=limited(ANSWER_SECONDS))
            except queue.Empty:
                raise TimeoutError(None, "no answer in time") from None
            if isinstance(batch, BaseException):
                raise raisable(batch)
            if not batch:
                return
            yield batch
    finally:
        left.set()


def _status(found: Any) -> Status:
    """Returns a status of `hdfs-native`. Raises ValueError if it is none."""
    return Status(
        size=0 if found.isdir else as_integer(found.length),
        is_folder=bool(found.isdir),
        modified=as_integer(found.modification_time) / 1000,
    )


def _error(where: str, text: str, kerberos: Kerberos) -> StorageError:
    """Returns the error for a RuntimeError of `hdfs-native`, which shows an error of Rust."""
    problem = kerberos.explain(text)
    if problem is not None:
        return type(problem)(f"{where}: {problem}")
    match = _RPC_ERROR.search(text)
    if match is not None:
        words = match[2].replace(r"\n", "\n").replace(r"\t", "\t").replace(r"\"", '"').replace(r"\\", "\\")
        return refusal(where, match[1], first_line(words))
    node = _DATANODE.search(text)
    if node is not None:
        return StorageUnavailableError(f"{where}: the DataNode {node[1]}:{node[2]} does not answer as it should")
    reason = first_line(text)
    if "No NameNode hosts found" in text:
        reason += "; give its port, or name the folder of hdfs-site.xml in HADOOP_CONF_DIR"
    return (StorageError if text.startswith(_FINAL) else StorageUnavailableError)(f"{where}: {reason}")


def _reason(problem: OSError) -> str:
    text = first_line(problem.strerror or str(problem))
    return re.sub(r" \(os error \d+\)$", "", text)
