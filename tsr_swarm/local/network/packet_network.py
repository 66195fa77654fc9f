"""Everybody's lines and what is between them. Pure: packets and now in, packets that are due out."""

import heapq
from collections.abc import Collection, Iterator, Mapping
from ipaddress import IPv4Address

from tsr_swarm.local.network.link import HomeLine, pipes
from tsr_swarm.local.network.nat import FlowTable, Packet, read_packet

FIRST_ADDRESS = int(IPv4Address("10.77.0.1"))  # the coordinator's; peers follow. Inside namespaces nothing collides.
MAX_IN_FLIGHT = 1 << 16  # packets; what comes on top is dropped

Pairs = Collection[frozenset[int]]


def address_of(who: int) -> str:
    """A node's address."""
    return str(IPv4Address(FIRST_ADDRESS + who))


class Network:
    """Forwards between the nodes of ``lines``: up the sender's line, down the receiver's."""

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
            self._flows[source].note(now, packet.outward)
        if not self._is_cut(source, target):
            self._push(self._pipes[source][0].send(now, len(data)), False, source, target, packet)

    def due(self, now: float) -> Iterator[tuple[int, bytes]]:
        """Who gets what until ``now``, in order."""
        while self._in_flight and self._in_flight[0][0] <= now:
            when, _, is_down, source, target, packet = heapq.heappop(self._in_flight)
            if self._is_cut(source, target):
                continue
            if not is_down:
                self._push(self._pipes[target][1].send(when, len(packet.data)), True, source, target, packet)
            elif target not in self._flows or self._flows[target].lets_in(when, packet.inward):
                yield target, packet.data

    def next_time(self) -> float | None:
        """When something is due next; None: nothing is under way."""
        return self._in_flight[0][0] if self._in_flight else None

    def _is_cut(self, one: int, other: int) -> bool:
        return bool(self._cut) and frozenset((one, other)) in self._cut

    def _push(self, when: float | None, is_down: bool, source: int, target: int, packet: Packet) -> None:
        if when is not None:
            self._count += 1
            heapq.heappush(self._in_flight, (when, self._count, is_down, source, target, packet))
