"""What a home link does to the packets on it. Pure: the time and a size in, the time of delivery or nothing out.

A link has a rate, a delay and a loss of its own in each direction. Its queue is bounded: a home router buffers about a
third of a second and drops what comes on top.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from random import Random

QUEUE_SECONDS = 0.3

Pairs = Collection[frozenset[int]]  # of nodes that cannot reach each other


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
