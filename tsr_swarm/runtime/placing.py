"""What people write to make things happen to a local swarm: text in, plan out, or one sentence that says what is legal.

WHO is a peer's number from 1 or ``coordinator``. A moment is ``WHO@ROUND[/PHASE]``, with ``:SECONDS`` for what ends by
itself.
"""

import re
from collections.abc import Mapping, Sequence

from tsr_swarm.config.units import parse_seconds
from tsr_swarm.errors import ConfigError
from tsr_swarm.runtime.faults import COORDINATOR, PHASES, Fault, Join, Kill, LocalPlan, Partition, Stop
from tsr_swarm.runtime.lab.flags import LineTexts, read_lines

KILL_FORM = "WHO@ROUND[/PHASE], such as 2@3 or coordinator@3/commit"
STOP_FORM = "WHO@ROUND[/PHASE][:SECONDS], such as 2@3:20s"
PARTITION_FORM = "WHO,...|WHO,...@ROUND[/PHASE][:SECONDS], such as coordinator,1|2,3@4:30s"
ENV_FORM = "WHO:KEY=VALUE, such as 2:OMP_NUM_THREADS=2"
SLOW_FORM = "WHO:FACTOR, such as 2:4"
STOP_SECONDS, PARTITION_SECONDS = 20.0, 30.0  # unless the text says otherwise
MAX_SECONDS, MAX_FACTOR = 86400.0, 1000.0
_WHO = r"(?:coordinator|[1-9][0-9]{0,8})"
_MOMENT = r"@([1-9][0-9]{0,8})(?:/([a-z]+))?"
_KILL = re.compile(rf"({_WHO}){_MOMENT}")
_STOP = re.compile(rf"({_WHO}){_MOMENT}(?::(.+))?")
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
    join_rounds: Sequence[int] = (),
    environment: Sequence[str] = (),
    stops: Sequence[str] = (),
    partitions: Sequence[str] = (),
    slow: Sequence[str] = (),
    lines: LineTexts | None = None,
) -> LocalPlan:
    """Read what happens in one run of ``rounds`` rounds (0: endless). Raises FaultError for what cannot happen."""
    joins = [Join(who=peers + n, round=r) for n, r in enumerate(sorted(join_rounds), start=1)]
    last = peers + len(joins)
    for join in joins:
        _check_round(str(join), join.round, rounds)
    faults: list[Kill | Stop | Partition] = []
    for texts, read in ((kills, _kill), (stops, _stop), (partitions, _partition)):
        for text in texts:
            fault = read(text, last)
            _check_round(f"{_flag(fault)} {text}", fault.round, rounds)
            if fault in faults and not isinstance(fault, Kill):
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
    [who] = _everybody(match[1], f"--kill {text}", last, KILL_FORM)
    return Kill(who=who, round=int(match[2]), phase=_phase(f"--kill {text}", match[3]))


def _stop(text: str, last: int) -> Stop:
    what, match = f"--stop {text}", _STOP.fullmatch(text)
    if match is None:
        raise FaultError(f"{what} cannot be read; write {STOP_FORM}.")
    [who] = _everybody(match[1], what, last, STOP_FORM)
    seconds = _seconds(what, match[4], STOP_SECONDS)
    return Stop(who=who, round=int(match[2]), phase=_phase(what, match[3]), seconds=seconds)


def _partition(text: str, last: int) -> Partition:
    what, match = f"--partition {text}", _PARTITION.fullmatch(text)
    if match is None:
        raise FaultError(f"{what} cannot be read; write {PARTITION_FORM}.")
    one, other = (frozenset(_everybody(match[side], what, last, PARTITION_FORM)) for side in (1, 2))
    if one & other:
        raise FaultError(f"{what} names somebody on both sides; write {PARTITION_FORM}.")
    seconds = _seconds(what, match[5], PARTITION_SECONDS)
    return Partition(sides=(one, other), round=int(match[3]), phase=_phase(what, match[4]), seconds=seconds)


def _phase(what: str, phase: str | None) -> str:
    if phase and phase not in PHASES:
        raise FaultError(f"{what} names no phase of a round; it is one of {', '.join(PHASES)}.")
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


def _check_alive(faults: Sequence[Kill | Stop | Partition], joins: Sequence[Join]) -> None:
    """Who is killed or stopped runs at that moment."""
    joined = {join.who: join.round for join in joins}
    killed: dict[int, tuple[int, int]] = {}
    for fault in faults:  # kills come first
        if isinstance(fault, Partition):
            continue
        if isinstance(fault, Kill) and fault.who in killed:
            raise FaultError(f"{fault} comes after the same one was killed; kill each once.")
        if fault.who in killed and _moment(fault) >= killed[fault.who]:
            raise FaultError(f"{fault} comes after the same one was killed; name an earlier moment.")
        if fault.round < joined.get(fault.who, 1):
            raise FaultError(f"{fault} comes before that peer joins in round {joined[fault.who]}; name a later one.")
        if isinstance(fault, Kill):
            killed[fault.who] = _moment(fault)


def _moment(fault: Kill | Stop) -> tuple[int, int]:
    return (fault.round, PHASES.index(fault.phase))


def _flag(fault: Fault) -> str:
    return str(fault).partition(" ")[0]
