"""HDFS through WebHDFS, by the `hdfs` package."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Optional, Union
from urllib.parse import urlsplit

import hdfs
import requests
import urllib3
from hdfs.config import Config as AliasFile
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies, select_proxy

from plsc.errors import ConfigError
from plsc.machine.json_files import as_integer, as_text
from plsc.storage import credentials, site
from plsc.storage.address import web_addresses
from plsc.storage.answers import Timeouts
from plsc.storage.base import (
    Chunks,
    Status,
    StorageError,
    StorageUnavailableError,
    check_absent,
    not_utf8,
    parts_of,
    place_of,
)
from plsc.storage.failover import STANDBY, NameNodes
from plsc.storage.gateway import CONNECTIONS, GatewayAuth, NoAuth, TicketAuth, keep_credentials
from plsc.storage.kerberos import Kerberos, TicketError
from plsc.storage.refusals import QUOTA_HINT, first_line, refusal

_CONNECT_SECONDS, _ANSWER_SECONDS, _PROBE_SECONDS = 5, 60, 8
_BLOCK_BYTES = 128 << 20  # what HDFS asks of a quota before it writes the first byte

_UNKNOWN_HOST = re.compile("name or service not known|name resolution|no address associated", re.IGNORECASE)
_FOR_KERBEROS = "for Kerberos, call set_hdfs_info with auth='kerberos', or plsc fs with --kerberos"
_REFUSED = (
    "the name or the password was refused; check fs_ugi; for Kerberos, call set_hdfs_info with auth='kerberos', or "
    "plsc fs with --kerberos; for a token, give a client to set_hdfs_client"
)

if logging.getLogger("hdfs").level == logging.NOTSET:  # it logs every request, and failures that are reported here
    logging.getLogger("hdfs").setLevel(logging.CRITICAL)


class HdfsStorage:
    """A `Storage` on HDFS.

    Args:
        client: A client of the `hdfs` package.
        name: What messages call the store.
    """

    def __init__(self, client: hdfs.client.Client, name: str) -> None:
        self._client, self.name = client, name
        self._urls: Sequence[str] = getattr(client, "urls", ())
        if getattr(client, "_timeout", None) is None:
            client._timeout = Timeouts((_CONNECT_SECONDS, _ANSWER_SECONDS))
        if self._urls:
            keep_credentials(client)
        self._namenodes = NameNodes(
            name, {urlsplit(url).netloc: functools.partial(self._ask, url) for url in self._urls}
        )

    def status(self, path: str) -> Optional[Status]:
        """Returns the status of a path, or None if nothing has that name."""
        with self._worded(path):
            try:
                return _status(self._client.status(path))
            except hdfs.HdfsError as problem:
                if problem.exception == "FileNotFoundException":
                    return None
                raise

    def list(self, path: str) -> dict[str, Status]:
        """Returns the names in a folder with their status."""
        with self._worded(path):
            return {as_text(name): _status(status) for name, status in self._client.list(path, status=True)}

    def read(self, path: str, offset: int, count: int) -> Iterator[bytes]:
        """Yields `count` bytes from `offset` on in parts; fewer if the connection or the file ends."""
        with self._worded(path), self._client.read(path, offset=offset, length=count) as stream:
            yield from parts_of(stream, count)

    def write(self, path: str, chunks: Chunks, size: int) -> None:
        """Makes a file and the folders above it; replaces a file of that name.

        A DataNode over a quota may report success for a file that it could not complete (Hadoop 2.7 does), or just
        close the connection. This is why the size of the file and the quotas of the folders are checked.
        """
        try:
            with self._worded(path):
                # An empty part would end the request.
                self._client.write(path, data=(part for part in chunks() if part), overwrite=True)
            kept = self.status(path)
            if kept is None or kept.size != size:
                raise StorageUnavailableError(
                    f"{place_of(self, path)}: the server kept {kept.size if kept else 0:,} of {size:,} bytes"
                )
        except StorageUnavailableError:
            self._check_quotas(path, size)
            raise

    def rename(self, source: str, target: str) -> None:
        """Moves a file or a folder to a path that nothing has yet."""
        check_absent(self, target)
        with self._worded(source):
            self._client.rename(source, target)

    def delete(self, path: str) -> None:
        """Removes a file, or a folder with everything in it; does nothing if the path is missing."""
        with self._worded(path):
            self._client.delete(path, recursive=True)

    def mkdirs(self, path: str) -> None:
        """Makes a folder and those above it, unless they exist."""
        with self._worded(path):
            self._client.makedirs(path)

    def _check_quotas(self, path: str, size: int) -> None:
        """Raises StorageError if the quota of a folder has no room for another file of `size` bytes."""
        with contextlib.suppress(StorageUnavailableError), self._worded(path):
            folder = posixpath.dirname(self._client.resolve(path))
            while folder != "/":
                with contextlib.suppress(hdfs.HdfsError):
                    found = self._client.content(folder)
                    left = found.get("spaceQuota", -1) - found.get("spaceConsumed", 0)
                    if found.get("spaceQuota", -1) >= 0 and left < max(size, _BLOCK_BYTES):
                        raise StorageError(
                            f"{place_of(self, path)}: quota exceeded: {folder} has {max(0, left):,} bytes left of "
                            f"{found['spaceQuota']:,}; {QUOTA_HINT}"
                        )
                folder = posixpath.dirname(folder)

    @contextlib.contextmanager
    def _worded(self, path: str) -> Iterator[None]:
        """Turns the client's exceptions into StorageErrors. Their own texts hold URLs, which may hold a token."""
        try:
            yield
            self._namenodes.look()
        except hdfs.HdfsError as problem:
            is_standby = problem.exception == "StandbyException"
            raise (is_standby and self._none_is_active(path)) or _server_error(
                place_of(self, path), problem, self.name, self._urls
            ) from None
        except TicketError as problem:
            raise TicketError(f"{place_of(self, path)}: {problem}") from None
        except requests.exceptions.SSLError as problem:
            raise StorageError(
                f"{place_of(self, path)}: {_server_of(problem)}: its certificate is not trusted; set "
                "REQUESTS_CA_BUNDLE to the file of its authority"
            ) from None
        except UnicodeEncodeError:
            raise not_utf8(self, path) from None
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            raise StorageError(
                f"{place_of(self, path)}: the server does not answer as WebHDFS does; check that the address is that "
                f"of a NameNode or a gateway{_by_proxy(self._urls)}"
            ) from None
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as problem:
            reason = f"{_server_of(problem)}: {_reason(problem)}{_by_proxy(self._urls)}"
            raise self._none_is_active(path) or StorageUnavailableError(f"{place_of(self, path)}: {reason}") from None

    def _none_is_active(self, path: str) -> Optional[StorageError]:
        reason = self._namenodes.why_none_is_active()
        return None if reason is None else StorageUnavailableError(f"{place_of(self, path)}: {reason}")

    def _ask(self, url: str) -> Optional[str]:
        """Returns why a NameNode does not serve, or None."""
        try:
            # The client's own way to send, with its credentials, but to this NameNode alone.
            answer = self._client._request("GET", f"{url}/webhdfs/v1/?op=GETFILESTATUS")
            return STANDBY if answer.status_code == 403 and b"StandbyException" in answer.content else None
        except TicketError:
            return None  # it answers
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as problem:
            return f"does not answer ({_reason(problem)})"


