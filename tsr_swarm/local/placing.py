"""What people write to make things happen to a local swarm: text in, plan out, or one sentence that says what is legal.

WHO is a peer's number from 1 or ``coordinator``, or what somebody does when the moment comes: ``leader``, ``reducer``.
A moment is ``WHO@ROUND[/PHASE]``, with ``:SECONDS`` for what ends by itself, or comes later. ``--kill 2@9/state``
kills peer 2 right after it has taken a state, in round 9 or later.
"""

import re
from collections.abc import Mapping, Sequence

from tsr_swarm.config.units import parse_seconds
from tsr_swarm.errors import ConfigError
from tsr_swarm.local.fault_flags import LineTexts, read_lines
from tsr_swarm.local.faults import (
    COORDINATOR,
    PHASES,
    STATE,
    ActingRole,
    Back,
    Fault,
    Kill,
    LateJoin,
    LocalPlan,
    Partition,
    Suspend,
    Who,
    name_of,
)

KILL_FORM = "WHO@ROUND[/PHASE], such as 2@3 or leader@3/commit"
BACK_FORM = "WHO@ROUND[/PHASE][:SECONDS], such as 2@5 or leader@3/commit:20s"
STOP_FORM = "WHO@ROUND[/PHASE][:SECONDS], such as 2@3:20s"
PARTITION_FORM = "WHO,...|WHO,...@ROUND[/PHASE][:SECONDS], such as coordinator,1|2,3@4:30s"
ENV_FORM = "WHO:KEY=VALUE, such as 2:OMP_NUM_THREADS=2"
SLOW_FORM = "WHO:FACTOR, such as 2:4"
STOP_SECONDS, PARTITION_SECONDS = 20.0, 30.0  # unless the text says otherwise
MAX_SECONDS, MAX_FACTOR = 86400.0, 1000.0
_WHO = r"(?:coordinator|[1-9][0-9]{0,8})"
_ROLE = rf"(?:{_WHO}|leader|reducer)"
_MOMENT = r"@([1-9][0-9]{0,8})(?:/([a-z]+))?"
_KILL = re.compile(rf"({_ROLE}){_MOMENT}")
_STOP = re.compile(rf"({_ROLE}){_MOMENT}(?::(.+))?")
_PARTITION = re.compile(rf"({_WHO}(?:,{_WHO})*)\|({_WHO}(?:,{_WHO})*){_MOMENT}(?::(.+))?")
_ENV = re.compile(rf"({_WHO}):([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_SLOW = re.compile(rf"({_WHO}):([0-9]{{1,9}}(?:\.[0-9]{{1,9}})?)")


class FaultError(ValueError):
    """A fault cannot be read or placed. Its text is a sentence with the legal form."""


def plan_local(
    *,
    peers: int,
    rounds: int,
    kills: Sequence[str] = (),
    backs: Sequence[str] = (),
    join_rounds: Sequence[int] = (),
    environment: Sequence[str] = (),
    stops: Sequence[str] = (),
    partitions: Sequence[str] = (),
    slow: Sequence[str] = (),
    lines: LineTexts | None = None,
) -> LocalPlan:
    """Read what happens in one run of ``rounds`` rounds (0: endless). Raises FaultError for what cannot happen."""
    joins = [LateJoin(who=peers + n, round=r) for n, r in enumerate(sorted(join_rounds), start=1)]
    last = peers + len(joins)
    for join in joins:
        _check_round(str(join), join.round, rounds)
    faults: list[Kill | Back | Suspend | Partition] = []
    for texts, read in ((kills, _kill), (backs, _back), (stops, _stop), (partitions, _partition)):
        for text in texts:
            fault = read(text, last)
            _check_round(f"{_flag(fault)} {text}", fault.round, rounds)
            if fault in faults:
                raise FaultError(f"{_flag(fault)} {text} is there twice; say it once.")
            faults.append(fault)
    _check_alive(faults, joins)
    try:
        shaped = read_lines(lines or LineTexts(), last)
    except ConfigError as error:
        raise FaultError(str(error)) from None
    return LocalPlan(
        peers=peers,
        faults=(*joins, *faults),
        environment=_environment(environment, last),
        slowness=_slowness(slow, last),
        lines=shaped,
    )


def _kill(text: str, last: int) -> Kill:
    match = _KILL.fullmatch(text)
    if match is None:
        raise FaultError(f"--kill {text} cannot be read; write {KILL_FORM}.")
    who = _somebody(match[1], f"--kill {text}", last, KILL_FORM)
    if match[3] == STATE and isinstance(who, ActingRole):
        raise FaultError(
            f"--kill {text} cannot be: a role takes no state; name the coordinator or a peer, 1 to {last}."
        )
    phase = STATE if match[3] == STATE else _phase(f"--kill {text}", match[3], STATE)
    return Kill(who=who, round=int(match[2]), phase=phase)


def _back(text: str, last: int) -> Back:
    what, match = f"--back {text}", _STOP.fullmatch(text)
    if match is None:
        raise FaultError(f"{what} cannot be read; write {BACK_FORM}.")
    who = _somebody(match[1], what, last, BACK_FORM)
    seconds = _seconds(what, match[4], 0.0)
    return Back(who=who, round=int(match[2]), phase=_phase(what, match[3]), seconds=seconds)


def _stop(text: str, last: int) -> Suspend:
    what, match = f"--stop {text}", _STOP.fullmatch(text)
    if match is None:
        raise FaultError(f"{what} cannot be read; write {STOP_FORM}.")
    who = _somebody(match[1], what, last, STOP_FORM)
    seconds = _seconds(what, match[4], STOP_SECONDS)
    return Suspend(who=who, round=int(match[2]), phase=_phase(what, match[3]), seconds=seconds)


def _partition(text: str, last: int) -> Partition:
    what, match = f"--partition {text}", _PARTITION.fullmatch(text)
    if match is None:
        raise FaultError(f"{what} cannot be read; write {PARTITION_FORM}.")
    one, other = (frozenset(_everybody(match[side], what, last, PARTITION_FORM)) for side in (1, 2))
    if one & other:
        raise FaultError(f"{what} names somebody on both sides; write {PARTITION_FORM}.")
    seconds = _seconds(what, match[5], PARTITION_SECONDS)
    return Partition(sides=(one, other), round=int(match[3]), phase=_phase(what, match[4]), seconds=seconds)


def _phase(what: str, phase: str | None, *more: str) -> str:
    """``more``: what else the sentence says that can be written there."""
    if phase and phase not in PHASES:
        raise FaultError(f"{what} names no phase of a round; it is one of {', '.join((*PHASES, *more))}.")
    return phase or PHASES[0]


def _seconds(what: str, text: str | None, otherwise: float) -> float:
    if text is None:
        return otherwise
    try:
        seconds = parse_seconds(text)
    except ConfigError as error:
        raise FaultError(f"{what} cannot be read: {error}") from None
    if not 0 < seconds <= MAX_SECONDS:
        raise FaultError(f"{what} lasts {seconds:g} s; write a time above 0 and of at most {MAX_SECONDS:g} s.")
    return seconds


def _environment(texts: Sequence[str], last: int) -> Mapping[int, Mapping[str, str]]:
    variables: dict[int, dict[str, str]] = {}
    for text in texts:
        match = _ENV.fullmatch(text)
        if match is None or "\0" in text:
            raise FaultError(f"--env {text!r} cannot be read; write {ENV_FORM}.")
        [who] = _everybody(match[1], f"--env {text}", last, ENV_FORM)
        variables.setdefault(who, {})[match[2]] = match[3]
    return variables


def _slowness(texts: Sequence[str], last: int) -> Mapping[int, float]:
    factors: dict[int, float] = {}
    for text in texts:
        what, match = f"--slow {text}", _SLOW.fullmatch(text)
        if match is None:
            raise FaultError(f"{what} cannot be read; write {SLOW_FORM}.")
        [who] = _everybody(match[1], what, last, SLOW_FORM)
        factor = float(match[2])
        if who == COORDINATOR:
            raise FaultError(f"{what} cannot be: the coordinator does not train; name a peer, 1 to {last}.")
        if not 1 <= factor <= MAX_FACTOR:
            raise FaultError(f"{what} is out of range; the factor is from 1 to {MAX_FACTOR:g}, such as {who}:4.")
        if who in factors:
            raise FaultError(f"{what} says it a second time for peer {who}; say it once.")
        factors[who] = factor
    return factors


def _somebody(text: str, what: str, last: int, form: str) -> Who:
    roles = [role for role in ActingRole if role.value == text]
    return roles[0] if roles else _everybody(text, what, last, form)[0]


def _everybody(text: str, what: str, last: int, form: str) -> list[int]:
    found = [COORDINATOR if name == "coordinator" else int(name) for name in text.split(",")]
    for who in found:
        if who > last:
            raise FaultError(f"{what} is for peer {who}, but this swarm has peers 1 to {last}; write {form}.")
    return found


def _check_round(what: str, round: int, rounds: int) -> None:
    if round < 1 or (rounds and round > rounds):
        last = str(rounds) if rounds else "any later one"
        raise FaultError(f"{what} cannot be placed; the rounds of this run are 1 to {last}.")


def _check_alive(faults: Sequence[Kill | Back | Suspend | Partition], joins: Sequence[LateJoin]) -> None:
    """Who is killed or stopped runs at that moment, and who comes back was killed. Of roles nobody knows beforehand."""
    joined = {join.who: join.round for join in joins}
    killed: dict[Who, Kill] = {}
    for fault in sorted((fault for fault in faults if not isinstance(fault, Partition)), key=_order):
        who, dead = fault.who, killed.get(fault.who)
        if isinstance(who, int) and fault.round < joined.get(who, 1):
            raise FaultError(f"{fault} comes before that peer joins in round {joined[who]}; name a later one.")
        if isinstance(fault, Back):
            if dead is None:
                raise FaultError(f"{fault} needs somebody who was killed before; add --kill {_written(who)}@ROUND.")
            del killed[who]
        elif dead is not None and isinstance(who, int):
            what = "kill each once, or bring it back" if isinstance(fault, Kill) else "name an earlier moment"
            raise FaultError(f"{fault} comes after the same one was killed; {what}.")
        elif isinstance(fault, Kill):
            killed[who] = fault


def _order(fault: Kill | Back | Suspend) -> tuple[int, int, float]:
    """By moment; what comes later than its moment comes after what happens at it."""
    later = fault.seconds if isinstance(fault, Back) else 0.0
    return fault.round, (*PHASES, STATE).index(fault.phase), later


def _written(who: Who) -> str:
    return str(who) if isinstance(who, int) and who else name_of(who)


def _flag(fault: Fault) -> str:
    return str(fault).partition(" ")[0]
