"""Kerberos: whose ticket is used, and what its failures mean. A keytab gives new tickets for as long as training runs.

RPC needs libgssapi_krb5 alone, which `hdfs-native` loads; WebHDFS needs the `gssapi` package as well.
"""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

from plsc.errors import ConfigError, one_line
from plsc.storage.base import StorageError, StorageUnavailableError

_RENEW = "run kinit, or give a keytab (keytab= of set_hdfs_info, --keytab of plsc fs)"
_SETUP = "check krb5.conf, or the file that KRB5_CONFIG names"
# Texts of MIT Kerberos, what they mean, and what to do; None stands for getting a new ticket.
_MEANINGS = (
    ("(Ticket|credential has) expired.*", "the ticket can no longer be used", None),
    ("No Kerberos credentials.*|No credentials cache.*", "there is no ticket", None),
    ("Cannot (contact any|find) KDC.*", "no KDC answers", _SETUP),
    ("Clock skew.*", "the clocks of this machine and of the KDC differ", "set them"),
    ("Server .* not found in Kerberos database", "there is no such server", "give its full host name in fs_name"),
)
_SPNEGO = "1.3.6.1.5.5.2"
INSTALL = (
    "WebHDFS with Kerberos needs the package gssapi: pip install '.[kerberos]', which compiles it with gcc and "
    "Debian's libkrb5-dev; RPC, by the package hdfs-native, needs neither"
)
# hdfs-native: `GSSAPIError(GssMajorCodes { ... }, 2529638944, "Unspecified GSS failure. ...: Ticket expired")`.
_GSSAPI_ERROR = re.compile(r'GSSAPIError\(.*?, \d+, "(.*)"\)', re.DOTALL)
_NO_LIBRARY = "Failed to load libgssapi"


class TicketError(StorageUnavailableError):
    """A ticket that is missing or has expired, or a KDC that does not give one; training waits for a new one."""


@dataclass(frozen=True)
class Kerberos:
    """Where tickets come from.

    Attributes:
        keytab: Path of a file with the keys of a principal; None for the ticket cache of the user.
    """

    keytab: Optional[str] = None

    @functools.cached_property
    def principal(self) -> Optional[str]:
        """The first principal in the keytab, such as `alice@REALM`; None without a keytab.

        Raises:
            ConfigError: The keytab cannot be read, or is none.
        """
        return None if self.keytab is None else _principal_in(Path(self.keytab))

    def __str__(self) -> str:
        return "the Kerberos ticket of this user" if self.keytab is None else f"the keytab of {self.principal}"

    def check(self) -> None:
        """Raises ConfigError if the keytab cannot be used."""
        assert self.keytab is None or self.principal

    def hint(self) -> str:
        """Returns how to get a new ticket."""
        return _RENEW if self.keytab is None else f"check the keytab {self.keytab} of {self.principal}"

    def token(self, host: str) -> bytes:
        """Returns what proves to the web server of a host who the user is.

        Raises:
            TicketError: There is no valid ticket. The text does not name the place.
            StorageError: The package `gssapi` is not installed.
        """
        try:
            import gssapi
        except ImportError:
            raise StorageError(INSTALL) from None
        try:
            if self.keytab is None:
                credentials = gssapi.Credentials(usage="initiate")
            else:
                name = gssapi.Name(self.principal, gssapi.NameType.kerberos_principal)
                # A cache in memory, so that the keytab's tickets and the user's own stay apart.
                store: dict[Union[bytes, str], Union[bytes, str]] = {
                    "client_keytab": self.keytab,
                    "ccache": "MEMORY:plsc",
                }
                credentials = gssapi.Credentials(name=name, usage="initiate", store=store)
            server = gssapi.Name(f"HTTP@{host}", gssapi.NameType.hostbased_service)
            context = gssapi.SecurityContext(
                usage="initiate", name=server, creds=credentials, mech=gssapi.OID.from_int_seq(_SPNEGO)
            )
            return context.step()
        except gssapi.exceptions.GSSError as problem:
            raise TicketError(self.words(str(problem))) from None

    def words(self, text: str) -> str:
        """Returns what a failure of GSSAPI means and what to do, by its own text."""
        for words, meaning, advice in _MEANINGS:
            found = re.search(words, text)
            if found is not None:
                return f"Kerberos: {meaning} ({one_line(found[0])}); {advice or self.hint()}"
        return f"Kerberos: {one_line(text.rpartition(': ')[2])}; {self.hint()}"

    def explain(self, text: str) -> Optional[StorageError]:
        """Returns the error for a failure of `hdfs-native` that is one of Kerberos, without its place, or None."""
        if _NO_LIBRARY in text:
            return StorageError(
                "Kerberos needs the library libgssapi_krb5.so.2: install Debian's libgssapi-krb5-2, or RHEL's krb5-libs"
            )
        found = _GSSAPI_ERROR.search(text)
        return None if found is None else TicketError(self.words(found[1]))


def _principal_in(path: Path) -> str:
    """Returns the first principal in a keytab. Raises ConfigError."""
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise ConfigError(
            f"set_hdfs_info: keytab={str(path)!r} cannot be read ({problem.strerror or problem})"
        ) from None
    try:
        if data[:2] != b"\x05\x02":
            raise ValueError
        at = 2
        while True:
            (size,) = struct.unpack_from(">i", data, at)
            if size > 0:
                break
            at += 4 - size if size else len(data)  # a hole, which a removed key has left
        (count,) = struct.unpack_from(">H", data, at + 4)
        at, parts = at + 6, []
        for _ in range(count + 1):
            (length,) = struct.unpack_from(">H", data, at)
            parts.append(data[at + 2 : at + 2 + length].decode())
            at += 2 + length
    except (struct.error, ValueError):
        raise ConfigError(f"set_hdfs_info: keytab={str(path)!r} is not a keytab, or has no keys") from None
    realm, *names = parts
    return f"{'/'.join(names)}@{realm}"
