"""``tsr-swarm local``: a whole swarm on this machine, with one command.

WHO in its options is a peer's number or ``coordinator``; in those that place a fault it may also be a role.
"""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tsr_swarm.cli.coordinate import invitation
from tsr_swarm.cli.options import Json, NoDht, Plain, Preset, Record, RunFile, Set, UsageError, preset_override, usage
from tsr_swarm.cli.output import Mode, choose_mode, emitter
from tsr_swarm.cli.process import run_training
from tsr_swarm.config.load import configure, read_toml
from tsr_swarm.config.run import RunConfig, is_utf8
from tsr_swarm.local.faults import COORDINATOR, name_of
from tsr_swarm.local.flags import plan_local
from tsr_swarm.local.folder import RUN_FILE, coordinator_folder, fit_config, keep_config
from tsr_swarm.local.network import namespaces
from tsr_swarm.local.network.local_network import MODES
from tsr_swarm.local.supervise import LocalOptions, run_local, sample_text
from tsr_swarm.process.shutdown import Shutdown, run_unless
from tsr_swarm.process.supervisor import ProcessGroup
from tsr_swarm.telemetry.events import Event
from tsr_swarm.telemetry.fold import fold
from tsr_swarm.telemetry.plain import Invitation
from tsr_swarm.telemetry.recording import read_history
from tsr_swarm.telemetry.snapshot import SwarmSnapshot
from tsr_swarm.telemetry.text import bytes_text, factor_text, loss_text, plural

PEERS, ROUNDS = 3, 30  # unless something says otherwise
SAMPLE_LENGTH = 240


Texts = list[str] | None


def _many(metavar: str, text: str) -> Any:
    return typer.Option(metavar=metavar, help=f"{text} Repeatable.")


def local(
    context: typer.Context,
    run_file: RunFile = None,
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
    kill: Annotated[Texts, _many("WHO@ROUND[/PHASE]", "Kill peer WHO, or 'coordinator', 'leader', 'reducer'.")] = None,
    back: Annotated[
        Texts, _many("WHO@ROUND[/PHASE][:SECONDS]", "WHO, who was killed, comes back, or SECONDS after that.")
    ] = None,
    join_at: Annotated[list[int] | None, _many("ROUND", "A further peer joins in ROUND.")] = None,
    env: Annotated[Texts, _many("WHO:KEY=VALUE", "Set KEY for one process only.")] = None,
    stop: Annotated[Texts, _many("WHO@ROUND[/PHASE][:SECONDS]", "Freeze WHO for SECONDS (20s) or rounds (2r).")] = None,
    slow: Annotated[Texts, _many("WHO:FACTOR", "Training takes peer WHO FACTOR times as long.")] = None,
    nat: Annotated[Texts, _many("WHO", "Nothing reaches peer WHO that it did not ask for.")] = None,
    up: Annotated[Texts, _many("WHO:RATE", "What WHO, or 'all', can send: 2:20mbit.")] = None,
    down: Annotated[Texts, _many("WHO:RATE", "What WHO, or 'all', can receive.")] = None,
    rtt: Annotated[Texts, _many("WHO:TIME", "The share of WHO, or 'all', in every round trip: 2:80ms.")] = None,
    loss: Annotated[
        Texts, _many("WHO:PERCENT", "Packets that the line of WHO, or 'all', loses each way: 2:1%.")
    ] = None,
    partition: Annotated[
        Texts,
        _many("WHO,...|WHO,...@ROUND[/PHASE][:SECONDS]", "Nothing passes between the sides for SECONDS (30s), or 2r."),
    ] = None,
    lab: Annotated[
        str | None,
        typer.Option(metavar="|".join(MODES), help="What shapes the lines; auto: namespaces where root may make them."),
    ] = None,
    preset: Preset = None,
    overrides: Set = None,
    no_dht: NoDht = False,
    record: Record = None,
    plain: Plain = False,
    json: Json = False,
) -> None:
    mode = choose_mode(plain=plain, json=json)
    if lab not in (None, *MODES):
        raise UsageError(f"--lab {lab} is no kind of lab; it is one of {', '.join(MODES)}.")
    _check_folder(folder, resume)
    config = _config(run_file, folder if resume else None, rounds, [*preset_override(preset), *(overrides or [])])
    count = peers or (config.run.min_peers if resume else PEERS)
    faults = {"kill": kill, "back": back, "stop": stop, "partition": partition}
    lines = {"env": env, "slow": slow, "nat": nat, "up": up, "down": down, "rtt": rtt, "loss": loss}
    plan = usage(lambda: plan_local({**faults, **lines}, join_at or (), count, config.run.rounds))

    async def work(shutdown: Shutdown) -> None:
        async with ProcessGroup() as group:
            run_folder = folder or group.temporary_folder()
            if mode is Mode.SCREEN:  # the same command without a screen runs behind it, in a folder that is known here
                from tsr_swarm.cli.screen import show_stream

                command, *rest = context.obj
                arguments = [command, *([] if folder else ["--dir", str(run_folder)]), *rest]
                history = coordinator_folder(run_folder) if resume else None
                name = config.run.name
                snapshot = await show_stream(group, "local swarm", arguments, name, shutdown, history, _invite)
            else:
                keeps = resume and run_file is None
                options = LocalOptions(
                    config=keep_config(config, run_folder) if keeps else fit_config(config, plan, run_folder),
                    plan=plan,
                    folder=run_folder,
                    resume=resume,
                    use_dht=not no_dht,
                    lab=lab,
                )
                snapshot = await _run(group, options, mode, record, shutdown)
            if mode is not Mode.JSON:
                print("\n".join(summary(snapshot)), flush=True)
                if snapshot.rounds_counted and not shutdown.graceful.is_set():
                    await run_unless(shutdown.graceful, _print_sample(group, run_folder, snapshot.leader))

    run_training(mode, work)


