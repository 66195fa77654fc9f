"""A whole swarm on this machine: a coordinator and its peers, each its own process, on loopback or in a lab (lab/).

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
from tsr_swarm.runtime.faults import COORDINATOR, Fault, Join, Kill, LocalPlan, Partition, Stop, due, name_of
from tsr_swarm.runtime.lab.opening import open_place
from tsr_swarm.runtime.lab.place import Place
from tsr_swarm.runtime.lifeline import INTERRUPTED, StopRequest
from tsr_swarm.runtime.run_file import render
from tsr_swarm.telemetry.events import (
    Event,
    FaultPlaced,
    PhaseChanged,
    RoundOpened,
    RunFinished,
    RunStarted,
    Warned,
    decode,
)

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
    lab: str | None = None  # which kind of lab; None: the best one there is, if the plan asks for any


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
    async with open_place(
        options.plan,
        options.lab,
        family,
        seed=options.config.run.seed,
        environment=_environment({}),
        use_dht=options.use_dht,
        emit=emit,
    ) as place:
        await _Swarm(options, place, family, emit, stop).run()


async def sample_text(family: Family, folder: Path, length: int) -> str | None:
    """Let the model of the local run in ``folder`` write ``length`` tokens; None when it cannot."""
    command = own_command("sample", str(coordinator_folder(folder)), "--length", str(length), "--prompt", PROMPT)
    child = await family.start("sample", command, environment=_environment(THREADS), stdout=subprocess.PIPE)
    text = "\n".join([line async for line in child.lines()])
    return text if await child.wait() == 0 else None


class _Swarm:
    def __init__(
        self,
        options: LocalOptions,
        place: Place,
        family: Family,
        emit: Callable[[Event], None],
        stop: StopRequest,
    ) -> None:
        self._options = options
        self._where = place
        self._family = family
        self._emit = emit
        self._stop = stop
        self._faults: tuple[Fault, ...] = options.plan.faults
        self._address = ""
        self._has_begun = False  # a round was opened: from now on the swarm does without a peer
        self._has_finished = False
        self._children: dict[int, Child] = {}
        self._killed: dict[int, int] = {}  # WHO: the round in which we did it
        self._passing: dict[Stop | Partition, asyncio.Task[None]] = {}  # what goes on now, and what will end it
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
        hold = asyncio.create_task(self._watch_the_place())
        ends = [asyncio.create_task(event.wait()) for event in (self._stop.now, self._failed)]
        try:
            await asyncio.wait({follow, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if follow.done():
                await follow
                await self._see_off(coordinator)
            elif self._error is not None:
                raise self._error
        finally:
            self._end_what_passes()
            tasks = [follow, ask, hold, *ends, *self._watches]
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
                self._end_what_passes()
        fired, self._faults = due(self._faults, event)
        for fault in fired:
            await self._place(fault)

    async def _place(self, fault: Fault) -> None:
        match fault:
            case Join(who=who):
                await self._start_peer(who)
            case Kill(who=who, round=round) if who in self._children:
                self._emit(FaultPlaced(fault=str(fault), is_over=False))
                self._killed[who] = round
                self._children[who].kill()
            case Stop() | Partition() if not (self._has_finished or self._stop.gently.is_set()):
                self._begin(fault)

    def _begin(self, fault: Stop | Partition) -> None:
        """Have ``fault`` until its time is over."""

        async def end_later() -> None:
            await asyncio.sleep(fault.seconds)
            self._end(fault)

        self._passing[fault] = asyncio.create_task(end_later())
        self._apply_what_passes(fault)
        self._emit(FaultPlaced(fault=str(fault), is_over=False))

    def _end(self, fault: Stop | Partition) -> None:
        self._passing.pop(fault).cancel()  # or it is the one that calls this, as the last thing it does
        self._apply_what_passes(fault)
        self._emit(FaultPlaced(fault=str(fault), is_over=True))

    def _end_what_passes(self) -> None:
        """The run is over, or asked to be: everybody gets the chance to leave."""
        for fault in list(self._passing):
            self._end(fault)

    def _apply_what_passes(self, changed: Stop | Partition) -> None:
        if isinstance(changed, Partition):
            partitions = [fault for fault in self._passing if isinstance(fault, Partition)]
            self._where.cut({pair for fault in partitions for pair in fault.pairs})
            return
        child = self._children.get(changed.who)
        if child is not None:
            is_stopped = any(isinstance(fault, Stop) and fault.who == changed.who for fault in self._passing)
            (self._family.pause if is_stopped else self._family.go_on)(child)

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

    async def _watch_the_place(self) -> None:
        self._fail(await self._where.broken())

    async def _pass_on_the_request(self) -> None:
        await self._stop.gently.wait()
        self._end_what_passes()
        for child in self._children.values():
            child.ask()  # each finishes the round and leaves

    async def _see_off(self, coordinator: Child) -> None:
        """The coordinator's stream has ended: say why, or give the peers time to leave."""
        code = await coordinator.wait()
        self._end_what_passes()
        if COORDINATOR in self._killed:
            raise RunError(f"The coordinator was killed in round {self._killed[COORDINATOR]}, as asked; the run ends.")
        if code != 0 and not (code == INTERRUPTED and self._stop.gently.is_set()):
            raise self._failure_of(COORDINATOR)
        self._has_finished = True
        for fault in self._faults:
            self._emit(Warned(message=f"The run ended before {fault} was due."))
        if self._watches:
            await asyncio.wait(self._watches, timeout=LEAVE_SECONDS)

    def _coordinator_arguments(self) -> list[str]:
        where = self._where.coordinator_arguments()
        return ["coordinate", str(self._options.folder / RUN_FILE), *where, *self._common()]

    def _peer_arguments(self, who: int) -> list[str]:
        folder = self._options.folder / name_of(who)
        where = self._where.peer_arguments(who, self._address)
        slowness = self._options.plan.slowness.get(who)
        slow = [] if slowness is None else ["--slowdown", str(slowness)]
        return ["join", *where, "--name", name_of(who), "--dir", str(folder), *slow, *self._common()]

    def _common(self) -> list[str]:
        resume = ["--resume"] if self._options.resume else []
        return ["--json", *resume]

    async def _start(self, who: int, arguments: list[str]) -> Child:
        """Its stderr goes to its log; its events to us, if it is the coordinator, or else beside the log."""
        environment = _environment({**THREADS, **self._options.plan.environment.get(who, {})})
        with contextlib.ExitStack() as files:
            log = files.enter_context(self._log(who))
            events = subprocess.PIPE if who == COORDINATOR else files.enter_context(self._log(who, "jsonl"))
            child = await self._family.start(
                name_of(who),
                self._where.command(who, own_command(*arguments)),
                environment=environment,
                stdout=events,
                stderr=log,
            )
        self._children[who] = child
        return child

    def _log(self, who: int, kind: str = "log") -> IO[bytes]:
        return (self._options.folder / "logs" / f"{name_of(who)}.{kind}").open("a+b")


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours with ``extra``, but without our own settings: they are in the run file and in the arguments already."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}, **extra}
