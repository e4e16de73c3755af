"""Addresses, ports and network interfaces of this machine. Paddle takes IPv4 addresses only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import struct
from collections.abc import Iterator
from typing import Optional

from plsc.errors import ConfigError, shown

_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


def parse_address(text: str) -> tuple[str, int]:
    """Returns the host and the port of `host:port`.

    Raises:
        ValueError: The text is something else.
    """
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,9}", port) or not 0 < int(port) < 65536 or ":" in host:
        raise ValueError(f"{shown(text)} is not an address; write host:port, such as 10.0.0.1:29500")
    return host, int(port)


def resolve(host: str) -> str:
    """Returns the IPv4 address of a host.

    Raises:
        OSError: The name has no address, or cannot be looked up now.
    """
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except UnicodeError:  # labels that are empty or too long
        raise OSError(f"{host!r} is not a host name") from None


def is_own_address(address: str) -> bool:
    """Returns whether this machine has the address."""
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def address_towards(address: str) -> str:
    """Returns the address of this machine on the route to another one. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        return probe.getsockname()[0]


def address_of_interface(name: str) -> str:
    """Returns the IPv4 address of a network interface.

    Raises:
        ConfigError: There is no such interface, or it has no such address.
    """
    names = [one for _, one in socket.if_nameindex()]
    if name not in names:
        raise ConfigError(f"--interface {name}: this machine has no such interface; it has {', '.join(names)}")
    try:
        return _query_address(name)
    except OSError as problem:
        raise ConfigError(f"--interface {name}: it has no IPv4 address ({problem.strerror}); choose another") from None


def interface_of(address: str) -> Optional[str]:
    """Returns the name of the network interface that has an address, or None."""
    for _, name in socket.if_nameindex():
        with contextlib.suppress(OSError):  # an interface without an address
            if _query_address(name) == address:
                return name
    return None


@contextlib.contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Yields ports that the system gives to no other program while the block runs, at any address of this machine.

    A program that sets SO_REUSEADDR, as Paddle does, can listen on them.
    """
    with contextlib.ExitStack() as kept:
        sockets = [kept.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("", 0))
        yield [one.getsockname()[1] for one in sockets]


def _query_address(interface: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", os.fsencode(interface)[:15])
        return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