async def _run(
    group: ProcessGroup, options: LocalOptions, mode: Mode, record: Path | None, shutdown: Shutdown
) -> SwarmSnapshot:
    snapshot = read_history(coordinator_folder(options.folder)) if options.resume else SwarmSnapshot()
    with emitter(mode, record) as emit:

        def see(event: Event) -> None:
            nonlocal snapshot
            snapshot = fold(snapshot, time.time(), event)
            emit(event)

        await run_local(options, group, see, shutdown)
    return snapshot


def _invite(snapshot: SwarmSnapshot) -> Invitation | None:
    """Further peers can join by hand, unless the swarm is in network namespaces of its own."""
    if not snapshot.address or snapshot.lab == namespaces.MODE:
        return None
    return invitation(snapshot.address, snapshot.address, 0)


async def _print_sample(group: ProcessGroup, run_folder: Path, leader: str) -> None:
    """From the coordinator's newest checkpoint, which is not the run's last one if another node led the last rounds."""
    text = await sample_text(group, run_folder, SAMPLE_LENGTH)
    if text:
        is_last = leader in ("", name_of(COORDINATOR))
        model = "the model" if is_last else "the model of the coordinator's last checkpoint"
        print(f"What {model} writes by itself:\n\n{text}", flush=True)


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
    file = run_file or (resumed / RUN_FILE if resumed else None)
    mapping = read_toml(file) if file else {}
    run = mapping.get("run", {})
    if isinstance(run, dict):
        mapping["run"] = {"rounds": ROUNDS, **run}
    return configure(mapping, [*overrides, *([] if rounds is None else [f"run.rounds={rounds}"])])


def summary(s: SwarmSnapshot) -> list[str]:
    """Rounds, losses, bytes by kind and direction against dense training, and the digest; nothing before a round."""
    if not s.rounds_counted:
        return []
    kinds = list(dict.fromkeys([*s.sent, *s.received]))
    rows = [(kind, s.sent.get(kind, 0), s.received.get(kind, 0)) for kind in kinds]
    rows.append(("all", sum(s.sent.values()), sum(s.received.values())))
    return [
        "",
        f"{plural(s.rounds_counted, 'round')}, held-out loss {loss_text(s.first_loss)} -> {loss_text(s.loss)} "
        "nats a token",
        "",
        f"{'wire bytes of all peers':<24}{'sent':>12}{'received':>12}",
        *[f"  {kind:<22}{bytes_text(sent):>12}{bytes_text(received):>12}" for kind, sent, received in rows],
        "",
        f"Data-parallel training of the same steps would have moved {bytes_text(s.dense_bytes)}: "
        f"{factor_text(s.dense_bytes, s.wire_bytes)} as much.",
        f"Digest of the consensus weights: {s.digest}",
        *([f"The lines between the processes were shaped in a lab ({s.lab})."] if s.lab else []),
        "",
    ]