def connect(
    fs_name: Optional[str], fs_ugi: Optional[str], client: Any = None, kerberos: Optional[Kerberos] = None
) -> HdfsStorage:
    """Opens an HDFS through WebHDFS.

    Args:
        fs_name: An address that `web_addresses` can read. Without `fs_ugi` also an alias of HdfsCLI's configuration
            file. A nameservice of hdfs-site.xml stands for its NameNodes.
        fs_ugi: `name,password`. The password goes only to gateways that ask for it over https. By default the name is
            that of `HADOOP_USER_NAME`, or the user of the process.
        client: A client of the `hdfs` package to use instead.
        kerberos: Where tickets come from, for servers that ask for one.

    Raises:
        ConfigError: The address cannot be read.
        StorageUnavailableError: No NameNode answers.
    """
    if client is not None:
        return HdfsStorage(client, fs_name or ";".join(client.urls))
    assert fs_name is not None
    if fs_ugi is None:
        alias = _alias(fs_name)
        if alias is not None:
            return HdfsStorage(alias, fs_name)
    name, _, password = (fs_ugi or "").partition(",")
    urls = _answering(fs_name, _addresses(fs_name))
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_connections=CONNECTIONS, pool_maxsize=CONNECTIONS))
    if kerberos is not None:
        session.auth = TicketAuth(kerberos, urls)
        return HdfsStorage(hdfs.client.Client(";".join(urls), session=session), fs_name)
    session.auth = GatewayAuth(name, password, urls)  # also keeps ~/.netrc out
    user = name or os.environ.get("HADOOP_USER_NAME") or None
    return HdfsStorage(hdfs.InsecureClient(";".join(urls), user=user, session=session), fs_name)


