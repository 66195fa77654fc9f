"""Lines as people write them for ``tsr-swarm local``: text in, lines out."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tsr_swarm.config.units import parse_rate, parse_seconds
from tsr_swarm.errors import ConfigError
from tsr_swarm.local.faults import COORDINATOR
from tsr_swarm.local.network.link import HomeLine

ALL = "all"
MAX_RTT = 60.0
_VALUE = re.compile(r"(all|coordinator|[1-9][0-9]{0,8}):(.+)")
_NAT = re.compile(r"coordinator|[1-9][0-9]{0,8}")
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)%")


@dataclass(frozen=True, slots=True, kw_only=True)
class LineTexts:
    """What the flags of the same names say: WHO, or WHO:VALUE."""

    nat: Sequence[str] = ()
    up: Sequence[str] = ()
    down: Sequence[str] = ()
    rtt: Sequence[str] = ()
    loss: Sequence[str] = ()


def read_lines(texts: LineTexts, last: int) -> Mapping[int, HomeLine]:
    """The lines of those of the coordinator and peers 1 to ``last`` that have one. Raises ConfigError.

    What is said of one goes over what is said of all.
    """
    lines: dict[int, HomeLine] = {}
    values: tuple[tuple[str, Sequence[str], Callable[[str], float], str], ...] = (
        ("up", texts.up, parse_rate, "WHO:RATE, such as 2:20mbit or all:50mbit"),
        ("down", texts.down, parse_rate, "WHO:RATE, such as 2:20mbit or all:50mbit"),
        ("rtt", texts.rtt, _rtt, "WHO:TIME, such as 2:80ms or all:20ms"),
        ("loss", texts.loss, _loss, "WHO:PERCENT, such as 2:1.5% or all:1%"),
    )
    for key, said, parse, form in values:
        for who, value in _by_who(f"--{key}", said, parse, form, last).items():
            lines[who] = _with(lines.get(who), **{key: value})
    for text in texts.nat:
        who = _behind_nat(text, last)
        lines[who] = _with(lines.get(who), nat=True)
    return lines


def _with(line: HomeLine | None, **values: Any) -> HomeLine:
    return replace(line or HomeLine(), **values)


def _by_who(
    flag: str, texts: Sequence[str], parse: Callable[[str], float], form: str, last: int
) -> Mapping[int, float]:
    said: dict[str, float] = {}
    for text in texts:
        match = _VALUE.fullmatch(text)
        if match is None:
            raise ConfigError(f"{flag} {text} cannot be read; write {form}.")
        name = match[1]
        if name.isdigit() and int(name) > last:
            raise ConfigError(f"{flag} {text} is for peer {name}, but this swarm has peers 1 to {last}; write {form}.")
        if name in said:
            raise ConfigError(f"{flag} {text} says it a second time for {name}; say it once.")
        try:
            said[name] = parse(match[2])
        except ConfigError as error:
            raise ConfigError(f"{flag} {text} cannot be read: {error}") from None
    everybody = {who: said[ALL] for who in range(last + 1) if ALL in said}
    return {**everybody, **{_who(name): value for name, value in said.items() if name != ALL}}


def _behind_nat(text: str, last: int) -> int:
    form = "a peer's number, such as --nat 2"
    if _NAT.fullmatch(text) is None:
        raise ConfigError(f"--nat {text} cannot be read; write {form}.")
    who = _who(text)
    if who == COORDINATOR:
        raise ConfigError(f"--nat {text} cannot be: nobody could reach the coordinator; write {form}.")
    if who > last:
        raise ConfigError(f"--nat {text} is for peer {who}, but this swarm has peers 1 to {last}; write {form}.")
    return who


def _who(name: str) -> int:
    return COORDINATOR if name == "coordinator" else int(name)


def _rtt(text: str) -> float:
    seconds = parse_seconds(text)
    if seconds > MAX_RTT:
        raise ConfigError(f"'{text}' is out of range; a round trip is at most {MAX_RTT:g} s.")
    return seconds


def _loss(text: str) -> float:
    match = _PERCENT.fullmatch(text)
    if match is None:
        raise ConfigError(f"'{text}' is not a loss; write a number and %, such as 2%.")
    share = float(match[1]) / 100
    if share >= 1:
        raise ConfigError(f"'{text}' is out of range; a loss is from 0% to below 100%.")
    return share
