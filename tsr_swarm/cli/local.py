"""``tsr-swarm local``: a whole swarm on this machine, with one command."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tsr_swarm.cli import lab_options
from tsr_swarm.cli.coordinate import invitation
from tsr_swarm.cli.options import Json, NoDht, Plain, Record, Set, UsageError
from tsr_swarm.cli.output import Mode, choose_mode, emitter
from tsr_swarm.cli.process import run_training
from tsr_swarm.cli.summary import summary
from tsr_swarm.config.run import RunConfig, is_utf8
from tsr_swarm.local.fault_flags import LineTexts
from tsr_swarm.local.faults import COORDINATOR, name_of
from tsr_swarm.local.folder import RUN_FILE, coordinator_folder
from tsr_swarm.local.network import netns_lab
from tsr_swarm.local.network.open import MODES
from tsr_swarm.local.placing import FaultError, plan_local
from tsr_swarm.local.supervise import LocalOptions, fit_config, keep_config, run_local, sample_text
from tsr_swarm.process.shutdown import Shutdown, run_unless_stopped
from tsr_swarm.process.supervisor import ProcessGroup
from tsr_swarm.telemetry.events import Event
from tsr_swarm.telemetry.fold import fold
from tsr_swarm.telemetry.recording import read_history
from tsr_swarm.telemetry.snapshot import SwarmSnapshot

if TYPE_CHECKING:
    from tsr_swarm.monitor.help import Invitation

PEERS, ROUNDS = 3, 30  # unless something says otherwise
SAMPLE_LENGTH = 240
LAST_CHECKPOINT = "the model of the coordinator's last checkpoint"


def local(
    context: typer.Context,
    run_file: Annotated[
        Path | None, typer.Argument(metavar="RUN.toml", help="The run file; without one, the defaults.")
    ] = None,
    peers: Annotated[int | None, typer.Option(min=1, max=1000, metavar="N", show_default=str(PEERS))] = None,
    rounds: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="0: until stopped.", show_default=f"the run file's, else {ROUNDS}"),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--dir", metavar="DIR", help="Keep everything here; else in a temporary folder, removed at the end."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in DIR.")] = False,
    kill: lab_options.Kill = None,
    back: lab_options.Back = None,
    join_at: lab_options.JoinAt = None,
    env: lab_options.Env = None,
    stop: lab_options.Stop = None,
    slow: lab_options.Slow = None,
    nat: lab_options.Nat = None,
    up: lab_options.Up = None,
    down: lab_options.Down = None,
    rtt: lab_options.Rtt = None,
    loss: lab_options.Loss = None,
    partition: lab_options.Partition = None,
    lab: lab_options.Lab = None,
    overrides: Set = None,
    no_dht: NoDht = False,
    record: Record = None,
    plain: Plain = False,
    json: Json = False,
) -> None:
    """Train with a whole swarm on this machine: a coordinator and N peers, each its own process."""
    mode = choose_mode(plain=plain, json=json)
    if lab not in (None, *MODES):
        raise UsageError(f"--lab {lab} is no kind of lab; it is one of {', '.join(MODES)}.")
    _check_folder(folder, resume)
    config = _config(run_file, folder if resume else None, rounds, overrides or [])
    count = peers or (config.run.min_peers if resume else PEERS)
    try:
        plan = plan_local(
            peers=count,
            rounds=config.run.rounds,
            kills=kill or [],
            backs=back or [],
            join_rounds=join_at or [],
            environment=env or [],
            stops=stop or [],
            partitions=partition or [],
            slow=slow or [],
            lines=LineTexts(nat=nat or [], up=up or [], down=down or [], rtt=rtt or [], loss=loss or []),
        )
    except FaultError as error:
        raise UsageError(str(error)) from None

    async def work(request: Shutdown) -> None:
        async with ProcessGroup() as family:
            place = folder or family.temporary_folder()
            if mode is Mode.SCREEN:
                snapshot = await _on_screen(family, context.obj, place, folder, resume, config.run.name, request)
            else:
                fit = keep_config if resume and run_file is None else fit_config
                options = LocalOptions(
                    config=fit(config, plan, place),
                    plan=plan,
                    folder=place,
                    resume=resume,
                    use_dht=not no_dht,
                    lab=lab,
                )
                snapshot = await _in_lines(family, options, mode, record, request)
            if mode is not Mode.JSON:
                print("\n".join(summary(snapshot)), flush=True)
            if mode is not Mode.JSON and snapshot.rounds_counted and not request.gently.is_set():
                await run_unless_stopped(_print_sample(family, place, snapshot.leader), request)

    run_training(mode, work)


async def _in_lines(
    family: ProcessGroup, options: LocalOptions, mode: Mode, record: Path | None, stop: Shutdown
) -> SwarmSnapshot:
    snapshot = read_history(coordinator_folder(options.folder)) if options.resume else SwarmSnapshot()
    with emitter(mode, record) as emit:

        def see(event: Event) -> None:
            nonlocal snapshot
            snapshot = fold(snapshot, time.time(), event)
            emit(event)

        await run_local(options, family, see, stop)
    return snapshot


async def _on_screen(
    family: ProcessGroup,
    arguments: Sequence[str],
    place: Path,
    given: Path | None,
    resume: bool,
    title: str,
    stop: Shutdown,
) -> SwarmSnapshot:
    """The same command without a screen runs behind it. The folder is ours, so that the sample can be drawn from it."""
    from tsr_swarm.cli.screen import show_stream

    command, *rest = arguments
    where = [] if given else ["--dir", str(place)]
    history = coordinator_folder(place) if resume else None
    return await show_stream(family, "local swarm", [command, *where, *rest], title, stop, history, _invite)


def _invite(snapshot: SwarmSnapshot) -> "Invitation | None":
    """Further peers can join by hand, unless the swarm is in network namespaces of its own."""
    if not snapshot.address or snapshot.lab == netns_lab.MODE:
        return None
    return invitation(snapshot.address, snapshot.address, 0)


async def _print_sample(family: ProcessGroup, place: Path, leader: str) -> None:
    """From the coordinator's newest checkpoint, which is not the run's last word where another led it to its end."""
    text = await sample_text(family, place, SAMPLE_LENGTH)
    if text:
        is_last = leader in ("", name_of(COORDINATOR))
        print(f"What {'the model' if is_last else LAST_CHECKPOINT} writes by itself:\n\n{text}", flush=True)


def _check_folder(folder: Path | None, resume: bool) -> None:
    if resume and folder is None:
        raise UsageError("--resume needs the folder of the run; add --dir DIR.")
    if folder is None:
        return
    if not is_utf8(str(folder)):
        raise UsageError(f"--dir {str(folder)!r} is not UTF-8, as the run file in it has to be; name another folder.")
    is_run = (folder / RUN_FILE).exists()
    if resume and not is_run:
        raise UsageError(f"{folder} holds no local run to go on with; leave --resume out to start one there.")
    if is_run and not resume:
        raise UsageError(f"{folder} holds a local run already; add --resume or name another folder.")


def _config(run_file: Path | None, resumed: Path | None, rounds: int | None, overrides: list[str]) -> RunConfig:
    """Flags over environment over the file: the given one, else that of the resumed run, else all defaults."""
    from tsr_swarm.config.load import apply_overrides, environ_overrides, read_toml, run_config_from_mapping

    file = run_file or (resumed / RUN_FILE if resumed else None)
    mapping = read_toml(file) if file else {}
    flags = [*overrides, *([] if rounds is None else [f"run.rounds={rounds}"])]
    merged = apply_overrides(mapping, [*environ_overrides(os.environ), *flags])
    config = run_config_from_mapping(merged)
    return config if "rounds" in merged.get("run", {}) else replace(config, run=replace(config.run, rounds=ROUNDS))
