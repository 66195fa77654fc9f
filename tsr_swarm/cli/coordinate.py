"""``tsr-swarm coordinate``: lead a run."""

from pathlib import Path
from typing import Annotated

import typer

from tsr_swarm.cli.options import (
    Json,
    NoDht,
    Plain,
    Proxy,
    Record,
    Rounds,
    Set,
    Ways,
    announced_to,
    check_ways,
    host_port,
)
from tsr_swarm.cli.output import Mode, choose_mode, emitter
from tsr_swarm.cli.process import run_training
from tsr_swarm.config.load import load_run_config
from tsr_swarm.discovery.addresses import is_loopback
from tsr_swarm.process.machine_limits import require_process_room
from tsr_swarm.process.shutdown import Shutdown
from tsr_swarm.telemetry.events import Event, RunStarted
from tsr_swarm.telemetry.plain import Invitation
from tsr_swarm.telemetry.snapshot import SwarmSnapshot
from tsr_swarm.transport.address import parse_address


def coordinate(
    context: typer.Context,
    run_file: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file; see 'tsr-swarm init'.")],
    listen: Annotated[str, host_port("Where to listen; port 0: any.", envvar="TSR_SWARM_LISTEN")] = "127.0.0.1:7700",
    announce: Annotated[str | None, announced_to("peers", envvar="TSR_SWARM_ANNOUNCE")] = None,
    dht_port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", envvar="TSR_SWARM_DHT_PORT", help="0: any free one.")
    ] = 0,
    dht: Ways = None,
    no_dht: NoDht = False,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Listen beyond this machine, where anybody who reaches the port can join."),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    rounds: Rounds = None,
    overrides: Set = None,
    proxy: Proxy = None,
    record: Record = None,
    plain: Plain = False,
    json: Json = False,
) -> None:
    mode = choose_mode(plain=plain, json=json)
    require_process_room()
    changes = [*(overrides or []), *([] if rounds is None else [f"run.rounds={rounds}"])]
    ways = check_ways(dht)
    config = load_run_config(run_file, changes)
    if mode is Mode.SCREEN:
        from tsr_swarm.cli.screen import show_coordinator

        def invite(snapshot: SwarmSnapshot) -> Invitation | None:
            return invitation(snapshot.address, listen, dht_port) if snapshot.address else None

        folder = Path(config.folder) if resume else None
        show_coordinator(context.obj, config.run.name, folder, invite)

    from tsr_swarm.node.coordinator import CoordinateOptions, run_coordinator

    options = CoordinateOptions(
        config=config,
        listen=listen,
        announce=announce,
        dht_port=dht_port,
        use_dht=not no_dht,
        dht=ways,
        insecure=insecure,
        resume=resume,
        proxy=proxy,
    )

    async def work(stop: Shutdown) -> None:
        with emitter(mode, record) as emit:

            def emit_and_invite(event: Event) -> None:
                emit(event)
                if isinstance(event, RunStarted) and mode is not Mode.JSON:
                    print("", *invitation(event.address, listen, dht_port).lines, "", sep="\n", flush=True)

            await run_coordinator(options, emit_and_invite, stop)

    run_training(mode, work)


def invitation(address: str, listen: str, dht_port: int) -> Invitation:
    """What others type to join the coordinator at ``address``, and what to forward so that they can."""
    command = f"tsr-swarm join --coordinator {address}"
    _, port = parse_address(address)
    inside, inside_port = parse_address(listen)
    if is_loopback(inside):
        return Invitation(label="Join from this machine with:", command=command)
    forward = f"TCP port {port}" + (f" to {inside_port}" if inside_port not in (0, port) else "")
    dht = f" and, for the DHT, TCP port {dht_port}" if dht_port else ""
    return Invitation(
        label="Join with:",
        command=command,
        note=f"Behind a router, forward {forward}{dht} to this machine; the first alone is enough to join.",
    )
