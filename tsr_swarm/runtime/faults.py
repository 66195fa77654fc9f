"""Faults of a local swarm, placed by peer, round and phase. Pure: event in, what is due out.

How they are written is in placing.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tsr_swarm.runtime.lab.link import Line
from tsr_swarm.telemetry.events import Event, PhaseChanged, RoundOpened

COORDINATOR = 0  # WHO of the coordinator; peers count from 1
PHASES = ("train", "exchange", "commit", "apply")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """SIGKILL to ``who`` when ``phase`` of ``round`` begins."""

    who: int
    round: int
    phase: str = "train"

    def __str__(self) -> str:
        return f"--kill {name_of(self.who)}@{self.round}/{self.phase}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """SIGSTOP to ``who`` and all it started, when ``phase`` of ``round`` begins; SIGCONT after ``seconds``."""

    who: int
    round: int
    phase: str
    seconds: float

    def __str__(self) -> str:
        return f"--stop {name_of(self.who)}@{self.round}/{self.phase}:{self.seconds:g}s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Nothing passes between the two ``sides`` for ``seconds`` from when ``phase`` of ``round`` begins."""

    sides: tuple[frozenset[int], frozenset[int]]
    round: int
    phase: str
    seconds: float

    @property
    def pairs(self) -> frozenset[frozenset[int]]:
        """Who cannot reach whom."""
        one, other = self.sides
        return frozenset(frozenset((a, b)) for a in one for b in other)

    def __str__(self) -> str:
        sides = "|".join(",".join(name_of(who) for who in sorted(side)) for side in self.sides)
        return f"--partition {sides}@{self.round}/{self.phase}:{self.seconds:g}s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """A further peer, of number ``who``, starts when ``round`` opens."""

    who: int
    round: int

    def __str__(self) -> str:
        return f"--join-at {self.round}"


Fault = Kill | Stop | Partition | Join


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPlan:
    """Who takes part in a local swarm, when, with what in its environment, and over what line."""

    peers: int  # started at once; numbers 1 to peers
    faults: tuple[Fault, ...] = ()
    environment: Mapping[int, Mapping[str, str]]  # by WHO
    slowness: Mapping[int, float] = field(default_factory=dict)  # by WHO: how many times longer a step takes
    lines: Mapping[int, Line] = field(default_factory=dict)  # by WHO; only of those that differ from loopback

    @property
    def joins(self) -> int:
        return sum(isinstance(fault, Join) for fault in self.faults)

    @property
    def is_shaped(self) -> bool:
        """Whether anything asks for more than loopback between the processes."""
        return bool(self.lines) or any(isinstance(fault, Partition) for fault in self.faults)


def name_of(who: int) -> str:
    """``peer-2`` or ``coordinator``: its name on screen, its folder and its log."""
    return f"peer-{who}" if who else "coordinator"


def due(faults: Sequence[Fault], event: Event) -> tuple[tuple[Fault, ...], tuple[Fault, ...]]:
    """Split ``faults`` into those that ``event``, of the coordinator's stream, sets off and those still to come."""
    if isinstance(event, RoundOpened):
        moment = (event.round, "train")
    elif isinstance(event, PhaseChanged):
        moment = (event.round, event.phase)
    else:
        return (), tuple(faults)
    now = [_moment(fault) == moment for fault in faults]
    fired = tuple(fault for fault, is_due in zip(faults, now, strict=True) if is_due)
    return fired, tuple(fault for fault, is_due in zip(faults, now, strict=True) if not is_due)


def _moment(fault: Fault) -> tuple[int, str]:
    return (fault.round, "train" if isinstance(fault, Join) else fault.phase)
