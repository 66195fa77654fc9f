"""Home links in virtual time: whatever a node sends or receives takes its time on the node's own link.

A message leaves when the sender's link has sent what waits before it, and arrives when the receiver's link has taken it
in. Messages of up to SMALL_BYTES wait only for each other, as they would where links are shared fairly, but larger ones
wait for them too. The network between the links is as wide as need be.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from tests.rehearsal.clock import Clock
from tests.rehearsal.network import Host, Network, Weather
from tsr_swarm.rounds import protocol as pt

if TYPE_CHECKING:
    from tests.bench.scale.swarm import HomeSwarm

SMALL_BYTES = 16 << 10


@dataclass(slots=True)
class Queue:
    """One direction of a link, first come, first served."""

    rate: float  # bits a second
    small: float = 0.0  # until when small messages wait
    all: float = 0.0  # and large ones

    def take(self, now: float, size: int) -> tuple[float, float]:
        """Return when a message of ``size`` bytes that is there now begins and ends to pass."""
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
class Links:
    """The links of all nodes. Rates are bits a second; latency is seconds from one node to another."""

    clock: Clock
    up: float
    down: float
    latency: float
    _up: dict[str, Queue] = field(default_factory=dict)
    _down: dict[str, Queue] = field(default_factory=dict)

    def carry(self, source: str, to: str, size: int, then: Callable[[], None]) -> None:
        """Call ``then`` when ``size`` bytes from ``source`` have come to ``to``."""
        sending = self._up.setdefault(source, Queue(self.up))
        begun, sent = sending.take(self.clock.now, size)
        # The receiver's link is not taken before the first byte is there: others may come before it.
        self.clock.at(begun + self.latency, partial(self._receive, to, size, sent + self.latency, then))

    def _receive(self, to: str, size: int, sent: float, then: Callable[[], None]) -> None:
        receiving = self._down.setdefault(to, Queue(self.down))
        _, received = receiving.take(self.clock.now, size)
        self.clock.at(max(sent, received), then)


class HomeNetwork(Network):
    """Messages of the decisions take their time on the links of both ends."""

    def __init__(self, swarm: "HomeSwarm", chance: Random, weather: Weather) -> None:
        super().__init__(swarm.clock, chance, swarm.machines, weather, swarm.judge.complain)
        self._swarm = swarm
        self._gathering: set[tuple[int, int, int]] = set()

    def send(self, sender: Host, to: str, message: pt.Message) -> None:
        swarm, target = self._swarm, self._swarm.nodes[to]
        deliver = partial(self._deliver, sender, sender.life, target, message)
        match message:
            case pt.Poll():
                step = swarm.nodes[sender.name].step if message.trains else 0
                swarm.carry(sender.name, to, swarm.sizer.poll(message, step), deliver)
            case pt.RoundUpdate() | pt.Redirect():
                _, poll = self._polls.get((to, sender.name), (0, None))
                if self._answers(sender.name, target):
                    assert poll is not None, "it is answered"
                    swarm.carry(sender.name, to, swarm.sizer.poll_reply(message, to, poll), deliver)
            case pt.Goodbye():
                deliver()
            case _:
                swarm.carry(sender.name, to, swarm.sizer.one_way(message, sender.name), deliver)

    def _deliver(self, sender: Host, life: int, target: Host, message: pt.Message) -> None:
        """A shard that is done is fetched before it counts."""
        if not isinstance(message, pt.ShardDone) or message.result.is_void:
            super()._deliver(sender, life, target, message)
            return
        key = message.term, message.round, message.shard
        if key not in self._gathering:
            self._gathering.add(key)
            deliver = partial(super()._deliver, sender, life, target, message)
            self._swarm.fetch(target.name, sender.name, message.round, message.shard, deliver)
