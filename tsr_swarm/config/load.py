"""Read a run's configuration: flags over environment over file over defaults. Unknown keys are errors."""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tsr_swarm.config.run import SECTIONS, RunConfig
from tsr_swarm.errors import ConfigError

ENV_PREFIX = "TSR_SWARM_"


def load_run_config(path: Path, overrides: Iterable[str] = (), environ: Mapping[str, str] = os.environ) -> RunConfig:
    """Read ``path``, then the environment, then ``section.key=value`` overrides. Raises ConfigError."""
    return run_config_from_mapping(apply_overrides(read_toml(path), [*environ_overrides(environ), *overrides]))


def read_toml(path: Path) -> dict[str, Any]:
    """Parse one TOML file. Raises ConfigError with the place of a syntax error."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; write one with 'tsr-swarm init'.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); check the path and its permissions.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error


def environ_overrides(environ: Mapping[str, str]) -> list[str]:
    """``TSR_SWARM_OPTIMIZER__LR=0.001`` says ``optimizer.lr=0.001``; names without ``__`` are not run keys."""
    return [
        f"{name.removeprefix(ENV_PREFIX).lower().replace('__', '.', 1)}={value}"
        for name, value in sorted(environ.items())
        if name.startswith(ENV_PREFIX) and "__" in name
    ]


def apply_overrides(mapping: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return ``mapping`` with each ``section.key=value`` set. A value is TOML, or else a plain string."""
    result = {name: dict(value) if isinstance(value, Mapping) else value for name, value in mapping.items()}
    for text in overrides:
        path, equals, value = text.partition("=")
        section, dot, key = path.strip().partition(".")
        if not (equals and dot and key):
            raise ConfigError(f"'{text}' is not an override; write section.key=value, such as optimizer.lr=0.001.")
        target = result.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigError(f"'{section}' is not a section; write it as [{section}].")
        target[key] = _parse_value(value.strip())
    return result


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def run_config_from_mapping(mapping: Mapping[str, Any]) -> RunConfig:
    """Build a RunConfig from parsed TOML or JSON. Types and ranges are checked; raises ConfigError."""
    _refuse_unknown(mapping, SECTIONS, "")
    return RunConfig(**{name: _section(name, value) for name, value in mapping.items()})


def _section(name: str, value: Any) -> Any:
    cls = SECTIONS[name]
    if not isinstance(value, Mapping):
        raise ConfigError(f"'{name}' must be a section of keys, not {value!r}; write it as [{name}].")
    _refuse_unknown(value, [f.name for f in fields(cls)], f"{name}.")
    return cls(**value)


def _refuse_unknown(mapping: Mapping[str, Any], known: Iterable[str], prefix: str) -> None:
    known = list(known)
    for key in mapping:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise ConfigError(f"'{prefix}{key}' is not a known key; did you mean '{prefix}{near[0]}'?")
