"""The settings of ``tsr-swarm join``: flags over environment over profile over defaults."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from tsr_swarm.config.coerce import ConfigSection, refuse_unknown, require
from tsr_swarm.config.link import parse_seconds
from tsr_swarm.config.load import ENV_PREFIX, read_toml
from tsr_swarm.errors import ConfigError

MAX_WAIT_SECONDS = 365 * 86400.0
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinProfile(ConfigSection):
    """The ``[join]`` table of a ``peer.toml``. Each key is the flag of the same name."""

    section: ClassVar[str] = "join"
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

    def check(self) -> None:
        self.require(self.local_space in ("", "core", "full"), "local_space", '"core" or "full"')
        is_name = re.fullmatch(r"[A-Za-z0-9_-]{0,32}", self.name) is not None
        self.require(is_name, "name", "1 to 32 ASCII letters, digits, '-' or '_'")
        self.require(0 <= self.dht_port <= 65535, "dht_port", "a port, 0 to 65535")
        self.require(0 <= self.wait <= MAX_WAIT_SECONDS, "wait", f"0 to {MAX_WAIT_SECONDS:.0f} seconds")
        if self.listen and self.outbound_only:
            raise ConfigError("listen and outbound_only exclude each other; give one of them.")
        for key in ("announce", "dht_port"):
            if getattr(self, key) and not self.listen:
                raise ConfigError(f"{key} is for a peer that listens; add listen, or leave {key} out.")


def merge_profile(flags: Mapping[str, Any], environ: Mapping[str, str], file: Path | None) -> JoinProfile:
    """Each setting from the first that has it. A flag that was not given is None. Raises ConfigError."""
    given = {key: value for key, value in flags.items() if value is not None}
    return JoinProfile(**{**(read_profile(file) if file else {}), **_from_environment(environ), **given})


def read_profile(path: Path) -> dict[str, Any]:
    """The ``[join]`` table of ``path``, its keys checked. Raises ConfigError."""
    table = read_toml(path, "check the path after --profile").get(JoinProfile.section)
    if not isinstance(table, dict):
        raise ConfigError(f"{path} has no [{JoinProfile.section}] table; a peer's settings go there.")
    refuse_unknown(table, (field.name for field in fields(JoinProfile)), JoinProfile.full_key(""))
    if isinstance(table.get("data"), str):  # one path need not be a list
        table["data"] = (table["data"],)
    if isinstance(table.get("wait"), str):
        table["wait"] = _seconds(JoinProfile.full_key("wait"), table["wait"])
    return table


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """``TSR_SWARM_OUTBOUND_ONLY=1`` says ``outbound_only = true``; several paths are separated by ``:``."""
    variables = {field.name: (ENV_PREFIX + field.name.upper(), type(field.default)) for field in fields(JoinProfile)}
    return {key: _value(name, environ[name], kind) for key, (name, kind) in variables.items() if name in environ}


def _value(name: str, text: str, kind: type) -> Any:
    """The text of the variable ``name`` as a value of ``kind``."""
    if kind is bool:
        require(text.lower() in _TRUE + _FALSE, name, text, "1 or 0")
        return text.lower() in _TRUE
    if kind is int:
        require(text.isascii() and text.isdigit() and len(text) < 9, name, text, "a number")
        return int(text)
    if kind is float:
        return _seconds(name, text)
    return tuple(filter(None, text.split(":"))) if kind is tuple else text


def _seconds(key: str, text: str) -> float:
    """Seconds of text such as "2min"."""
    try:
        return parse_seconds(text)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None
