"""Carries packets between two network interfaces, as a long and bad cable would: late, and not all of them.

slow_cable.py INTERFACE INTERFACE MILLISECONDS LOSS
"""

from __future__ import annotations

import collections
import contextlib
import random
import select
import socket
import sys
import time

ALL_PROTOCOLS, SOL_PACKET, PACKET_VNET_HDR, PACKET_OUTGOING = 0x0003, 263, 15, 4
LONGEST = 1 << 17


def open_interface(name: str) -> socket.socket:
    """Returns a socket for whole packets, with the header that tells about checksums and joined packets."""
    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
    one.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    one.bind((name, ALL_PROTOCOLS))
    return one


def main() -> None:
    first, second = open_interface(sys.argv[1]), open_interface(sys.argv[2])
    delay, loss = float(sys.argv[3]) / 1000, float(sys.argv[4])
    others = {first: second, second: first}
    waiting: collections.deque[tuple[float, socket.socket, bytes]] = collections.deque()
    rng = random.Random(0)
    print("ready", flush=True)
    while True:
        seconds = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 1.0
        for one in select.select([first, second], [], [], seconds)[0]:
            packet, (_, _, kind, *_) = one.recvfrom(LONGEST)
            if kind != PACKET_OUTGOING and rng.random() >= loss:
                waiting.append((time.monotonic() + delay, others[one], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, target, packet = waiting.popleft()
            with contextlib.suppress(OSError):  # the cable is cut
                target.send(packet)


if __name__ == "__main__":
    main()