def _addresses(fs_name: str) -> list[list[str]]:
    """Returns for each NameNode the base URLs at which it may offer WebHDFS."""
    scheme, is_address, service = fs_name.rstrip("/").partition("://")
    known = site.namenodes(site.read_settings(), service) if is_address and scheme in ("hdfs", "webhdfs") else []
    return [[one.web] for one in known] or web_addresses(fs_name)


def is_alias(fs_name: str) -> bool:
    """Returns whether HdfsCLI's configuration file has an alias of that name. Raises ConfigError for one in error."""
    return _alias(fs_name) is not None


def _alias(fs_name: str) -> Optional[hdfs.client.Client]:
    """Returns the client that HdfsCLI's configuration file describes under that name, or None."""
    try:
        aliases = AliasFile()
        if not any(aliases.has_section(f"{fs_name}{suffix}") for suffix in (".alias", "_alias")):
            return None
        return aliases.get_client(fs_name)
    except (Exception, SystemExit) as problem:  # its text may show the options, and among them a token
        raise ConfigError(
            f"set_hdfs_info: fs_name: the alias {fs_name!r} of HdfsCLI's configuration file cannot be used "
            f"({type(problem).__name__}); check its section"
        ) from None


def _answering(fs_name: str, namenodes: list[list[str]]) -> list[str]:
    """Returns for each NameNode the first URL at which WebHDFS answers.

    For one that does not answer, it is the most likely URL, since the NameNode may come back.
    """
    every = [url for candidates in namenodes for url in candidates]
    with ThreadPoolExecutor(len(every), "plsc-hdfs") as pool:
        problems = dict(zip(every, pool.map(_probe, every)))
    if all(problems.values()):
        texts = "; ".join(f"{urlsplit(url).netloc}: {problem}" for url, problem in problems.items())
        raise StorageUnavailableError(
            f"{fs_name}: no WebHDFS answers ({texts}); {_what_to_look_at(fs_name, texts)}{_by_proxy(every)}"
        )
    return [next((url for url in urls if not problems[url]), urls[0]) for urls in namenodes]


def _what_to_look_at(fs_name: str, problems: str) -> str:
    """Returns what to look at where no NameNode answers."""
    hosts = [part.rpartition("//")[2].rstrip("/") for part in re.split("[;,]", fs_name)]
    if _UNKNOWN_HOST.search(problems) and not any(":" in host for host in hosts):
        return (
            f"if {hosts[0]} is a nameservice, let HADOOP_CONF_DIR name the folder of its hdfs-site.xml; if it is a "
            "host, check its name"
        )
    return "is the NameNode up, and the address right?"


