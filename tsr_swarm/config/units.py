"""Parse quantities that people write on a command line: rates of a link, and times."""

import re

from tsr_swarm.errors import ConfigError

_BITS_A_SECOND = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)")
_MOST = 1e15


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
