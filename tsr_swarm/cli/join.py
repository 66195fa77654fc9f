"""``tsr-swarm join``: take part in a run."""

import os
import platform
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from tsr_swarm.cli.options import Json, Plain, Proxy, UsageError, check_announce, host_port, usage, waiting
from tsr_swarm.cli.output import Mode, choose_mode, emitter
from tsr_swarm.cli.process import run_training
from tsr_swarm.cli.profile import JoinProfile, merge_profile
from tsr_swarm.process.machine_limits import require_process_room
from tsr_swarm.process.shutdown import Shutdown


def join(
    context: typer.Context,
    coordinator: Annotated[str | None, host_port("Where the coordinator listens.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="Text to train on: a file or a folder; repeatable. None: the run's own data."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", show_default="auto")] = None,
    name: Annotated[str | None, typer.Option(help="What people see.", show_default="this machine's name")] = None,
    listen: Annotated[str | None, host_port("Be dialled: average, give, vote, lead; port 0: any.")] = None,
    announce: Annotated[
        str | None,
        host_port(
            "Where others reach this machine, when that is not where it listens.", check_announce, metavar="HOST[:PORT]"
        ),
    ] = None,
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
    folder: Annotated[str | None, typer.Option("--dir", metavar="DIR", help="Where this peer keeps its state.")] = None,
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
    flags: dict[str, Any] = {
        "coordinator": coordinator,
        "data": tuple(data) if data else None,
        "device": device,
        "name": name,
        "listen": listen,
        "announce": announce,
        "dht_port": dht_port,
        "insecure": insecure,
        "outbound_only": outbound_only,
        "dht": False if no_dht else None,
        "resume": resume,
        "dir": folder,
        "local_space": local_space,
        "wait": wait,
    }
    usage(lambda: JoinProfile(**{key: value for key, value in flags.items() if value is not None}))
    settings = merge_profile(flags, os.environ, profile)
    if not settings.coordinator:
        raise UsageError("No coordinator is named; add --coordinator HOST:PORT.")
    require_process_room()
    if mode is Mode.SCREEN:
        from tsr_swarm.cli.screen import show_peer

        show_peer(context.obj, settings.coordinator)

    from tsr_swarm.node.peer import JoinOptions, run_peer

    options = JoinOptions(
        coordinator=settings.coordinator,
        data=tuple(Path(path) for path in settings.data),
        device=settings.device,
        name=settings.name or name_from(platform.node()),
        listen=settings.listen or None,
        announce=settings.announce or None,
        dht_port=settings.dht_port,
        insecure=settings.insecure,
        outbound_only=settings.outbound_only,
        use_dht=settings.dht,
        resume=settings.resume,
        folder=Path(settings.dir) if settings.dir else None,
        local_space=settings.local_space,
        wait_seconds=settings.wait,
        slowdown=slowdown,
        proxy=proxy,
    )

    async def work(stop: Shutdown) -> None:
        with emitter(mode) as emit:
            await run_peer(options, emit, stop)

    run_training(mode, work)


def name_from(machine: str) -> str:
    """A legal name like that of this machine."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", machine.split(".")[0])[:32].strip("-") or "peer"
