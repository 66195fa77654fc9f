"""Faults of a local swarm, placed by node, round and phase. Pure: an event in, the faults that are due out.

How they are written is in flags.py. WHO of a node is its number: COORDINATOR, or that of a peer, which count from 1.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from tsr_swarm.local.network.packets import HomeLine
from tsr_swarm.telemetry.events import Event, PhaseChanged, RoundOpened

COORDINATOR = 0
PHASES = ("train", "exchange", "commit", "apply")
STATE = "state"  # of a Kill, instead of a phase: when ``who`` has received a state, in that round or later


class ActingRole(Enum):
    """A role in place of WHO: of whoever has it when the moment comes."""

    LEADER = "leader"
    REDUCER = "reducer"  # a peer that averages a part of the round and does not lead


Who = int | ActingRole
Moment = tuple[int, int]  # a round, and the index of a phase in it; ordered by time


@dataclass(frozen=True, kw_only=True)
class NodeFault:
    """Something that happens to ``who`` when ``phase`` of ``round`` begins."""

    flag: ClassVar[str]  # of the command line

    who: Who
    round: int
    phase: str = "train"
    seconds: float = 0.0

    def __str__(self) -> str:
        seconds = f":{self.seconds:g}s" if self.seconds else ""
        return f"--{self.flag} {name_of(self.who)}@{self.round}/{self.phase}{seconds}"


class Kill(NodeFault):
    """SIGKILL. ``phase`` may be STATE."""

    flag = "kill"


class Restart(NodeFault):
    """The node, which was killed, is started again after ``seconds``. ``who``: as it was written in its Kill."""

    flag = "back"


@dataclass(frozen=True, kw_only=True)
class Suspend(NodeFault):
    """SIGSTOP to the node and to all that it started; SIGCONT after ``seconds``, or when ``rounds`` are over."""

    flag = "stop"

    rounds: int = 0

    def __str__(self) -> str:
        return f"{super().__str__()}:{self.rounds}r" if self.rounds else super().__str__()


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Nothing passes between the two ``sides`` for ``seconds`` or ``rounds`` from ``phase`` of ``round`` on."""

    sides: tuple[frozenset[int], frozenset[int]]
    round: int
    phase: str
    seconds: float = 0.0
    rounds: int = 0

    @property
    def pairs(self) -> frozenset[frozenset[int]]:
        """Who cannot reach whom."""
        one, other = self.sides
        return frozenset(frozenset((a, b)) for a in one for b in other)

    def __str__(self) -> str:
        duration = f"{self.rounds}r" if self.rounds else f"{self.seconds:g}s"
        sides = "|".join(",".join(name_of(who) for who in sorted(side)) for side in self.sides)
        return f"--partition {sides}@{self.round}/{self.phase}:{duration}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LateJoin:
    """A further peer, of number ``who``, starts when ``round`` opens."""

    who: int
    round: int

    def __str__(self) -> str:
        return f"--join-at {self.round}"


Fault = NodeFault | Partition | LateJoin


def is_over(fault: Suspend | Partition, now: Moment) -> bool:
    """Whether ``fault``, if it lasts for rounds, ends by ``now``: when the round after its last one opens."""
    return bool(fault.rounds) and now[0] >= fault.round + fault.rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPlan:
    """Who takes part in a local swarm, when, with what in its environment, and over what link."""

    peers: int  # started at once; numbers 1 to peers
    faults: tuple[Fault, ...] = ()
    environment: Mapping[int, Mapping[str, str]]  # by WHO
    slowness: Mapping[int, float] = field(default_factory=dict)  # by WHO: how many times longer a step takes
    lines: Mapping[int, HomeLine] = field(default_factory=dict)  # by WHO; only those that differ from loopback

    @property
    def joins(self) -> int:
        return sum(isinstance(fault, LateJoin) for fault in self.faults)

    @property
    def is_shaped(self) -> bool:
        """Whether anything asks for more than loopback between the processes."""
        return bool(self.lines) or any(isinstance(fault, Partition) for fault in self.faults)


def name_of(who: Who) -> str:
    """``peer-2`` or ``coordinator``: the name on screen, of its folder and of its log; or the name of a role."""
    if isinstance(who, ActingRole):
        return who.value
    return f"peer-{who}" if who else "coordinator"


def who_of(name: str) -> int | None:
    """The inverse of ``name_of`` for nodes; None for any other text."""
    if name == name_of(COORDINATOR):
        return COORDINATOR
    match = re.fullmatch("peer-([1-9][0-9]{0,8})", name)
    return None if match is None else int(match[1])


def text_of(fault: NodeFault | Partition, who: int) -> str:
    """``fault`` as it is written, and the node that has its role now, if it names a role."""
    is_role = isinstance(fault, NodeFault) and isinstance(fault.who, ActingRole)
    return f"{fault} ({name_of(who)})" if is_role else str(fault)


def moment_of(event: Event) -> Moment | None:
    """The moment that an event of the leader announces, if it does."""
    match event:
        case RoundOpened(round=round):
            return round, 0
        case PhaseChanged(round=round, phase=phase) if phase in PHASES:
            return round, PHASES.index(phase)
    return None


def due(faults: Sequence[Fault], event: Event, before: Moment | None = None) -> list[Fault]:
    """Those of ``faults`` that are due with ``event``, of the leader.

    Also due are those between ``before``, the newest moment that was announced, and this one: a leader that died may
    have announced none of them.
    """
    now = moment_of(event)
    if now is None:
        return []
    placed = [(_moment(fault), fault) for fault in faults if not _awaits_state(fault)]
    return [fault for moment, fault in placed if moment == now or (before is not None and before < moment < now)]


def due_with_state(faults: Sequence[Fault], who: int, now: Moment) -> list[Fault]:
    """Those of ``faults`` that are due because ``who`` has received a state."""
    kills = [fault for fault in faults if isinstance(fault, Kill) and _awaits_state(fault)]
    return [kill for kill in kills if kill.who == who and kill.round <= now[0]]


def _awaits_state(fault: Fault) -> bool:
    return isinstance(fault, Kill) and fault.phase == STATE


def _moment(fault: Fault) -> Moment:
    return fault.round, 0 if isinstance(fault, LateJoin) else PHASES.index(fault.phase)
