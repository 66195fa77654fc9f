"""The settings of ``tsr-swarm join``: flags over environment over profile over defaults."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tsr_swarm.config.coerce import refuse_unknown, require
from tsr_swarm.config.link import parse_seconds
from tsr_swarm.config.load import ENV_PREFIX, read_toml
from tsr_swarm.errors import ConfigError
from tsr_swarm.node.join_options import JoinOptions

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")

# A profile says nothing of how an experiment holds a peer back.
FIELDS = {field.name: field for field in fields(JoinOptions) if field.name not in ("slowdown", "proxy")}


def merge_profile(flags: Mapping[str, Any], environ: Mapping[str, str], file: Path | None) -> JoinOptions:
    """Each setting from the first that has it. A flag that was not given is None. Raises ConfigError."""
    given = {key: value for key, value in flags.items() if value is not None}
    return JoinOptions(**{**(read_profile(file) if file else {}), **_from_environment(environ), **given})


def read_profile(path: Path) -> dict[str, Any]:
    """The ``[join]`` table of ``path``, its keys checked. Raises ConfigError."""
    table = read_toml(path, "check the path after --profile").get(JoinOptions.section)
    if not isinstance(table, dict):
        raise ConfigError(f"{path} has no [{JoinOptions.section}] table; a peer's settings go there.")
    refuse_unknown(table, FIELDS, JoinOptions.full_key(""))
    for key in ("data", "dht"):
        if isinstance(table.get(key), str):  # one need not be a list
            table[key] = (table[key],)
    if isinstance(table.get("wait"), str):
        table["wait"] = _seconds(JoinOptions.full_key("wait"), table["wait"])
    return table


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """``TSR_SWARM_OUTBOUND_ONLY=1`` says ``outbound_only = true``; paths are separated by ``:``, addresses by ``,``."""
    variables = {key: (ENV_PREFIX + key.upper(), type(field.default)) for key, field in FIELDS.items()}
    return {key: _value(name, environ[name], kind) for key, (name, kind) in variables.items() if name in environ}


def _value(name: str, text: str, kind: type) -> Any:
    if kind is bool:
        require(text.lower() in _TRUE + _FALSE, name, text, "1 or 0")
        return text.lower() in _TRUE
    if kind is int:
        require(text.isascii() and text.isdigit() and len(text) < 9, name, text, "a number")
        return int(text)
    if kind is float:
        return _seconds(name, text)
    separator = "," if name.endswith("_DHT") else ":"
    return tuple(filter(None, text.split(separator))) if kind is tuple else text


def _seconds(key: str, text: str) -> float:
    try:
        return parse_seconds(text)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None
