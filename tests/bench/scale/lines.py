"""Home lines in virtual time: whatever a node sends or receives takes its time on the node's own line.

A message leaves when the sender's line has sent what waits before it, and arrives when the receiver's line has taken
it in. Messages of up to SMALL_BYTES wait only for each other, as they would where lines are shared fairly, but larger
ones wait for them too. The line in the middle is as wide as need be.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from tests.rehearsal.clock import Clock

SMALL_BYTES = 16 << 10


@dataclass(slots=True)
class Queue:
    """One direction of a line, first come, first served."""

    rate: float  # bits a second
    small: float = 0.0  # until when small messages wait
    all: float = 0.0  # and large ones

    def take(self, now: float, size: int) -> tuple[float, float]:
        """When a message of ``size`` bytes that is there now begins and ends to pass."""
        seconds = 8 * size / self.rate
        if size > SMALL_BYTES:
            begin = max(now, self.all)
            self.all = begin + seconds
            return begin, self.all
        begin = max(now, self.small)
        self.small = begin + seconds
        self.all = max(self.all + seconds, self.small)
        return begin, self.small


@dataclass(slots=True)
class Lines:
    """All nodes' lines. Rates are bits a second; latency is seconds from one node to another."""

    clock: Clock
    up: float
    down: float
    latency: float
    _up: dict[str, Queue] = field(default_factory=dict)
    _down: dict[str, Queue] = field(default_factory=dict)

    def carry(self, source: str, to: str, size: int, then: Callable[[], None]) -> None:
        """Have ``then`` called when ``size`` bytes from ``source`` have come to ``to``."""
        sending = self._up.setdefault(source, Queue(self.up))
        begun, sent = sending.take(self.clock.now, size)
        # The receiver's line is not taken before the first byte is there: others may come before it.
        self.clock.at(begun + self.latency, partial(self._receive, to, size, sent + self.latency, then))

    def _receive(self, to: str, size: int, sent: float, then: Callable[[], None]) -> None:
        receiving = self._down.setdefault(to, Queue(self.down))
        _, received = receiving.take(self.clock.now, size)
        self.clock.at(max(sent, received), then)
