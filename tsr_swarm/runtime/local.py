"""A whole swarm on this machine: a coordinator and its peers, each its own process, on loopback.

Nothing is simulated: the same commands run that people type by hand. This supervisor starts them, passes on the
coordinator's events, and places the faults when the coordinator's stream says that their moment has come.
"""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from tsr_swarm.config.load import ENV_PREFIX
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import RunError, SwarmError
from tsr_swarm.runtime.children import Child, ChildError, Family, failure_of, own_command
from tsr_swarm.runtime.faults import COORDINATOR, Fault, Join, Kill, LocalPlan, due, name_of
from tsr_swarm.runtime.lifeline import INTERRUPTED, StopRequest
from tsr_swarm.runtime.run_file import render
from tsr_swarm.telemetry.events import Event, PhaseChanged, RoundOpened, RunFinished, RunStarted, Warned, decode

RUN_FILE = "run.toml"
LEAVE_SECONDS = 15.0  # peers have this long to leave by themselves once the run has ended
PROMPT = "def "
# Peers share one machine: each with as many threads as there are cores would be slower than one thread each.
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    """What to run, who takes part, and the folder that keeps all of it."""

    config: RunConfig
    plan: LocalPlan
    folder: Path
    resume: bool = False
    use_dht: bool = True


def coordinator_folder(folder: Path) -> Path:
    """Where the coordinator of the local run in ``folder`` keeps its state."""
    return folder / name_of(COORDINATOR)


def fit_config(config: RunConfig, plan: LocalPlan, folder: Path) -> RunConfig:
    """The configuration of a new local run: it waits for all its first peers, and each peer has data of its own."""
    fitted = replace(
        config,
        run=replace(config.run, min_peers=plan.peers),
        data=replace(config.data, parts=plan.peers + plan.joins),
    )
    return keep_config(fitted, plan, folder)


def keep_config(config: RunConfig, plan: LocalPlan, folder: Path) -> RunConfig:
    """The configuration of a run that goes on: only the folder may have moved."""
    return replace(config, checkpoint=replace(config.checkpoint, dir=str(coordinator_folder(folder))))


async def run_local(options: LocalOptions, family: Family, emit: Callable[[Event], None], stop: StopRequest) -> None:
    """Run the swarm to its end. Every process belongs to ``family``, which ends those that are left.

    Raises the error of the process that failed when the run cannot go on without it.
    """
    await _Swarm(options, family, emit, stop).run()


async def sample_text(family: Family, folder: Path, length: int) -> str | None:
    """Let the model of the local run in ``folder`` write ``length`` tokens; None when it cannot."""
    command = own_command("sample", str(coordinator_folder(folder)), "--length", str(length), "--prompt", PROMPT)
    child = await family.start("sample", command, environment=_environment(THREADS), stdout=subprocess.PIPE)
    text = "\n".join([line async for line in child.lines()])
    return text if await child.wait() == 0 else None


