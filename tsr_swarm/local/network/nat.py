"""A home router's table of flows: what was sent first may be answered. Pure."""

import struct
from collections import OrderedDict
from dataclasses import dataclass

MAX_FLOWS = 4096
TCP_SECONDS, OTHER_SECONDS = 7440.0, 300.0  # an idle flow is forgotten after (RFC 5382, RFC 4787)
TCP, UDP = 6, 17
_HEADER = struct.Struct("!B5xHxB2xII")  # of IPv4: version and length, fragment, protocol, both addresses
_PORTS = struct.Struct("!HH")

Flow = tuple[int, int, int, int, int]  # protocol, inner address and port, outer address and port


@dataclass(frozen=True, slots=True)
class Packet:
    """An IPv4 packet and where it goes. Ports are 0 where it has none."""

    data: bytes
    protocol: int
    source: int
    target: int
    source_port: int
    target_port: int

    @property
    def outward(self) -> Flow:
        """Its flow, seen from its sender."""
        return (self.protocol, self.source, self.source_port, self.target, self.target_port)

    @property
    def inward(self) -> Flow:
        """Its flow, seen from whom it is for."""
        return (self.protocol, self.target, self.target_port, self.source, self.source_port)


def read_packet(data: bytes) -> Packet | None:
    """``data`` as an IPv4 packet; None for anything else."""
    if len(data) < _HEADER.size:
        return None
    first, fragment, protocol, source, target = _HEADER.unpack_from(data)
    header = 4 * (first & 15)
    if first >> 4 != 4 or not _HEADER.size <= header <= len(data):
        return None
    has_ports = protocol in (TCP, UDP) and not fragment & 0x1FFF and len(data) >= header + _PORTS.size
    ports = _PORTS.unpack_from(data, header) if has_ports else (0, 0)
    return Packet(data, protocol, source, target, *ports)


class FlowTable:
    """The flows that one node behind NAT has begun. Bounded: the one that was silent longest goes first."""

    def __init__(self, limit: int = MAX_FLOWS) -> None:
        self._limit = limit
        self._last_sent: OrderedDict[Flow, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._last_sent)

    def note(self, now: float, flow: Flow) -> None:
        """The node sent to ``flow``."""
        self._last_sent[flow] = now
        self._last_sent.move_to_end(flow)
        if len(self._last_sent) > self._limit:
            self._last_sent.popitem(last=False)

    def lets_in(self, now: float, flow: Flow) -> bool:
        """Whether the node has sent to ``flow`` first, and not too long ago."""
        sent = self._last_sent.get(flow)
        return sent is not None and now - sent <= (TCP_SECONDS if flow[0] == TCP else OTHER_SECONDS)
