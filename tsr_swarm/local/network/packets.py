"""What home links do to the packets between the nodes of a lab. Pure: packets and the time in, what is due out.

A link has a rate, a delay and a loss of its own in each direction. Its queue is bounded: a home router buffers about a
third of a second and drops what comes on top. A router may also do NAT, and partitions cut nodes off each other.
"""

import heapq
import struct
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from random import Random

QUEUE_SECONDS = 0.3
FIRST_ADDRESS = int(IPv4Address("10.77.0.1"))  # the coordinator's; those of peers follow
MAX_IN_FLIGHT = 1 << 16  # packets; what comes on top is dropped
MAX_FLOWS = 4096
TCP_SECONDS, OTHER_SECONDS = 7440.0, 300.0  # an idle flow is forgotten after (RFC 5382, RFC 4787)
TCP, UDP = 6, 17
_HEADER = struct.Struct("!B5xHxB2xII")  # of IPv4: version and length, fragment, protocol, both addresses
_PORTS = struct.Struct("!HH")

Pairs = Collection[frozenset[int]]  # of nodes that cannot reach each other
Flow = tuple[int, int, int, int, int]  # protocol, inner address and port, outer address and port


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeLine:
    """The internet line of one node. Rates are bits a second, None: no limit; ``rtt`` is its share of a round trip."""

    up: float | None = None
    down: float | None = None
    rtt: float = 0.0  # seconds
    loss: float = 0.0  # share of packets, in each direction
    nat: bool = False  # nothing comes in that was not asked for


class Pipe:
    """One direction of one link. Times are seconds and never decrease."""

    def __init__(self, *, rate: float | None, delay: float, loss: float, random: Random) -> None:
        self.rate = rate
        self._seconds_a_byte = 8 / rate if rate else 0.0
        self._delay, self._loss, self._random = delay, loss, random
        self._free = 0.0  # when the last packet has been sent

    def backlog(self, now: float) -> float:
        """Seconds until the queue is empty."""
        return max(0.0, self._free - now)

    def send(self, now: float, size: int) -> float | None:
        """When ``size`` bytes sent at ``now`` arrive; None: they are dropped, by a full queue or by loss.

        In any interval no more than the rate is sent, but for one packet; the order is kept.
        """
        if self.backlog(now) > QUEUE_SECONDS:
            return None
        arrival = self.carry(now, size)
        return None if self.loses() else arrival

    def carry(self, now: float, size: int) -> float:
        """Like ``send`` on a link that never drops: for callers that wait for ``backlog`` themselves."""
        self._free = max(self._free, now) + size * self._seconds_a_byte
        return self._free + self._delay

    def loses(self) -> bool:
        """Whether the next packet is lost."""
        return self._loss > 0 and self._random.random() < self._loss


def pipes(lines: Mapping[int, HomeLine], seed: int) -> Mapping[int, tuple[Pipe, Pipe]]:
    """The uplink and the downlink of every node. The same seed loses the same packets."""

    def pipe(who: int, line: HomeLine, way: str, rate: float | None) -> Pipe:
        return Pipe(rate=rate, delay=line.rtt / 2, loss=line.loss, random=Random(f"{seed}/{who}/{way}"))

    return {who: (pipe(who, line, "up", line.up), pipe(who, line, "down", line.down)) for who, line in lines.items()}


def address_of(who: int) -> str:
    """The IPv4 address of node ``who``."""
    return str(IPv4Address(FIRST_ADDRESS + who))


@dataclass(frozen=True, slots=True)
class Packet:
    """An IPv4 packet, its ends as numbers, and its ports, 0 if it has none."""

    data: bytes
    protocol: int
    source: int
    target: int
    source_port: int
    target_port: int

    @property
    def outward(self) -> Flow:
        """Its flow as its sender sees it."""
        return (self.protocol, self.source, self.source_port, self.target, self.target_port)

    @property
    def inward(self) -> Flow:
        """Its flow as its receiver sees it."""
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
    """A home router's table of the flows that one node behind NAT has begun: what was sent first may be answered.

    Bounded: the flow that was silent longest is forgotten first.
    """

    def __init__(self, limit: int = MAX_FLOWS) -> None:
        self._limit = limit
        self._last_sent: OrderedDict[Flow, float] = OrderedDict()

    def add(self, now: float, flow: Flow) -> None:
        """The node has sent to ``flow``."""
        self._last_sent[flow] = now
        self._last_sent.move_to_end(flow)
        if len(self._last_sent) > self._limit:
            self._last_sent.popitem(last=False)

    def admits(self, now: float, flow: Flow) -> bool:
        """Whether the node has sent to ``flow`` first, and not too long ago."""
        sent = self._last_sent.get(flow)
        return sent is not None and now - sent <= (TCP_SECONDS if flow[0] == TCP else OTHER_SECONDS)


class Network:
    """Forwards packets between the nodes of ``lines``: up the sender's link, down the receiver's."""

    def __init__(self, lines: Mapping[int, HomeLine], seed: int) -> None:
        self._pipes = pipes(lines, seed)
        self._flows = {who: FlowTable() for who, line in lines.items() if line.nat}
        self._cut: frozenset[frozenset[int]] = frozenset()
        self._count = 0  # keeps what is due at the same time in order
        self._in_flight: list[tuple[float, int, bool, int, int, Packet]] = []  # when, count, is down, from, to

    def cut(self, pairs: Pairs) -> None:
        """From now on nothing passes within any of ``pairs``, and everything else does."""
        self._cut = frozenset(pairs)

    def send(self, now: float, source: int, data: bytes) -> None:
        """Node ``source`` sends ``data``. What is no packet from it to another node is dropped."""
        packet = read_packet(data)
        if packet is None or packet.source != FIRST_ADDRESS + source or len(self._in_flight) >= MAX_IN_FLIGHT:
            return
        target = packet.target - FIRST_ADDRESS
        if target == source or target not in self._pipes:
            return
        if source in self._flows:
            self._flows[source].add(now, packet.outward)
        if not self._is_cut(source, target):
            self._push(self._pipes[source][0].send(now, len(data)), False, source, target, packet)

    def due(self, now: float) -> Iterator[tuple[int, bytes]]:
        """The receivers and packets that arrive until ``now``, in order."""
        while self._in_flight and self._in_flight[0][0] <= now:
            when, _, is_down, source, target, packet = heapq.heappop(self._in_flight)
            if self._is_cut(source, target):
                continue
            if not is_down:
                self._push(self._pipes[target][1].send(when, len(packet.data)), True, source, target, packet)
            elif target not in self._flows or self._flows[target].admits(when, packet.inward):
                yield target, packet.data

    def next_time(self) -> float | None:
        """When the next packet is due; None: nothing is in flight."""
        return self._in_flight[0][0] if self._in_flight else None

    def _is_cut(self, one: int, other: int) -> bool:
        return bool(self._cut) and frozenset((one, other)) in self._cut

    def _push(self, when: float | None, is_down: bool, source: int, target: int, packet: Packet) -> None:
        if when is not None:
            self._count += 1
            heapq.heappush(self._in_flight, (when, self._count, is_down, source, target, packet))
