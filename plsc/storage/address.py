"""Addresses of HDFS as users write them, and the URLs at which its WebHDFS may answer."""

from __future__ import annotations

import os
import posixpath
import re
from typing import NamedTuple, Optional
from urllib.parse import urlsplit

from plsc.errors import ConfigError, shown
from plsc.storage.object_refusals import AZURE, GOOGLE, S3
from plsc.storage.objects import check_object_address

DEFAULT_PORTS = (9870, 50070)  # of the WebHDFS of Hadoop 3 and 2; those with TLS follow
DEFAULT_TLS_PORTS = (9871, 50470)
_WEB_PORTS = {*DEFAULT_PORTS, 14000}  # 14000 is that of HttpFS
_FORMS = "hdfs://host:port, webhdfs://host:port, http://host:port, https://gateway:port/path or s3://bucket"

_SCHEMES = ("hdfs", "webhdfs", "swebhdfs", "file")
_FORM_OF = {
    **dict.fromkeys(("hdfs", "webhdfs", "swebhdfs", "http", "https"), "{}://host:port/path"),
    **dict.fromkeys((*S3, *GOOGLE, *AZURE), "{}://bucket/folder"),
    "file": "{}:///path",
    "memory": "{}://name",
}
_MARK_OF = {"file": ":///"}
# A scheme, what a user may write for `://`, and the rest.
_NEARLY = re.compile(r"(\s*)([a-z][a-z0-9+.-]+)\s*([:;]?[/\\]{2,}|[:;][/\\]?)(.*?)(\s*)", re.IGNORECASE | re.DOTALL)
_HADOOP = ("hdfs", "webhdfs", "swebhdfs", "http", "https")


class Address(NamedTuple):
    """The address of a folder or a file in a store: `scheme://host:port/path`.

    Attributes:
        text: The whole address.
        scheme: One of 'hdfs', 'webhdfs', 'swebhdfs' and 'file', or one that `fsspec` knows.
        host: `host:port`, or a bucket; may be empty.
        path: The absolute path.
    """

    text: str
    scheme: str
    host: str
    path: str

    @property
    def server(self) -> str:
        """The address without the path."""
        return f"{self.scheme}://{self.host}"

    @property
    def is_object(self) -> bool:
        """Whether `plsc.storage.objects` opens it."""
        return is_object_address(self.text)

    @property
    def is_fleeting(self) -> bool:
        """Whether what is stored there ends with the process."""
        return self.scheme == "memory"

    def is_served_by(self, fs_name: str) -> bool:
        """Returns whether an address of `set_hdfs_info` leads to the same machine, whatever its ports.

        The buckets of object stores of one kind count as one machine.
        """
        if self.is_object or is_foreign_address(fs_name):
            return _kind_of(fs_name) == _kind_of(self.text)
        return not self.host or urlsplit(self.server).hostname in {host for host, _ in servers_of(fs_name)}


def split_address(setter: str, text: str) -> Optional[Address]:
    """Returns the parts of an address of data; None for a path on this machine.

    Raises:
        ConfigError: plsc cannot read such an address. The message shows no user name and no password.
    """
    check_path(setter, text)
    scheme, is_address, rest = text.partition("://")
    if not is_address:
        return None
    host, _, path = rest.partition("/")
    scheme = scheme.lower()
    if is_object_address(text):
        check_object_address(setter, text)
        return Address(text, scheme, host, posixpath.normpath(f"/{path}"))
    if "@" in host:
        raise ConfigError(f"{setter}: the address holds a user or a password; give them to set_hdfs_info as fs_ugi")
    if scheme not in _SCHEMES:
        raise ConfigError(
            f"{setter}({shown(text)}): plsc does not know {shown(scheme + '://')[1:-1]}; expected a folder, or an "
            f"address that begins with {', '.join(f'{one}://' for one in _SCHEMES)}, s3:// or another scheme of fsspec"
        )
    # Without a host, an hdfs:// address means the HDFS of set_hdfs_info.
    why = _why_no_host(host) if host else "" if scheme in ("file", "hdfs") else "is not an address"
    if scheme == "file" and host:
        why = "is not an address"
    if why:
        raise ConfigError(f"{setter}: {shown(text)} {why}; expected {_FORM_OF[scheme].format(scheme)}")
    return Address(text, scheme, host, posixpath.normpath(f"/{path}"))


