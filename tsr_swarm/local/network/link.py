"""What a line does to what is sent over it. Pure: now and a size in, the time of delivery or nothing out.

A line has a rate, a delay and a loss of its own in each direction. What waits for its turn is bounded: a home router
buffers about a third of a second and drops what comes on top.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

QUEUE_SECONDS = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeLine:
    """One node's line. Rates are bits a second, None for no limit; ``rtt`` is its share of any round trip."""

    up: float | None = None
    down: float | None = None
    rtt: float = 0.0  # seconds
    loss: float = 0.0  # share of packets, in each direction
    nat: bool = False  # nothing comes in that was not asked for


class Pipe:
    """One direction of one line. Times are seconds and never go back."""

    def __init__(self, *, rate: float | None, delay: float, loss: float, random: Random) -> None:
        self.rate = rate
        self._seconds_a_byte = 8 / rate if rate else 0.0
        self._delay, self._loss, self._random = delay, loss, random
        self._free = 0.0  # when the last packet has gone out

    def backlog(self, now: float) -> float:
        """Seconds until what waits has gone out."""
        return max(0.0, self._free - now)

    def send(self, now: float, size: int) -> float | None:
        """When ``size`` bytes sent at ``now`` are at the other end; None: dropped, by a full queue or by loss.

        Over any stretch of time no more than the rate goes out, but for one packet; order is kept.
        """
        if self.backlog(now) > QUEUE_SECONDS:
            return None
        arrival = self.carry(now, size)
        return None if self.loses() else arrival

    def carry(self, now: float, size: int) -> float:
        """Like ``send`` over a line that never drops: for those who wait for ``backlog`` themselves."""
        self._free = max(self._free, now) + size * self._seconds_a_byte
        return self._free + self._delay

    def loses(self) -> bool:
        """Whether the next packet is lost."""
        return self._loss > 0 and self._random.random() < self._loss


def pipes(lines: Mapping[int, HomeLine], seed: int) -> Mapping[int, tuple[Pipe, Pipe]]:
    """The way up and the way down of every node. Losses are the same for the same seed, packet by packet."""

    def pipe(who: int, line: HomeLine, way: str, rate: float | None) -> Pipe:
        return Pipe(rate=rate, delay=line.rtt / 2, loss=line.loss, random=Random(f"{seed}/{who}/{way}"))

    return {who: (pipe(who, line, "up", line.up), pipe(who, line, "down", line.down)) for who, line in lines.items()}
