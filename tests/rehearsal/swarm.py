"""A rehearsed swarm: its machines, the network between them, the faults in it, and the checks of every step."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random

from tests.rehearsal.clock import Clock
from tests.rehearsal.disk import new_disk
from tests.rehearsal.invariants import InvariantChecker
from tests.rehearsal.machine import Machine, Pace
from tests.rehearsal.network import Network, Weather
from tests.rehearsal.trace import Trace
from tests.rehearsal.work import Units
from tsr_swarm.rounds.raft_state import is_majority
from tsr_swarm.rounds.round_phases import RoundPolicy
from tsr_swarm.rounds.state import Node, known_nodes

PHASES = ("train", "exchange", "commit", "apply")
CLOSING_SECONDS = 45.0  # beyond the ceiling: for a round's averages, its seal and its votes
CALM_SECONDS = 300.0  # after the last fault the swarm has this long to agree again
STUCK_SECONDS = 200.0  # without a round; faults that wait for one are given up
AFTER_ROUNDS = 3  # after the last fault, until everybody agrees
MOST_CALLS = 400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One machine as a schedule describes it."""

    name: str
    trains: bool = True
    is_dialable: bool = True
    pace: Pace = field(default_factory=Pace)
    checkpoint_every: int = 1
    joins_at: float = 0.0
    is_new: bool = False  # without any state
    known: tuple[str, ...] = ()  # whom it was told of, beside the coordinator


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A swarm as it starts."""

    first: str
    members: tuple[Member, ...]
    sizes: tuple[int, ...]
    policy: RoundPolicy
    weather: Weather
    keeps: int = 8


@dataclass(slots=True)
class ActiveFault:
    """A fault that has begun."""

    kind: str
    at: float
    until: float
    recovered: float | None = None  # seconds until a round was committed again
    first_round: int = 0  # that could be lost by it


class Swarm:
    """Runs machines in virtual time until they agree after the last fault, or should have agreed."""

    def __init__(self, layout: Layout, chance: Random, keeps_lines: bool = False) -> None:
        self.layout, self.chance = layout, chance
        self.clock, self.trace = Clock(), Trace(keeps_lines)
        self.bodies: dict[str, tuple[tuple[str, Units], ...]] = {}  # digest -> what an average is of
        self.machines: dict[str, Machine] = {}
        self.checker = InvariantChecker(self)
        self.network = Network(self.clock, chance, self.machines, replace(layout.weather), self.checker.complain)
        self.active_faults: list[ActiveFault] = []
        self.steps = 0
        self.is_over = False
        self.quiet_round: int | None = None  # the newest when the last fault was over
        self._quiet_at = 0.0
        self._waiting: dict[tuple[int, str], list[Callable[[], object]]] = {}
        self._seen: set[tuple[int, str]] = set()
        for member in layout.members:
            self.add(member)

    def add(self, member: Member) -> Machine:
        """Add a machine, which starts when it joins."""
        disk = new_disk(self.layout.keeps, self.layout.first, member.is_new)
        who = member.name, member.trains, member.is_dialable
        machine = Machine(self, *who, disk, member.pace, member.checkpoint_every, member.known)
        self.machines[member.name] = machine
        self.clock.after(member.joins_at, machine.start)
        return machine

    # --- what machines report -----------------------------------------------------------------------------------------

    def note(self, who: str, what: str) -> None:
        self.trace.add(self.clock.now, who, what)

    def stop(self) -> None:
        self.is_over = True

    def remember(self, round: int, shard: int, units: Sequence[tuple[str, Units | None]]) -> str:
        """Keep what an average consists of, and return its digest."""
        parts = tuple((peer, held) for peer, held in units if held is not None)
        digest = hashlib.blake2b(f"{round}/{shard}/{parts}".encode(), digest_size=6).hexdigest()
        self.bodies[digest] = parts
        return digest

    def reached(self, round: int, phase: str) -> None:
        """Begin the faults that wait for this phase of this round."""
        if (round, phase) in self._seen:
            return
        self._seen.add((round, phase))
        for begin in self._waiting.pop((round, phase), []):
            begin()

    def end_round(self, round: int) -> None:
        """A round is committed somewhere for the first time."""
        self.note("*", f"round {round} stands")
        for passed in [key for key in self._waiting if key[0] < round]:  # a void round has no exchange to wait for
            self.reached(*passed)
        for fault in self.active_faults:
            if fault.recovered is None and fault.at < self.clock.now:
                fault.recovered = self.clock.now - fault.at

    # --- faults -------------------------------------------------------------------------------------------------------

    def when(self, round: int, phase: str, delay: float, begin: Callable[[], None]) -> None:
        """Call ``begin`` ``delay`` seconds after the swarm reaches this phase of this round."""
        self._waiting.setdefault((round, phase), []).append(partial(self.clock.after, delay, begin))

    def begin_fault(self, kind: str, seconds: float) -> None:
        """Note that a fault begins now and is over in ``seconds``."""
        now = self.clock.now
        self.note("*", f"{kind} for {seconds:.1f} s")
        self.active_faults.append(ActiveFault(kind, now, now + seconds, first_round=self.checker.newest + 1))

    @property
    def leader(self) -> Machine | None:
        """The machine that leads in the newest term."""
        leads = [m for m in self.machines.values() if m.node is not None and m.node.voter.leads]
        return max(leads, key=lambda m: m.node.voter.term if m.node is not None else 0, default=None)

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until everybody has agreed for some rounds after the last fault, or should have."""
        self.clock.after(1.0, self._look)
        self.steps = self.clock.run(lambda: self.is_over, MOST_CALLS)
        if not self.is_over:
            self.checker.complain(f"{MOST_CALLS} calls were not enough")
        for machine in self.machines.values():
            self.checker.check_memory(machine, len(self.machines), len(self.layout.sizes))

    def _look(self) -> None:
        now = self.clock.now
        over_at = max((fault.until for fault in self.active_faults), default=0.0)
        is_disturbed = now < over_at + 15
        most = self.layout.policy.ceiling_seconds + CLOSING_SECONDS
        for machine in self.machines.values():
            self.checker.look(machine, is_disturbed, most)
        last = max([over_at, *self.checker.committed_at.values()])
        if self._waiting and now - last > STUCK_SECONDS:
            self._waiting.clear()
        if now >= over_at and not self._waiting:
            if self.quiet_round is None or over_at > self._quiet_at:
                self.quiet_round, self._quiet_at = self.checker.newest, now
            self._check_calm(now)
        if not self.is_over:
            self.clock.after(1.0, self._look)

    def _check_calm(self, now: float) -> None:
        assert self.quiet_round is not None, "it is quiet"
        if self.layout.policy.last_round and self.checker.newest >= self.layout.policy.last_round:
            self._check_end(now)
            return
        calm = now - self._quiet_at
        wanted = self.quiet_round + AFTER_ROUNDS
        behind = [node.me for node in self._connected() if node.peer.applied < wanted]
        if not self._can_go_on():
            self._check_pause(calm)
        elif self.checker.newest > wanted and not behind:
            self._check_agreement()
        elif calm > CALM_SECONDS:
            applied = {m.name: m.node.peer.applied for m in self.machines.values() if m.node is not None}
            self.checker.complain(f"no agreement on round {wanted}, {calm:.0f} s after the last fault: {applied}")
            self.stop()

    def _check_end(self, now: float) -> None:
        """Check that every machine that was up when the last round was committed has it and has left."""
        finished = self.checker.committed_at[self.layout.policy.last_round]
        here = [m.name for m in self.machines.values() if m.is_up]
        if here and now < max(finished, self._quiet_at) + 90:
            return
        if here and self._quiet_at + 60 < finished:
            self.checker.complain(f"the run is over and {here} go on")
        self.stop()

    def _check_pause(self, calm: float) -> None:
        """Check that without a majority no round is committed but the one under way."""
        if calm > 60 and self.checker.newest > (self.quiet_round or 0) + 1:
            self.checker.complain("rounds stand without a majority of voters")
        if calm > 60:
            self.stop()

    def _check_agreement(self) -> None:
        chains = {(node.peer.applied, node.peer.chain) for node in self._connected()}
        if any(self.checker.committed.get(round) != chain for round, chain in sorted(chains)):
            self.checker.complain(f"those that are up do not agree: {sorted(chains)}")
        self.stop()

    def _connected(self) -> list[Node]:
        """Return the nodes that are up and know another one that is; the others cannot find anybody."""
        nodes = [m.node for m in self.machines.values() if m.node is not None]
        up = {node.me for node in nodes}
        return [node for node in nodes if not up.isdisjoint((*known_nodes(node), node.voter.leader))]

    def _can_go_on(self) -> bool:
        """Return whether the nodes that are up can elect a leader, and enough peers are left to train."""
        nodes = [m.node for m in self.machines.values() if m.node is not None and not m.is_suspended]
        peers = sum(node.identity.trains for node in nodes)
        policy = self.layout.policy
        if not nodes or peers < max(1, policy.quorum, 0 if self.checker.newest else policy.min_peers):
            return False
        newest = max((node.voter.hard_state.base for node in nodes), key=lambda record: record.round)
        here = [node.me for node in nodes]
        knows = any(node.voter.hard_state.base.round == newest.round and node.me in newest.voters for node in nodes)
        return knows and is_majority(here, newest.voters)