def _probe(url: str) -> Optional[str]:
    """Returns why `url` is no WebHDFS, or None if it is one, even one that refuses an unknown user."""
    try:
        with requests.get(
            f"{url}/webhdfs/v1/?op=GETFILESTATUS",
            timeout=(_CONNECT_SECONDS, _PROBE_SECONDS),
            allow_redirects=False,
            auth=NoAuth(),
            stream=True,
        ) as answer:
            is_json = "json" in answer.headers.get("content-type", "")
            refuses = answer.status_code in (401, 403) or 300 <= answer.status_code < 400
            is_proxy = answer.status_code == 403 and url.startswith("http://") and bool(_proxies([url]))
            if is_json or (refuses and not is_proxy):
                return None
            return f"answers, but not as WebHDFS (status {answer.status_code})"
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as problem:
        return _reason(problem)


def _status(status: dict[str, Any]) -> Status:
    """Returns a status of WebHDFS. Raises ValueError or KeyError if it is none."""
    number = status.get("fileId")
    return Status(
        size=as_integer(status["length"]),
        is_folder=as_text(status["type"]) == "DIRECTORY",
        modified=as_integer(status["modificationTime"]) / 1000,
        identity=None if number is None else as_integer(number),
    )


def _proxies(urls: Sequence[str]) -> list[str]:
    """Returns `host:port` of the proxies that the environment has these requests go through, without passwords."""
    chosen = [select_proxy(url, get_environ_proxies(url)) for url in urls]
    parts = [urlsplit(one if "://" in one else f"http://{one}") for one in chosen if one]
    return list(dict.fromkeys(one.netloc.rpartition("@")[2] for one in parts))


def _by_proxy(urls: Sequence[str]) -> str:
    """Returns what to know about proxies at the end of a message about a connection; an empty text without one."""
    proxies = _proxies(urls)
    hosts = ",".join(dict.fromkeys(str(urlsplit(url).hostname) for url in urls))
    return (
        f"; the requests go through the proxy {', '.join(proxies)} of http_proxy or https_proxy, which may be what "
        f"refuses: add {hosts} to no_proxy to go around it"
        if proxies
        else ""
    )


def _server_error(where: str, problem: hdfs.HdfsError, fs_name: str, urls: Sequence[str]) -> StorageError:
    """Returns the error for a refusal of the server: its own words, without its stack trace."""
    message: Union[str, bytes] = problem.message
    text = first_line(message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message))
    if isinstance(message, str) and text.startswith("Authentication failure"):
        why = credentials.why_withheld(fs_name)
        return StorageError(f"{where}: {f'{why}; {_FOR_KERBEROS}' if why else _REFUSED}")
    error = refusal(where, problem.exception, text)
    if isinstance(message, bytes) and not isinstance(error, StorageUnavailableError):
        # The answer is not WebHDFS's, but that of a gateway, or of a server that is starting.
        return StorageUnavailableError(f"{where}: the server failed: {text or 'no reason given'}{_by_proxy(urls)}")
    return error


def _server_of(problem: BaseException) -> str:
    """Returns the host and port of a failed request: a DataNode is not the machine that the address names."""
    request = getattr(problem, "request", None)
    return urlsplit(request.url).netloc if request is not None and request.url else "the connection"


def _reason(problem: BaseException) -> str:
    """Returns why a connection failed, without the URL."""
    if isinstance(problem, requests.exceptions.Timeout):
        return "no answer in time"
    seen: list[Any] = [problem]
    for one in seen:
        if isinstance(one, OSError) and one.strerror:
            return str(one.strerror)
        inner = (getattr(one, "reason", None), one.__cause__, one.__context__, *one.args)
        seen += [part for part in inner if isinstance(part, BaseException) and part not in seen]
    return "the connection broke"