def with_plain_scheme(text: str) -> str:
    """Returns an address with its scheme in small letters."""
    return re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*(?=://)", lambda match: match[0].lower(), text)


def is_address(path: object) -> bool:
    """Returns whether something names a place in a store, and no file of this machine."""
    return isinstance(path, str) and "://" in path and not os.path.exists(path)


def is_inside(inner: str, outer: str) -> bool:
    """Returns whether a path or an address is another one, or a place in it.

    Args:
        inner: The path, or an address that `split_address` can read.
        outer: The other one.
    """
    (kind, host, path), (other_kind, other_host, folder) = _place_of(inner), _place_of(outer)
    # Without a host, an hdfs:// address means the HDFS of set_hdfs_info, which may be that of the other address.
    if kind != other_kind or (host != other_host and (kind != "hdfs" or (host and other_host))):
        return False
    return posixpath.commonpath([path, folder]) == folder


def _place_of(text: str) -> tuple[str, str, str]:
    """Returns the kind of a store, its host or bucket, and the path in it; a path of this machine is one of `file`."""
    address = split_address("address", text) if is_address(text) else None
    if address is None or address.scheme == "file":
        return "file", "", os.path.realpath(text if address is None else address.path)
    if address.is_object:
        return _kind_of(text), address.host, address.path
    return "hdfs", urlsplit(address.server).hostname or "", address.path


def servers_of(fs_name: str) -> list[tuple[str, str]]:
    """Returns the host and the port of each server in an address of HDFS; see `server_of`."""
    return [server_of(part) for part in re.split("[;,]", fs_name) if part.strip()]


def server_of(address: str) -> tuple[str, str]:
    """Returns the host of an address, in small letters, and its port; '' for one that it does not have."""
    try:
        parts = urlsplit(address.strip() if "://" in address else f"//{address.strip()}")
        return parts.hostname or "", str(parts.port or "")
    except ValueError:
        return "", address


def check_path(setter: str, text: str) -> None:
    """Checks that a text is an address or a path, and not an address with a typing error, such as `s3:/bucket/folder`.

    Args:
        setter: The setting or the argument, for the message.
        text: The text. If a file of this machine has that name, it is right.

    Raises:
        ConfigError: It was meant to be an address. The message shows no user name and no password.
    """
    if not os.path.lexists(text):
        _check_form(setter, text)


def is_object_address(text: str) -> bool:
    """Returns whether an address is one of an object store, or of another file system that `fsspec` may know."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    return match is not None and match[1].lower() not in (*_HADOOP, "file")


def is_foreign_address(text: str) -> bool:
    """Returns whether an address is none of HDFS."""
    return is_object_address(text) or text.lower().startswith("file://")


def _kind_of(text: str) -> str:
    """Returns the scheme of an address; schemes of the same stores count as one."""
    scheme = text.partition("://")[0].lower()
    return next((kinds[0] for kinds in (S3, GOOGLE, AZURE) if scheme in kinds), scheme)


def _check_form(setter: str, text: str) -> None:
    """Raises ConfigError for what was meant to be an address, such as `s3:/bucket`, `s3//bucket` or ` s3://bucket`."""
    match = _NEARLY.fullmatch(text)
    if match is None:
        return
    before, scheme, mark, rest, after = match[1], match[2].lower(), match[3], match[4], match[5]
    is_known, form = scheme in _FORM_OF, _FORM_OF.get(scheme, "{}://host/path").format(scheme)
    if not is_known and not re.match("[:;][/\\\\]", mark):  # a path of this machine, or a host and its port
        return
    if mark == ":" and re.match(r"\d+\s*([;,]|$)", rest):
        return
    is_right = mark == "://" or (scheme not in (*S3, *GOOGLE, *AZURE) and re.fullmatch(":///+", mark) is not None)
    if is_right and not (before or after):
        return
    if "@" in rest:  # the message must not show a password
        raise ConfigError(f"{setter}: that is not an address; expected {form}, without a user or a password")
    why = "begins or ends with a space" if is_right and rest else "is not an address"
    expected = f"did you mean {shown(form.partition('://')[0] + _MARK_OF.get(scheme, '://') + rest)}?"
    raise ConfigError(f"{setter}: {shown(text)} {why}; {expected if rest else f'expected {form}'}")


def _why_no_host(host: str) -> str:
    """Returns why a text is neither `host` nor `host:port`; an empty text if it is one of them."""
    try:
        parts = urlsplit(f"hdfs://{host}")
        if parts.hostname and parts.port != 0 and not re.search(r"[\s?#]", host):
            return ""
    except ValueError:
        pass
    port = host.rpartition(":")[2]
    is_port = ":" not in host or "]" in port or re.fullmatch("[0-9]*", port) and 0 < int(port or 1) < 65536
    return "is not an address" if is_port or re.search(r"\s", host) else f"is not an address: {shown(port)} is no port"


def web_addresses(fs_name: str) -> list[list[str]]:
    """Returns for each NameNode the base URLs at which it may offer WebHDFS, the most likely first.

    Args:
        fs_name: A NameNode, or several separated by `;` or `,`. Those after the first may leave out the scheme.

    Raises:
        ConfigError: The address cannot be read. The message shows no user name and no password.
    """
    parts = [part.strip() for part in re.split("[;,]", fs_name) if part.strip()]
    if not parts:
        raise ConfigError(f"set_hdfs_info: fs_name is empty; expected {_FORMS}")
    scheme, found = "hdfs", []
    for part in parts:
        if "://" in part:
            scheme = part.split("://", 1)[0].lower()
        else:
            part = f"{scheme}://{part}"
        found.append(_candidates(scheme, part))
    return found


def rpc_hosts(fs_name: str) -> list[str]:
    """Returns `host:port`, or the name of a nameservice, of each NameNode that is to be asked by RPC.

    Args:
        fs_name: An address that `web_addresses` can read.

    Returns:
        None of them if the address is one of WebHDFS, by its scheme or by its port.
    """
    hosts: list[str] = []
    scheme = "hdfs"
    for part in filter(None, (part.strip() for part in re.split("[;,]", fs_name))):
        scheme, host = part.split("://", 1) if "://" in part else (scheme, part)
        host = host.rstrip("/")
        if scheme.lower() != "hdfs" or urlsplit(f"hdfs://{host}").port in _WEB_PORTS:
            return []
        hosts.append(host)
    return hosts


def check_hdfs_address(fs_name: str, is_alias: bool) -> None:
    """Raises ConfigError for an address that cannot be read. With `is_alias` a word may be an alias of HdfsCLI."""
    if not isinstance(fs_name, str):
        raise ConfigError(f"set_hdfs_info: fs_name must be a string, not {type(fs_name).__name__}; expected {_FORMS}")
    for part in (fs_name, *map(str.strip, re.split("[;,]", fs_name))):
        _check_form("set_hdfs_info: fs_name", part)
    if is_foreign_address(fs_name) and ".." in fs_name.split("/"):
        raise ConfigError(f"set_hdfs_info: fs_name: {shown(fs_name)} contains '..'; name the folder without it")
    if is_object_address(fs_name):
        check_object_address("set_hdfs_info: fs_name", fs_name)
    elif is_foreign_address(fs_name):
        split_address("set_hdfs_info: fs_name", fs_name)
    elif not (is_alias and re.fullmatch(r"[\w.-]+", fs_name)):
        web_addresses(fs_name)


def check_takes_kerberos(names: str, fs_name: str) -> None:
    """Raises ConfigError, which begins with the names of the settings, for an address that is none of HDFS."""
    if is_foreign_address(fs_name):
        raise ConfigError(f"{names} are for HDFS, and {shown(fs_name)} is none; leave them out")


def _candidates(scheme: str, url: str) -> list[str]:
    if "@" in url:
        raise ConfigError("set_hdfs_info: fs_name holds a user or a password; give them in fs_ugi as 'name,password'")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        why = _why_no_host(url.partition("://")[2].partition("/")[0]) or "is not an address"
        raise ConfigError(f"set_hdfs_info: fs_name: {shown(url)} {why}; expected {_FORMS}") from None
    if not host or port == 0 or parts.query or parts.fragment or re.search(r"\s", url):
        why = _why_no_host(parts.netloc) or "is not an address"
        raise ConfigError(f"set_hdfs_info: fs_name: {shown(url)} {why}; expected {_FORMS}")
    if ":" in host:
        host = f"[{host}]"
    if scheme in ("http", "https"):
        return [url.rstrip("/")]
    if parts.path not in ("", "/"):
        raise ConfigError(
            f"set_hdfs_info: fs_name: {shown(url)} ends in a folder; give the folder as fs_dir_for_save or "
            "fs_checkpoint_dir"
        )
    if scheme == "hdfs":  # its port is usually that of the RPC protocol
        ports = [*([port] if port in _WEB_PORTS else []), *DEFAULT_PORTS, *([port] if port else [])]
        return [f"http://{host}:{one}" for one in dict.fromkeys(ports)]
    if scheme in ("webhdfs", "swebhdfs"):
        web, defaults = ("http", DEFAULT_PORTS) if scheme == "webhdfs" else ("https", DEFAULT_TLS_PORTS)
        return [f"{web}://{host}:{one}" for one in ([port] if port else defaults)]
    raise ConfigError(f"set_hdfs_info: fs_name: {shown(url)}: plsc does not know {scheme}://; expected {_FORMS}")
