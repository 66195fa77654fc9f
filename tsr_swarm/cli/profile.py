"""The settings of ``tsr-swarm join``: flags over environment over profile over defaults."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tsr_swarm.config.coerce import coerce_fields
from tsr_swarm.config.link import parse_seconds
from tsr_swarm.config.load import ENV_PREFIX, read_toml
from tsr_swarm.errors import ConfigError

TABLE = "join"
MAX_WAIT_SECONDS = 365 * 86400.0
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinProfile:
    """The ``[join]`` table of a ``peer.toml``. Each key is the flag of the same name."""

    coordinator: str = ""
    data: tuple[str, ...] = ()  # none: its part of the run's own data
    device: str = "auto"
    name: str = ""
    listen: str = ""
    announce: str = ""
    dht_port: int = 0
    insecure: bool = False
    outbound_only: bool = False
    dht: bool = True
    resume: bool = False
    dir: str = ""
    local_space: str = ""
    wait: float = 60.0  # seconds; for a coordinator that cannot be reached yet

    def __post_init__(self) -> None:
        if isinstance(self.data, str):  # one path in a file
            object.__setattr__(self, "data", (self.data,))
        if isinstance(self.wait, str):
            object.__setattr__(self, "wait", _seconds(f"{TABLE}.wait", self.wait))
        coerce_fields(self, f"{TABLE}.")
        _require(self.local_space in ("", "core", "full"), "local_space", self.local_space, '"core" or "full"')
        _require(
            not self.name or re.fullmatch(r"[A-Za-z0-9_-]{1,32}", self.name) is not None,
            "name",
            self.name,
            "1 to 32 ASCII letters, digits, '-' or '_'",
        )
        if self.listen and self.outbound_only:
            raise ConfigError("listen and outbound_only exclude each other; give one of them.")
        _require(0 <= self.dht_port <= 65535, "dht_port", self.dht_port, "a port, 0 to 65535")
        _require(0 <= self.wait <= MAX_WAIT_SECONDS, "wait", self.wait, f"0 to {MAX_WAIT_SECONDS:.0f} seconds")
        for key in ("announce", "dht_port"):
            if getattr(self, key) and not self.listen:
                raise ConfigError(f"{key} is for a peer that listens; add listen, or leave {key} out.")


def merge_profile(flags: Mapping[str, Any], environ: Mapping[str, str], file: Path | None) -> JoinProfile:
    """Each setting from the first that has it. A flag that was not given is None. Raises ConfigError."""
    given = {key: value for key, value in flags.items() if value is not None}
    return JoinProfile(**{**(read_profile(file) if file else {}), **_from_environment(environ), **given})


def read_profile(path: Path) -> dict[str, Any]:
    """The ``[join]`` table of ``path``, its keys checked. Raises ConfigError."""
    table = read_toml(path, "check the path after --profile").get(TABLE)
    if not isinstance(table, dict):
        raise ConfigError(f"{path} has no [{TABLE}] table; a peer's settings go there.")
    known = [field.name for field in fields(JoinProfile)]
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"'{TABLE}.{key}' in {path} is not a known key; did you mean '{near}'?")
    return table


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """``TSR_SWARM_OUTBOUND_ONLY=1`` says ``outbound_only = true``; several paths are separated by ``:``."""
    found: dict[str, Any] = {}
    for field in fields(JoinProfile):
        name = ENV_PREFIX + field.name.upper()
        text = environ.get(name)
        if text is None:
            continue
        found[field.name] = text
        if isinstance(field.default, bool):
            _require(text.lower() in _TRUE + _FALSE, name, text, "1 or 0")
            found[field.name] = text.lower() in _TRUE
        elif isinstance(field.default, int):
            _require(text.isascii() and text.isdigit() and len(text) < 9, name, text, "a number")
            found[field.name] = int(text)
        elif isinstance(field.default, float):
            found[field.name] = _seconds(name, text)
        elif isinstance(field.default, tuple):
            found[field.name] = tuple(filter(None, text.split(":")))
    return found


def _seconds(key: str, text: str) -> float:
    """Seconds of text such as "2min"."""
    try:
        return parse_seconds(text)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


def _require(condition: bool, key: str, value: object, limit: str) -> None:
    if not condition:
        raise ConfigError(f"{key} = {value!r} is not possible; it must be {limit}.")
