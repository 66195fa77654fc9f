"""Options that several commands share, and the one way to refuse a wrong one."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from tsr_swarm.config.link import parse_seconds
from tsr_swarm.config.presets import KEY, PRESETS, require_preset
from tsr_swarm.discovery.addresses import is_way_in
from tsr_swarm.errors import ConfigError, SwarmError
from tsr_swarm.transport.address import parse_address

T = TypeVar("T")


class UsageError(SwarmError):
    """The command line cannot be meant as it is."""

    exit_code = 2


RunFile = Annotated[Path | None, typer.Argument(metavar="RUN.toml", help="The run file; without one, the defaults.")]
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
Ways = Annotated[
    list[str] | None,
    typer.Option(
        "--dht",
        metavar="ADDRESS",
        help="A way into the DHT: HOST:PORT of any node of a run, or a multiaddr; repeatable.",
    ),
]
Record = Annotated[Path | None, typer.Option(metavar="FILE", help="Append the event stream to FILE, for 'replay'.")]


def check_address(value: str | None) -> str | None:
    """A HOST:PORT, as a typer callback; nothing for nothing."""
    return value and require_address(value)


def require_address(value: str) -> str:
    """A HOST:PORT, as a typer callback."""
    usage(lambda: parse_address(value))
    return value


def check_ways(values: Iterable[str] | None) -> tuple[str, ...]:
    """Ways into the DHT, each a multiaddr or a HOST:PORT; none for None."""
    ways = tuple(values or ())
    for way in ways:
        if not is_way_in(way):
            raise UsageError(
                f"--dht: '{way[:80]}' leads nowhere; write host:port of a node, such as 192.0.2.7:7700, or a multiaddr "
                "with its /p2p/ID, such as /ip4/192.0.2.7/tcp/7701/p2p/12D3KooW..."
            )
    return ways


def check_announce(value: str | None) -> str | None:
    """A HOST or HOST:PORT, as a typer callback."""
    if value:
        has_port = ":" in value and not value.endswith("]")
        require_address(value if has_port else f"{value}:0")
    return value


def usage(check: Callable[[], T], option: str = "") -> T:
    """The result of ``check``; what it refuses, of ``option``, is a usage error here, not a bad configuration."""
    try:
        return check()
    except ConfigError as error:
        raise UsageError(f"{option}: {error}" if option else str(error)) from None


def check_preset(value: str | None) -> str | None:
    """The name of a preset, as a typer callback; nothing for nothing."""
    return value and known_preset(value)


def known_preset(value: str) -> str:
    """The name of a preset."""
    return usage(lambda: require_preset(value), "--preset")


def preset_override(name: str | None) -> list[str]:
    """What ``--preset`` stands for, among the overrides of ``--set``."""
    return [f'run.{KEY}="{name}"'] if name else []


def parse_wait(text: str | float) -> float:
    """Seconds of ``--wait``, as a typer parser; that is given its default too."""
    return usage(lambda: parse_seconds(str(text)), "--wait")


def host_port(
    help: str, check: Callable[..., str | None] = check_address, *, metavar: str = "HOST:PORT", **more: Any
) -> Any:
    """An option whose value is an address. ``more`` goes to typer."""
    return typer.Option(metavar=metavar, callback=check, help=help, **more)


def announced_to(whom: str, **more: Any) -> Any:
    """The option ``--announce``. ``more`` goes to typer."""
    text = f"Where {whom} reach this machine, when that is not where it listens."
    return host_port(text, check_announce, metavar="HOST[:PORT]", **more)


def waiting(**more: Any) -> Any:
    """The option ``--wait``. ``more`` goes to typer."""
    text = "How long to try again while nobody answers: 90, 5min; 0: not at all."
    return typer.Option(metavar="SECONDS", parser=parse_wait, help=text, **more)


Wait = Annotated[float, waiting(envvar="TSR_SWARM_WAIT")]
Preset = Annotated[
    str | None,
    typer.Option(metavar="NAME", callback=check_preset, help=f"Settings to begin from: {', '.join(PRESETS)}."),
]
Coordinator = Annotated[
    str, host_port("Where the coordinator listens.", require_address, envvar="TSR_SWARM_COORDINATOR")
]
Proxy = Annotated[str | None, host_port("Call through this HTTP proxy.", hidden=True)]
