"""The link that peers have: rates and times as people write them, and how long a run takes on it."""

import re
from dataclasses import dataclass, replace

from tsr_swarm.config.coerce import require
from tsr_swarm.errors import ConfigError

MBIT = 1e6
DENSE_STEPS = 200  # by default, one dense fp32 exchange takes as long as this many local steps
_BITS_A_SECOND = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)")
_MOST = 1e15


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The internet link and the speed that every peer has. Nothing is sent while a peer trains."""

    up: float = 20 * MBIT  # bits a second
    down: float = 100 * MBIT
    rtt: float = 0.05  # seconds a round trip
    step_seconds: float = 1.0  # one local step of an ordinary peer

    def __post_init__(self) -> None:
        for key in ("up", "down", "step_seconds"):
            require(0 < getattr(self, key) < float("inf"), f"link.{key}", getattr(self, key), "above 0")
        require(0 <= self.rtt < 3600, "link.rtt", self.rtt, "from 0 to below 3600 seconds")

    def line_seconds(self, sent: float, received: float, round_trips: float = 0) -> float:
        """Seconds to send, then receive, so many bytes: nobody can fetch an average before all have sent."""
        return 8 * sent / self.up + 8 * received / self.down + round_trips * self.rtt

    def seconds(self, step_times: float, sent: float, received: float, round_trips: float) -> float:
        """Seconds of a run, or of a part of it, with so many times of a local step, bytes and round trips."""
        return step_times * self.step_seconds + self.line_seconds(sent, received, round_trips)


def link_for(parameters: int, *, up: float, down: float, rtt: float, step_seconds: float | None = None) -> Link:
    """Make a link on which a step takes ``step_seconds``, or a 200th of one dense fp32 exchange of ``parameters``.

    The 60M shapes on 20 Mbit/s up and 100 Mbit/s down are such a case where a step takes 0.6 s.
    """
    link = Link(up=up, down=down, rtt=rtt)
    dense = link.line_seconds(4 * parameters, 4 * parameters)
    return replace(link, step_seconds=dense / DENSE_STEPS if step_seconds is None else step_seconds)


def parse_rate(text: str) -> float:
    """Bits a second of ``20mbit``, ``2.5mbit`` or ``1gbit``; powers of a thousand. Raises ConfigError."""
    rate = _parse(text, "a rate", _BITS_A_SECOND, "20mbit")
    if not 0 < rate <= _MOST:
        raise ConfigError(f"'{text}' is out of range; a rate is above 0 and at most a million gbit.")
    return rate


def parse_seconds(text: str) -> float:
    """Seconds of ``50ms``, ``2s``, ``1.5min`` or a plain number of seconds. Raises ConfigError."""
    seconds = _parse(text, "a time", {**_SECONDS, "": 1.0}, "50ms")
    if seconds > _MOST:
        raise ConfigError(f"'{text}' is out of range; a time is at most {_MOST:g} seconds.")
    return seconds


def _parse(text: str, what: str, units: dict[str, float], example: str) -> float:
    match = _QUANTITY.fullmatch(text.strip().lower())
    if match is None or match[2] not in units:
        names = ", ".join(filter(None, units))
        raise ConfigError(f"'{text}' is not {what}; write a number and one of {names}, such as {example}.")
    return float(match[1]) * units[match[2]]
