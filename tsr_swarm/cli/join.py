"""``tsr-swarm join``: take part in a run."""

import os
import platform
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tsr_swarm.cli.options import (
    Json,
    Plain,
    Proxy,
    UsageError,
    Ways,
    announced_to,
    check_ways,
    host_port,
    usage,
    waiting,
)
from tsr_swarm.cli.output import Mode, choose_mode, emitter
from tsr_swarm.cli.process import run_training
from tsr_swarm.cli.profile import FIELDS, merge_profile
from tsr_swarm.process.machine_limits import require_process_room
from tsr_swarm.process.shutdown import Shutdown


def join(
    context: typer.Context,
    coordinator: Annotated[str | None, host_port("Where the coordinator listens.")] = None,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[@RUNID]", help="Find the run in the DHT by its name, with --dht; no coordinator needed."
        ),
    ] = None,
    dht: Ways = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="Text to train on: a file or a folder; repeatable. None: the run's own data."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", show_default="auto")] = None,
    name: Annotated[str | None, typer.Option(help="What people see.", show_default="this machine's name")] = None,
    listen: Annotated[str | None, host_port("Be dialled: average, give, vote, lead; port 0: any.")] = None,
    announce: Annotated[str | None, announced_to("others")] = None,
    dht_port: Annotated[
        int | None, typer.Option(min=0, max=65535, metavar="PORT", help="0: any free one.", show_default="0")
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option("--insecure", help="Listen beyond this machine, where anybody who reaches the port can read."),
    ] = None,
    outbound_only: Annotated[bool | None, typer.Option("--outbound-only", help="Never listen, only dial out.")] = None,
    no_dht: Annotated[
        bool | None, typer.Option("--no-dht", help="Do without the DHT; the coordinator's port is enough.")
    ] = None,
    resume: Annotated[
        bool | None, typer.Option("--resume", help="Go on from this peer's own checkpoint, if there is one.")
    ] = None,
    dir: Annotated[str | None, typer.Option(metavar="DIR", help="Where this peer keeps its state.")] = None,
    local_space: Annotated[
        str | None, typer.Option(metavar="core|full", help="What moves between rounds, if the run leaves a choice.")
    ] = None,
    wait: Annotated[float | None, waiting(show_default="60")] = None,
    profile: Annotated[Path | None, typer.Option(metavar="FILE", help="A peer.toml with these settings.")] = None,
    slowdown: Annotated[
        float, typer.Option(min=1, metavar="FACTOR", hidden=True, help="Play a machine that is FACTOR times slower.")
    ] = 1.0,
    proxy: Proxy = None,
    plain: Plain = False,
    json: Json = False,
) -> None:
    mode = choose_mode(plain=plain, json=json)
    # Most keys of a profile are the parameters above, by name.
    flags = {**{key: context.params.get(key) for key in FIELDS}, "data": data or None, "dht": check_ways(dht) or None}
    usage(lambda: merge_profile(flags, {}, None))
    settings = merge_profile(flags, os.environ, profile)
    if not settings.coordinator and not (settings.run and settings.dht):
        raise UsageError(
            "No run is named; add --coordinator HOST:PORT, or --run NAME with --dht ADDRESS, a way into the DHT."
        )
    require_process_room()
    if mode is Mode.SCREEN:
        from tsr_swarm.cli.screen import show_peer

        show_peer(context.obj, settings)

    from tsr_swarm.node.peer import run_peer

    name = settings.name or name_from(platform.node())
    options = replace(settings, name=name, slowdown=slowdown, proxy=proxy)

    async def work(stop: Shutdown) -> None:
        with emitter(mode) as emit:
            await run_peer(options, emit, stop)

    run_training(mode, work)


def name_from(machine: str) -> str:
    """A legal name like that of this machine."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", machine.split(".")[0])[:32].strip("-") or "peer"
