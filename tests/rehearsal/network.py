"""Messages between nodes: lost, doubled, late and in any order, as bad as the weather is.

A poll, a heartbeat, a request for a vote or to close shards is a call: the caller may learn that it failed. A node
that cannot be dialled is never called, only answered, on the connection of its own poll.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Protocol

from tests.rehearsal.clock import Clock
from tsr_swarm.rounds.protocol import (
    Close,
    Event,
    Goodbye,
    Message,
    Poll,
    PollBroken,
    Received,
    Redirect,
    RoundUpdate,
    ShardDone,
    Unreachable,
)
from tsr_swarm.rounds.raft_state import Heartbeat, HeartbeatReply, VoteReply, VoteRequest

TIMEOUT_SECONDS = 5.0  # of a call whose packets vanish
_CALLS = (Poll, Heartbeat, VoteRequest, Close)
_TO_DIALABLE = (Heartbeat, VoteRequest, Close, Poll, ShardDone, Goodbye, HeartbeatReply, VoteReply)


class Host(Protocol):
    """A machine, as the network sees it."""

    name: str
    life: int
    is_dialable: bool

    @property
    def slowness(self) -> float: ...  # of its connection

    @property
    def is_up(self) -> bool: ...

    def put(self, event: Event) -> None: ...


@dataclass(slots=True)
class Weather:
    """How bad the network is: shares of messages, and seconds."""

    latency: float = 0.05
    loss: float = 0.0
    doubles: float = 0.0
    jitter: float = 0.0
    replays: float = 0.0  # delivered once more, long after


class Network:
    """Carries messages between machines in virtual time."""

    def __init__(
        self,
        clock: Clock,
        chance: Random,
        hosts: Mapping[str, Host],
        weather: Weather,
        complain: Callable[[str], None],
    ) -> None:
        self.weather = weather
        self._clock, self._chance, self._hosts, self._complain = clock, chance, hosts, complain
        self._cuts: dict[tuple[str, str], int] = {}  # a message from the first to the second vanishes
        self._polls: dict[tuple[str, str], tuple[int, Poll]] = {}  # (peer, leader) -> life and call that waits

    # --- connections --------------------------------------------------------------------------------------------------

    def cut(self, ways: Iterable[tuple[str, str]]) -> None:
        for way in ways:
            self._cuts[way] = self._cuts.get(way, 0) + 1

    def mend(self, ways: Iterable[tuple[str, str]]) -> None:
        for way in ways:
            self._cuts[way] -= 1

    def passes(self, source: str, to: str) -> bool:
        return not self._cuts.get((source, to))

    def reaches(self, source: str, to: str) -> bool:
        """Whether a call gets through, and its answer back."""
        host = self._hosts.get(to)
        return host is not None and host.is_up and self.passes(source, to) and self.passes(to, source)

    def delay(self, source: str, to: str) -> float:
        weather = self.weather
        slowness = max(self._hosts[source].slowness, self._hosts[to].slowness)
        return weather.latency * slowness * (0.5 + self._chance.random()) + weather.jitter * self._chance.random() ** 3

    # --- messages -----------------------------------------------------------------------------------------------------

    def send(self, sender: Host, to: str, message: Message) -> None:
        target = self._hosts.get(to)
        if target is None:
            self._complain(f"{sender.name} sends to {to!r}, which never was")
            return
        if isinstance(message, _TO_DIALABLE) and not target.is_dialable:
            self._complain(f"{sender.name} calls {to}, which cannot be dialled: {type(message).__name__}")
            return
        if isinstance(message, RoundUpdate | Redirect) and not self._answers(sender.name, target):
            return
        weather, chance = self.weather, self._chance
        if chance.random() < weather.loss:
            self._fail_later(sender, to, message)
            return
        deliver = partial(self._deliver, sender, sender.life, target, message)
        self._clock.after(self.delay(sender.name, to), deliver)
        if weather.doubles and chance.random() < weather.doubles:
            self._clock.after(2 * self.delay(sender.name, to), deliver)
        if weather.replays and chance.random() < weather.replays:
            self._clock.after(10 + 60 * chance.random(), deliver)

    def _answers(self, server: str, poller: Host) -> bool:
        life, _ = self._polls.pop((poller.name, server), (0, None))
        return life == poller.life

    def _deliver(self, sender: Host, life: int, target: Host, message: Message) -> None:
        if not self.passes(sender.name, target.name):
            self._fail_later(sender, target.name, message, life)
        elif not target.is_up:
            if isinstance(message, _CALLS):
                failed = partial(self._tell, sender, life, Unreachable(target.name, message))
                self._clock.after(self.weather.latency, failed)
        else:
            if isinstance(message, Poll):
                self._polls[sender.name, target.name] = (life, message)
            target.put(Received(sender.name, message))

    def _fail_later(self, sender: Host, to: str, message: Message, life: int | None = None) -> None:
        """Let the caller learn late, or not at all, that its packets vanished."""
        if isinstance(message, _CALLS) and self._chance.random() < 0.5:
            failed = partial(self._tell, sender, life or sender.life, Unreachable(to, message))
            self._clock.after(TIMEOUT_SECONDS, failed)

    def _tell(self, host: Host, life: int, event: Event) -> None:
        if host.is_up and host.life == life:
            host.put(event)

    def died(self, host: Host) -> None:
        """Break the connections of a dead process; the other ends learn of it if they can be reached."""
        for (peer, server), (life, poll) in list(self._polls.items()):
            if host.name not in (peer, server):
                continue
            del self._polls[peer, server]
            other = self._hosts[server if host.name == peer else peer]
            event: Event = PollBroken(peer) if host.name == peer else Unreachable(server, poll)
            if self.passes(host.name, other.name):
                told_life = other.life if host.name == peer else life
                self._clock.after(self.delay(host.name, other.name), partial(self._tell, other, told_life, event))