class _Swarm:
    def __init__(self, options: LocalOptions, family: Family, emit: Callable[[Event], None], stop: StopRequest) -> None:
        self._options = options
        self._family = family
        self._emit = emit
        self._stop = stop
        self._faults: tuple[Fault, ...] = options.plan.faults
        self._address = ""
        self._has_begun = False  # a round was opened: from now on the swarm does without a peer
        self._has_finished = False
        self._children: dict[int, Child] = {}
        self._killed: dict[int, int] = {}  # WHO: the round in which we did it
        self._watches: set[asyncio.Task[None]] = set()
        self._failed = asyncio.Event()
        self._error: SwarmError | None = None

    async def run(self) -> None:
        folder = self._options.folder
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        (folder / RUN_FILE).write_text(render(self._options.config), "utf-8")
        coordinator = await self._start(COORDINATOR, self._coordinator_arguments())
        follow = asyncio.create_task(self._follow(coordinator))
        ask = asyncio.create_task(self._pass_on_the_request())
        ends = [asyncio.create_task(event.wait()) for event in (self._stop.now, self._failed)]
        try:
            await asyncio.wait({follow, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if follow.done():
                await follow
                await self._see_off(coordinator)
            elif self._error is not None:
                raise self._error
        finally:
            tasks = [follow, ask, *ends, *self._watches]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, coordinator: Child) -> None:
        async for line in coordinator.lines():
            event = decode(line)
            if event is not None:
                self._emit(event)
                await self._react(event)

    async def _react(self, event: Event) -> None:
        match event:
            case RunStarted() if not self._address:
                self._address = event.address
                for who in range(1, self._options.plan.peers + 1):
                    await self._start_peer(who)
            case RoundOpened():
                self._has_begun = True
            case RunFinished() | PhaseChanged(phase="finished"):
                self._has_finished = True
        fired, self._faults = due(self._faults, event)
        for fault in fired:
            await self._place(fault)

    async def _place(self, fault: Fault) -> None:
        match fault:
            case Join(who=who):
                await self._start_peer(who)
            case Kill(who=who, round=round) if who in self._children:
                self._killed[who] = round
                self._children[who].kill()

    async def _start_peer(self, who: int) -> None:
        child = await self._start(who, self._peer_arguments(who))
        watch = asyncio.create_task(self._watch_peer(who, child))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    async def _watch_peer(self, who: int, child: Child) -> None:
        code = await child.wait()
        if code == 0 or self._has_finished or self._stop.gently.is_set():
            return
        if who not in self._killed:
            error = self._failure_of(who)
            if not self._has_begun:
                self._fail(error)
                return
            self._emit(Warned(message=f"{child.name} is gone: {error}"))
        if not self._somebody_is_left():
            self._fail(RunError("No peer is left, so no further round can close; the run ends here."))

    def _failure_of(self, who: int) -> ChildError:
        with self._log(who) as log:
            return failure_of(self._children[who], log)

    def _somebody_is_left(self) -> bool:
        alive = any(who != COORDINATOR and child.exit_code is None for who, child in self._children.items())
        return alive or any(isinstance(fault, Join) for fault in self._faults)

    def _fail(self, error: SwarmError) -> None:
        self._error = self._error or error
        self._failed.set()

    async def _pass_on_the_request(self) -> None:
        await self._stop.gently.wait()
        for child in self._children.values():
            child.ask()  # each finishes the round and leaves

    async def _see_off(self, coordinator: Child) -> None:
        """The coordinator's stream has ended: say why, or give the peers time to leave."""
        code = await coordinator.wait()
        if COORDINATOR in self._killed:
            raise RunError(f"The coordinator was killed in round {self._killed[COORDINATOR]}, as asked; the run ends.")
        if code != 0 and not (code == INTERRUPTED and self._stop.gently.is_set()):
            raise self._failure_of(COORDINATOR)
        self._has_finished = True
        for fault in self._faults:
            self._emit(Warned(message=f"The run ended before {_describe(fault)} was due."))
        if self._watches:
            await asyncio.wait(self._watches, timeout=LEAVE_SECONDS)

    def _coordinator_arguments(self) -> list[str]:
        return ["coordinate", str(self._options.folder / RUN_FILE), "--listen", "127.0.0.1:0", *self._common()]

    def _peer_arguments(self, who: int) -> list[str]:
        folder = self._options.folder / name_of(who)
        arguments = ["join", "--coordinator", self._address, "--name", name_of(who), "--dir", str(folder)]
        return [*arguments, *self._common()]

    def _common(self) -> list[str]:
        resume = ["--resume"] if self._options.resume else []
        return ["--json", *resume, *([] if self._options.use_dht else ["--no-dht"])]

    async def _start(self, who: int, arguments: list[str]) -> Child:
        """Its stderr goes to its log; its events to us, if it is the coordinator, or else beside the log."""
        environment = _environment({**THREADS, **self._options.plan.environment.get(who, {})})
        with contextlib.ExitStack() as files:
            log = files.enter_context(self._log(who))
            events = subprocess.PIPE if who == COORDINATOR else files.enter_context(self._log(who, "jsonl"))
            child = await self._family.start(
                name_of(who), own_command(*arguments), environment=environment, stdout=events, stderr=log
            )
        self._children[who] = child
        return child

    def _log(self, who: int, kind: str = "log") -> IO[bytes]:
        return (self._options.folder / "logs" / f"{name_of(who)}.{kind}").open("a+b")


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours with ``extra``, but without our own settings: they are in the run file and in the arguments already."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}, **extra}


def _describe(fault: Fault) -> str:
    return f"--kill {fault}" if isinstance(fault, Kill) else f"--join-at {fault.round}"
