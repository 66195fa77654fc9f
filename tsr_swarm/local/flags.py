"""The flags of ``tsr-swarm local`` that say what happens to its swarm: text in, a plan or a ConfigError out.

WHO is a peer's number from 1 or ``coordinator``. A fault is placed at a moment: ``WHO@ROUND[/PHASE]``, with
``:SECONDS`` for one that lasts or comes later, or ``:ROUNDS`` (2r) for one that lasts; there WHO may also be a role,
``leader`` or ``reducer``, of whoever has it then. ``--kill 2@9/state`` kills peer 2 right after it has received a
state, in round 9 or later. Links are given as ``WHO:VALUE``, where WHO may be ``all``: what is said of one node has
precedence.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsr_swarm.config.link import parse_rate, parse_seconds
from tsr_swarm.errors import ConfigError
from tsr_swarm.local.faults import (
    COORDINATOR,
    PHASES,
    STATE,
    ActingRole,
    Fault,
    Kill,
    LateJoin,
    LocalPlan,
    NodeFault,
    Partition,
    Restart,
    Suspend,
    Who,
    name_of,
)
from tsr_swarm.local.network.packets import HomeLine

ALL = "all"
STOP_SECONDS, PARTITION_SECONDS = 20.0, 30.0  # unless the text says otherwise
MAX_SECONDS, MAX_FACTOR, MAX_RTT = 86400.0, 1000.0, 60.0
_WHO = r"(?:coordinator|[1-9][0-9]{0,8})"
_ROLE = rf"(?:{_WHO}|leader|reducer)"
_SIDE = rf"{_WHO}(?:,{_WHO})*"
_MOMENT = r"@([1-9][0-9]{0,8})(?:/([a-z]+))?(?::(.+))?"
_NODE = f"({_ROLE}){_MOMENT}"
_LINK_VALUE = rf"(all|{_WHO}):(.+)"

Flags = Mapping[str, Sequence[str] | None]  # what was written after each flag


def plan_local(flags: Flags, join_at: Sequence[int], peers: int, rounds: int) -> LocalPlan:
    """Read what happens in one run of ``rounds`` rounds (0: endless). Raises ConfigError for what cannot happen.

    ``join_at``: in which rounds a further peer joins.
    """
    assert flags.keys() <= {*_FAULTS, *_LINK_VALUES, "env", "slow", "nat"}
    joins = [LateJoin(who=peers + n, round=r) for n, r in enumerate(sorted(join_at), start=1)]
    last = peers + len(joins)
    for join in joins:
        _check_round(str(join), join.round, rounds)
    faults: list[NodeFault | Partition] = []
    for name, (pattern, form, read) in _FAULTS.items():
        for text in flags.get(name) or ():
            flag = _Flag(name, text, form, last)
            fault = read(flag, *flag.match(pattern))
            _check_round(str(flag), fault.round, rounds)
            if fault in faults:
                raise ConfigError(f"{flag} is there twice; say it once.")
            faults.append(fault)
    _check_alive(faults, joins)
    return LocalPlan(
        peers=peers,
        faults=(*joins, *faults),
        lines=_read_links(flags, last),
        environment=_read_environment(flags.get("env") or (), last),
        slowness=_read_slowness(flags.get("slow") or (), last),
    )


@dataclass(frozen=True, slots=True)
class _Flag:
    """One flag of the command line, and what its refusals name: the legal form, the number of the last peer."""

    name: str
    text: str
    form: str
    last: int

    def __str__(self) -> str:
        return f"--{self.name} {self.text}"

    def match(self, pattern: str) -> tuple[str, ...]:
        """The groups of ``pattern``, which the whole text has to match; those that are not there are empty."""
        match = re.fullmatch(pattern, self.text)
        if match is None:
            raise self.unreadable()
        return match.groups("")

    def unreadable(self) -> ConfigError:
        text = repr(self.text) if self.name == "env" else self.text
        return ConfigError(f"--{self.name} {text} cannot be read; write {self.form}.")

    def parse(self, parse: Callable[[str], float], text: str) -> float:
        try:
            return parse(text)
        except ConfigError as error:
            raise ConfigError(f"{self} cannot be read: {error}") from None

    def who(self, name: str) -> int:
        who = COORDINATOR if name == "coordinator" else int(name)
        if who > self.last:
            raise ConfigError(
                f"{self} is for peer {who}, but this swarm has peers 1 to {self.last}; write {self.form}."
            )
        return who

    def who_or_role(self, name: str) -> Who:
        return ActingRole(name) if name in [role.value for role in ActingRole] else self.who(name)

    def phase(self, phase: str, *more: str) -> str:
        """``more``: what else than a phase of a round can be written here."""
        legal = (*PHASES, *more)
        if phase and phase not in legal:
            raise ConfigError(f"{self} names no phase of a round; it is one of {', '.join(legal)}.")
        return phase or PHASES[0]

    def duration(self, text: str, otherwise: float) -> Mapping[str, Any]:
        """The fields of a fault that lasts: ``rounds`` or ``seconds``."""
        rounds = re.fullmatch("([1-9][0-9]{0,8})r", text)
        return {"seconds": self.seconds(text, otherwise)} if rounds is None else {"rounds": int(rounds[1])}

    def seconds(self, text: str, otherwise: float) -> float:
        if not text:
            return otherwise
        seconds = self.parse(parse_seconds, text)
        if not 0 < seconds <= MAX_SECONDS:
            raise ConfigError(f"{self} lasts {seconds:g} s; write a time above 0 and of at most {MAX_SECONDS:g} s.")
        return seconds


def _read_kill(flag: _Flag, name: str, round: str, phase: str, seconds: str) -> Kill:
    if seconds:
        raise flag.unreadable()
    who = flag.who_or_role(name)
    if phase == STATE and isinstance(who, ActingRole):
        raise ConfigError(f"{flag} cannot be: a role takes no state; name the coordinator or a peer, 1 to {flag.last}.")
    return Kill(who=who, round=int(round), phase=flag.phase(phase, STATE))


def _read_restart(flag: _Flag, name: str, round: str, phase: str, text: str) -> Restart:
    who, seconds = flag.who_or_role(name), flag.seconds(text, 0.0)
    return Restart(who=who, round=int(round), phase=flag.phase(phase), seconds=seconds)


def _read_suspend(flag: _Flag, name: str, round: str, phase: str, text: str) -> Suspend:
    who, lasts = flag.who_or_role(name), flag.duration(text, STOP_SECONDS)
    return Suspend(who=who, round=int(round), phase=flag.phase(phase), **lasts)


def _read_partition(flag: _Flag, one: str, other: str, round: str, phase: str, text: str) -> Partition:
    sides = (frozenset(map(flag.who, one.split(","))), frozenset(map(flag.who, other.split(","))))
    if sides[0] & sides[1]:
        raise ConfigError(f"{flag} names somebody on both sides; write {flag.form}.")
    lasts = flag.duration(text, PARTITION_SECONDS)
    return Partition(sides=sides, round=int(round), phase=flag.phase(phase), **lasts)


# By flag: the pattern of its text, the form that a refusal shows, and what reads the pattern's groups.
_FAULTS: Mapping[str, tuple[str, str, Callable[..., NodeFault | Partition]]] = {
    "kill": (_NODE, "WHO@ROUND[/PHASE], such as 2@3 or leader@3/commit", _read_kill),
    "back": (_NODE, "WHO@ROUND[/PHASE][:SECONDS], such as 2@5 or leader@3/commit:20s", _read_restart),
    "stop": (_NODE, "WHO@ROUND[/PHASE][:SECONDS or :ROUNDS], such as 2@3:20s or 2@3:2r", _read_suspend),
    "partition": (
        rf"({_SIDE})\|({_SIDE}){_MOMENT}",
        "WHO,...|WHO,...@ROUND[/PHASE][:SECONDS or :ROUNDS], such as coordinator,1|2,3@4:30s",
        _read_partition,
    ),
}


def _check_round(what: str, round: int, rounds: int) -> None:
    if round < 1 or (rounds and round > rounds):
        last = str(rounds) if rounds else "any later one"
        raise ConfigError(f"{what} cannot be placed; the rounds of this run are 1 to {last}.")


def _check_alive(faults: Sequence[Fault], joins: Sequence[LateJoin]) -> None:
    """Who is killed or stopped runs at that moment, and who comes back was killed. Roles cannot be known beforehand."""
    joined = {join.who: join.round for join in joins}
    killed: dict[Who, Kill] = {}
    for fault in sorted((fault for fault in faults if isinstance(fault, NodeFault)), key=_order):
        who, dead = fault.who, killed.get(fault.who)
        if isinstance(who, int) and fault.round < joined.get(who, 1):
            raise ConfigError(f"{fault} comes before that peer joins in round {joined[who]}; name a later one.")
        if isinstance(fault, Restart):
            if dead is None:
                written = str(who) if isinstance(who, int) and who else name_of(who)
                raise ConfigError(f"{fault} needs somebody who was killed before; add --kill {written}@ROUND.")
            del killed[who]
        elif dead is not None and isinstance(who, int):
            what = "kill each once, or bring it back" if isinstance(fault, Kill) else "name an earlier moment"
            raise ConfigError(f"{fault} comes after the same one was killed; {what}.")
        elif isinstance(fault, Kill):
            killed[who] = fault


def _order(fault: NodeFault) -> tuple[int, int, float]:
    """By moment; what comes later than its moment comes after what happens at it."""
    delay = fault.seconds if isinstance(fault, Restart) else 0.0
    return fault.round, (*PHASES, STATE).index(fault.phase), delay


def _read_environment(texts: Sequence[str], last: int) -> Mapping[int, Mapping[str, str]]:
    variables: dict[int, dict[str, str]] = {}
    for text in texts:
        flag = _Flag("env", text, "WHO:KEY=VALUE, such as 2:OMP_NUM_THREADS=2", last)
        name, key, value = flag.match(rf"({_WHO}):([A-Za-z_][A-Za-z0-9_]*)=([^\0]*)")
        variables.setdefault(flag.who(name), {})[key] = value
    return variables


def _read_slowness(texts: Sequence[str], last: int) -> Mapping[int, float]:
    factors: dict[int, float] = {}
    for text in texts:
        flag = _Flag("slow", text, "WHO:FACTOR, such as 2:4", last)
        name, number = flag.match(rf"({_WHO}):([0-9]{{1,9}}(?:\.[0-9]{{1,9}})?)")
        who, factor = flag.who(name), float(number)
        if who == COORDINATOR:
            raise ConfigError(f"{flag} cannot be: the coordinator does not train; name a peer, 1 to {last}.")
        if not 1 <= factor <= MAX_FACTOR:
            raise ConfigError(f"{flag} is out of range; the factor is from 1 to {MAX_FACTOR:g}, such as {who}:4.")
        if who in factors:
            raise ConfigError(f"{flag} says it a second time for peer {who}; say it once.")
        factors[who] = factor
    return factors


def _read_links(flags: Flags, last: int) -> Mapping[int, HomeLine]:
    values: dict[int, dict[str, float]] = {}
    for key, (parse, form) in _LINK_VALUES.items():
        said: dict[str, float] = {}
        for text in flags.get(key) or ():
            flag = _Flag(key, text, form, last)
            name, value = flag.match(_LINK_VALUE)
            if name != ALL:
                flag.who(name)
            if name in said:
                raise ConfigError(f"{flag} says it a second time for {name}; say it once.")
            said[name] = flag.parse(parse, value)
        for who in range(last + 1):
            name = str(who) if who else name_of(COORDINATOR)
            if name in said or ALL in said:
                values.setdefault(who, {})[key] = said.get(name, said.get(ALL, 0.0))
    behind_nat = {_read_nat(text, last) for text in flags.get("nat") or ()}
    return {who: HomeLine(**values.get(who, {}), nat=who in behind_nat) for who in values.keys() | behind_nat}


def _read_nat(text: str, last: int) -> int:
    flag = _Flag("nat", text, "a peer's number, such as --nat 2", last)
    [name] = flag.match(f"({_WHO})")
    who = flag.who(name)
    if who == COORDINATOR:
        raise ConfigError(f"{flag} cannot be: nobody could reach the coordinator; write {flag.form}.")
    return who


def _parse_rtt(text: str) -> float:
    seconds = parse_seconds(text)
    if seconds > MAX_RTT:
        raise ConfigError(f"'{text}' is out of range; a round trip is at most {MAX_RTT:g} s.")
    return seconds


def _parse_loss(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)%", text)
    if match is None:
        raise ConfigError(f"'{text}' is not a loss; write a number and %, such as 2%.")
    share = float(match[1]) / 100
    if share >= 1:
        raise ConfigError(f"'{text}' is out of range; a loss is from 0% to below 100%.")
    return share


_LINK_VALUES: Mapping[str, tuple[Callable[[str], float], str]] = {
    "up": (parse_rate, "WHO:RATE, such as 2:20mbit or all:50mbit"),
    "down": (parse_rate, "WHO:RATE, such as 2:20mbit or all:50mbit"),
    "rtt": (_parse_rtt, "WHO:TIME, such as 2:80ms or all:20ms"),
    "loss": (_parse_loss, "WHO:PERCENT, such as 2:1.5% or all:1%"),
}
