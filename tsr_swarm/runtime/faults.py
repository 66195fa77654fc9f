"""Faults of a local swarm, placed by peer, round and phase. Pure: text in, plan out; event in, what is due out.

A kill is ``WHO@ROUND[/PHASE]``: WHO is a peer's number from 1 or ``coordinator``. A peer that joins late is ``ROUND``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tsr_swarm.telemetry.events import Event, PhaseChanged, RoundOpened

COORDINATOR = 0  # WHO of the coordinator; peers count from 1
PHASES = ("train", "exchange", "commit", "apply")
KILL_FORM = "WHO@ROUND[/PHASE], such as 2@3 or coordinator@3/commit"
ENV_FORM = "WHO:KEY=VALUE, such as 2:OMP_NUM_THREADS=2"
_KILL = re.compile(r"(coordinator|[1-9][0-9]{0,8})@([1-9][0-9]{0,8})(?:/([a-z]+))?")
_ENV = re.compile(r"(coordinator|[1-9][0-9]{0,8}):([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


class FaultError(ValueError):
    """A fault cannot be read or placed. Its text is a sentence with the legal form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """SIGKILL to ``who`` when ``phase`` of ``round`` begins."""

    who: int
    round: int
    phase: str = "train"

    def __str__(self) -> str:
        return f"{name_of(self.who)}@{self.round}/{self.phase}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """A further peer, of number ``who``, starts when ``round`` opens."""

    who: int
    round: int


Fault = Kill | Join


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPlan:
    """Who takes part in a local swarm, when, and with what in its environment."""

    peers: int  # started at once; numbers 1 to peers
    faults: tuple[Fault, ...] = ()
    environment: Mapping[int, Mapping[str, str]]  # by WHO

    @property
    def joins(self) -> int:
        return sum(isinstance(fault, Join) for fault in self.faults)


def name_of(who: int) -> str:
    """``peer-2`` or ``coordinator``: its name on screen, its folder and its log."""
    return f"peer-{who}" if who else "coordinator"


def plan_local(
    *, peers: int, rounds: int, kills: Sequence[str], join_rounds: Sequence[int], environment: Sequence[str]
) -> LocalPlan:
    """Read the faults of one run of ``rounds`` rounds (0: endless). Raises FaultError for one that cannot happen."""
    joins = [Join(who=peers + n, round=r) for n, r in enumerate(sorted(join_rounds), start=1)]
    parsed = [_parse_kill(text) for text in kills]
    for join in joins:
        _check_round(f"--join-at {join.round}", join.round, rounds)
    for text, kill in zip(kills, parsed, strict=True):
        _check_who(f"--kill {text}", kill.who, peers + len(joins), KILL_FORM)
        _check_round(f"--kill {text}", kill.round, rounds)
    _check_alive(parsed, joins)
    variables: dict[int, dict[str, str]] = {}
    for text in environment:
        who, key, value = _parse_env(text)
        _check_who(f"--env {text}", who, peers + len(joins), ENV_FORM)
        variables.setdefault(who, {})[key] = value
    return LocalPlan(peers=peers, faults=(*joins, *parsed), environment=variables)


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
    return (fault.round, fault.phase if isinstance(fault, Kill) else "train")


def _parse_kill(text: str) -> Kill:
    match = _KILL.fullmatch(text)
    if match is None:
        raise FaultError(f"--kill {text} cannot be read; write {KILL_FORM}.")
    phase = match[3] or "train"
    if phase not in PHASES:
        raise FaultError(f"--kill {text} names no phase of a round; it is one of {', '.join(PHASES)}.")
    return Kill(who=_who(match[1]), round=int(match[2]), phase=phase)


def _parse_env(text: str) -> tuple[int, str, str]:
    match = _ENV.fullmatch(text)
    if match is None or "\0" in text:
        raise FaultError(f"--env {text!r} cannot be read; write {ENV_FORM}.")
    return _who(match[1]), match[2], match[3]


def _who(text: str) -> int:
    return COORDINATOR if text == "coordinator" else int(text)


def _check_who(what: str, who: int, last: int, form: str) -> None:
    if who > last:
        raise FaultError(f"{what} is for peer {who}, but this swarm has peers 1 to {last}; write {form}.")


def _check_round(what: str, round: int, rounds: int) -> None:
    if round < 1 or (rounds and round > rounds):
        last = str(rounds) if rounds else "any later one"
        raise FaultError(f"{what} cannot be placed; the rounds of this run are 1 to {last}.")


def _check_alive(kills: Sequence[Kill], joins: Sequence[Join]) -> None:
    joined = {join.who: join.round for join in joins}
    killed: set[int] = set()
    for kill in kills:
        if kill.who in killed:
            raise FaultError(f"--kill {kill} comes after the same one was killed; kill each once.")
        if kill.round < joined.get(kill.who, 1):
            raise FaultError(
                f"--kill {kill} comes before that peer joins in round {joined[kill.who]}; name a later one."
            )
        killed.add(kill.who)
