"""Options that several commands share, and the one way to refuse a wrong one."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from tsr_swarm.config.link import parse_seconds
from tsr_swarm.config.load import apply_overrides, environ_overrides, run_config_from_mapping
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import ConfigError, SwarmError
from tsr_swarm.transport.address import parse_address

T = TypeVar("T")


class UsageError(SwarmError):
    """The command line cannot be meant as it is."""

    exit_code = 2


Plain = Annotated[bool, typer.Option("--plain", help="Plain lines, also on a terminal.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout; logs go to stderr.")]
Rounds = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="End the run after this many rounds; 0: when stopped.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key of the run file; repeatable."),
]
NoDht = Annotated[bool, typer.Option("--no-dht", help="Do without the DHT; the gRPC port is enough.")]
Record = Annotated[Path | None, typer.Option(metavar="FILE", help="Append the event stream to FILE, for 'replay'.")]


def check_address(value: str | None) -> str | None:
    """A HOST:PORT, as a typer callback; nothing for nothing."""
    return value and require_address(value)


def require_address(value: str) -> str:
    """A HOST:PORT, as a typer callback."""
    usage(lambda: parse_address(value))
    return value


def check_announce(value: str | None) -> str | None:
    """A HOST or HOST:PORT, as a typer callback."""
    if value:
        has_port = ":" in value and not value.endswith("]")
        require_address(value if has_port else f"{value}:0")
    return value


def usage(check: Callable[[], T]) -> T:
    """The result of ``check``; what it refuses is a usage error here, not a bad configuration."""
    try:
        return check()
    except ConfigError as error:
        raise UsageError(str(error)) from None


def make_config(mapping: Mapping[str, Any], overrides: Iterable[str] | None) -> RunConfig:
    """The configuration of ``mapping`` under the environment's settings and ``overrides``. Raises ConfigError."""
    return run_config_from_mapping(apply_overrides(mapping, [*environ_overrides(os.environ), *(overrides or ())]))


def parse_wait(text: str | float) -> float:
    """Seconds of ``--wait``, as a typer parser; that is given its default too."""
    try:
        return parse_seconds(str(text))
    except ConfigError as error:
        raise UsageError(f"--wait: {error}") from None


Wait = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        envvar="TSR_SWARM_WAIT",
        parser=parse_wait,
        help="How long to try again while nobody answers: 90, 5min; 0: not at all.",
    ),
]

Coordinator = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT",
        envvar="TSR_SWARM_COORDINATOR",
        callback=require_address,
        help="Where the coordinator listens.",
    ),
]

Proxy = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", hidden=True, callback=check_address, help="Call through this HTTP proxy."),
]
