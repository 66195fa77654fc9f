"""The bytes that the kernel counts on this process's TCP connections, to check those counted at the RPC boundary."""

import os
import socket
import struct
import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# struct tcp_info of <linux/tcp.h>; fields are only ever added at its end.
_INFO_BYTES = 256
_BYTES_RECEIVED = 128
_BYTES_SENT = 200  # retransmissions included, unlike bytes_acked at 120; Linux 4.19
_FDS = Path("/proc/self/fd")

_Key = tuple[int, object, object]  # inode and both ends: an inode's number is used again


@dataclass(frozen=True, slots=True)
class KernelTotals:
    """Bytes inside TCP, with gRPC's and HTTP/2's own, without IP and TCP headers."""

    sent: int = 0
    received: int = 0

    def __add__(self, other: "KernelTotals") -> "KernelTotals":
        return KernelTotals(self.sent + other.sent, self.received + other.received)


class KernelBytes:
    """Adds up all connections to or from ``ports``. Totals only grow: a closed connection keeps its last value.

    Bytes that a connection moved between its last sample and its end are missed, so sample often.
    """

    def __init__(self, ports: Collection[int]) -> None:
        self._ports = frozenset(ports)
        self._open: dict[_Key, KernelTotals] = {}
        self._closed = KernelTotals()

    def watch(self, port: int) -> None:
        """Count connections to or from ``port`` as well, from now on."""
        self._ports |= {port}

    def sample(self) -> KernelTotals | None:
        """The totals now. None where the platform has none, or no file descriptor is left to read them."""
        if not is_supported():
            return None
        try:
            fds = os.listdir(_FDS)
        except OSError:
            return None
        seen = dict(found for fd in fds if (found := _connection(int(fd), self._ports)))
        for key in self._open.keys() - seen.keys():
            self._closed += self._open[key]
        self._open = seen
        return sum(seen.values(), self._closed)


def is_supported() -> bool:
    """Whether this platform has TCP_INFO and lists a process's sockets."""
    return sys.platform == "linux" and hasattr(socket, "TCP_INFO") and _FDS.is_dir()


def _connection(fd: int, ports: frozenset[int]) -> tuple[_Key, KernelTotals] | None:
    """Identity and totals of ``fd``, if it is a connection of interest."""
    try:
        copy = os.dup(fd)  # its owner, another thread, may close it meanwhile
    except OSError:
        return None
    try:
        connection = socket.socket(fileno=copy)
    except OSError:  # no socket
        os.close(copy)
        return None
    with connection, suppress(OSError):  # listening, not yet connected, or not TCP
        if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
            here, there = connection.getsockname(), connection.getpeername()
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
            if not ports.isdisjoint((here[1], there[1])) and len(info) >= _BYTES_SENT + 8:
                (received,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED)
                (sent,) = struct.unpack_from("=Q", info, _BYTES_SENT)
                return (os.fstat(copy).st_ino, here, there), KernelTotals(sent, received)
    return None
