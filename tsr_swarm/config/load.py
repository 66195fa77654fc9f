"""Read a run's configuration: flags over environment over file over preset over defaults. Unknown keys are errors."""

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tsr_swarm.config.coerce import parse_text, refuse_unknown
from tsr_swarm.config.effects import refuse_idle
from tsr_swarm.config.presets import expand_preset
from tsr_swarm.config.run import SECTIONS, RunConfig
from tsr_swarm.errors import ConfigError

ENV_PREFIX = "TSR_SWARM_"
MAX_FILE_BYTES = 1 << 20  # of a TOML file; what people write has some kilobytes


def load_run_config(path: Path, overrides: Iterable[str] = (), environ: Mapping[str, str] = os.environ) -> RunConfig:
    """Read ``path``, then the environment, then ``section.key=value`` overrides. Raises ConfigError."""
    return configure(read_toml(path), overrides, environ)


def configure(
    file: Mapping[str, Any], overrides: Iterable[str] = (), environ: Mapping[str, str] = os.environ
) -> RunConfig:
    """Build what a run file, parsed, comes to under the environment and ``overrides``. Raises ConfigError."""
    given = apply_overrides(file, [*environ_overrides(environ), *overrides])
    config = run_config_from_mapping(expand_preset(file, given))
    refuse_idle(config)
    return config


def read_toml(path: Path, when_missing: str = "write one with 'tsr-swarm init'") -> dict[str, Any]:
    """Parse one TOML file, with or without a byte-order mark. Raises ConfigError with the place of a syntax error."""
    try:
        with path.open("rb") as file:  # it may be a pipe
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"{path} has more than the {MAX_FILE_BYTES} bytes of a configuration; name another file.")
        return tomllib.loads(data.decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; {when_missing}.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path} is not UTF-8 in line {line}, as TOML has to be; save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}; correct it.") from error
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply for a configuration; correct it.") from None
    except ValueError:  # the one thing that tomllib leaves to int()
        raise ConfigError(f"{path} has a number of too many digits; correct it.") from None


def environ_overrides(environ: Mapping[str, str]) -> list[str]:
    """Overrides of the environment: ``TSR_SWARM_OPTIMIZER__LR=0.001`` is ``optimizer.lr=0.001``.

    Names without ``__`` are not keys of a run.
    """
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
        target[key] = parse_text(value.strip())
    return result


def run_config_from_mapping(mapping: Mapping[str, Any]) -> RunConfig:
    """Build a RunConfig from parsed TOML or JSON. Types and ranges are checked; raises ConfigError."""
    refuse_unknown(mapping, SECTIONS)
    sections: dict[str, Any] = {}
    for name, value in mapping.items():
        if not isinstance(value, Mapping):
            raise ConfigError(f"'{name}' must be a section of keys, not {value!r}; write it as [{name}].")
        sections[name] = SECTIONS[name].read(value)
    return RunConfig(**sections)
