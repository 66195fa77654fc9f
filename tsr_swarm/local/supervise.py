"""A whole swarm on this machine: a coordinator and its peers, each its own process, on loopback or in a lab (lab/).

Nothing is simulated: the same commands run that people type by hand. This supervisor starts them, passes on what
whoever leads tells of the run, and places the faults when that says that their moment has come.
"""

import asyncio
import os
import subprocess
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from tsr_swarm.config.load import ENV_PREFIX
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import RunError, SwarmError
from tsr_swarm.local.faults import (
    COORDINATOR,
    ActingRole,
    Back,
    Fault,
    Kill,
    LateJoin,
    LocalPlan,
    Moment,
    Partition,
    Suspend,
    due,
    due_with_state,
    moment_of,
    name_of,
)
from tsr_swarm.local.folder import RUN_FILE, coordinator_folder, write_run_file
from tsr_swarm.local.network.base import LocalNetwork
from tsr_swarm.local.network.open import open_place
from tsr_swarm.local.run_view import RunView
from tsr_swarm.node.workspace import absolute_source
from tsr_swarm.process.shutdown import Shutdown
from tsr_swarm.process.supervisor import Child, ChildError, ProcessGroup, failure_of, own_command, was_interrupted
from tsr_swarm.telemetry.events import (
    Event,
    FaultPlaced,
    PhaseChanged,
    RunFinished,
    RunStarted,
    StateReceived,
    Warned,
    decode,
)

LEAVE_SECONDS = 15.0  # everybody has this long to leave by itself once the run has ended
VOTERS_SECONDS = 15.0  # without enough voters, and nobody coming: longer than an election takes
LOOK_SECONDS = 0.5  # how often that is looked at
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


def fit_config(config: RunConfig, plan: LocalPlan, folder: Path) -> RunConfig:
    """The configuration of a new local run: it waits for all its first peers, and each peer has data of its own."""
    fitted = replace(
        config,
        run=replace(config.run, min_peers=plan.peers),
        data=replace(config.data, source=absolute_source(config.data.source), parts=plan.peers + plan.joins),
    )
    return keep_config(fitted, plan, folder)


def keep_config(config: RunConfig, plan: LocalPlan, folder: Path) -> RunConfig:
    """The configuration of a run that goes on: only the folder may have moved."""
    return replace(config, checkpoint=replace(config.checkpoint, dir=str(coordinator_folder(folder))))


async def run_local(options: LocalOptions, family: ProcessGroup, emit: Callable[[Event], None], stop: Shutdown) -> None:
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


async def sample_text(family: ProcessGroup, folder: Path, length: int) -> str | None:
    """Let the model of the local run in ``folder`` write ``length`` tokens; None when it cannot."""
    command = own_command("sample", str(coordinator_folder(folder)), "--length", str(length), "--prompt", PROMPT)
    child = await family.start("sample", command, environment=_environment(THREADS), stdout=subprocess.PIPE)
    text = "\n".join([line async for line in child.lines()])
    return text if await child.wait() == 0 else None


@dataclass(frozen=True, slots=True)
class _Passing:
    """A fault that goes on now."""

    who: int  # COORDINATOR where it is on nobody in particular
    text: str
    end: asyncio.Task[None]


class _Swarm:
    def __init__(
        self,
        options: LocalOptions,
        place: LocalNetwork,
        family: ProcessGroup,
        emit: Callable[[Event], None],
        stop: Shutdown,
    ) -> None:
        self._options = options
        self._where = place
        self._family = family
        self._emit = emit
        self._stop = stop
        self._faults: tuple[Fault, ...] = options.plan.faults
        self._view = RunView()
        self._moment: Moment | None = None  # the newest that was told; there is one: the swarm does without a peer
        self._children: dict[int, Child] = {}
        self._killed: dict[int, Kill] = {}  # by WHO: how we did it
        self._coming: dict[int, asyncio.Task[None]] = {}  # who will be back, and what waits for it
        self._passing: dict[Suspend | Partition, _Passing] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._tends: set[asyncio.Task[None]] = set()  # those of them that tend a process
        self._over = asyncio.Event()  # the run has finished, or nobody is left
        self._failed = asyncio.Event()
        self._error: BaseException | None = None
        self._missed: set[int] = set()  # who ended without our doing, and people were told
        self._is_waiting = False  # too few voters are left
        self._is_finishing = False  # no further round opens

    async def run(self) -> None:
        take_back = write_run_file(self._options.folder, self._options.config)
        await self._start_coordinator()
        for work in (self._pass_on_the_request(), self._watch_the_place()):
            self._begin(work)
        ends = [asyncio.create_task(event.wait()) for event in (self._over, self._stop.now, self._failed)]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._error is not None:
                if self._children.keys() == {COORDINATOR} and self._moment is None:
                    take_back()  # it was refused
                raise self._error
            if self._over.is_set():
                await self._see_off()
        finally:
            self._end_what_passes()
            tasks = [*self._tasks, *ends]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Beside everything else; if it fails, the run does."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._failed.set()

    @property
    def _is_ending(self) -> bool:
        return self._is_finishing or self._stop.gently.is_set()

    @property
    def _alive(self) -> set[int]:
        return {who for who, child in self._children.items() if child.exit_code is None}

    @property
    def _running(self) -> set[int]:
        return self._alive - {passing.who for fault, passing in self._passing.items() if isinstance(fault, Suspend)}

    # --- what happens -------------------------------------------------------------------------------------------

    async def _tend(self, who: int, child: Child) -> None:
        """Keep what a process prints, and hear what it says, to its end."""
        with self._log(who, "jsonl") as kept:
            async for line in child.lines():
                kept.write(line.encode() + b"\n")
                kept.flush()
                event = decode(line)
                if event is not None:
                    await self._hear(who, event)
        await child.wait()
        if self._children[who] is child:  # it is not back yet
            self._notice_the_end(who, child)

    async def _hear(self, who: int, event: Event) -> None:
        if isinstance(event, StateReceived) and self._moment is not None:
            fired, self._faults = due_with_state(self._faults, who, self._moment)
            for fault in fired:
                await self._place(fault)
        self._view, is_news = self._view.hear(who, event, self._running)
        if not is_news:
            return
        self._emit(event)
        match event:
            case RunStarted() if len(self._children) == 1:
                for peer in range(1, self._options.plan.peers + 1):
                    await self._start_peer(peer)
            case PhaseChanged(phase="finished"):
                self._is_finishing = True
                self._end_what_passes()
            case RunFinished():
                self._is_finishing = True
                self._end_what_passes()
                self._over.set()
        fired, self._faults = due(self._faults, event, self._moment)
        moment = moment_of(event)
        if moment is not None:
            self._moment = moment if self._moment is None else max(moment, self._moment)
        for fault in fired:
            await self._place(fault)

    def _notice_the_end(self, who: int, child: Child) -> None:
        """A process has ended: we did it, or it failed, or its part is over."""
        if not (self._is_ending or child.exit_code == 0):
            cause: SwarmError | None = None
            if who not in self._killed:
                cause = self._failure_of(who)
                if self._moment is None:
                    self._fail(cause)
                    return
                self._missed.add(who)
                self._emit(Warned(message=f"{child.name} is gone: {cause}"))
            self._judge(cause)
        self._look_who_is_left()

    def _look_who_is_left(self) -> None:
        """With nobody, it is over, well or not."""
        if not self._alive and not self._coming:
            if not self._is_ending and all(child.exit_code for child in self._children.values()):
                self._fail(RunError("No process of the swarm is left; the run ends here."))
            self._over.set()

    def _judge(self, cause: SwarmError | None) -> None:
        """Whether those who are left can go on. ``cause``: why the last one has gone, if not by our hand."""
        is_joining = any(isinstance(fault, LateJoin) for fault in self._faults)
        if not ((self._alive | self._coming.keys()) - {COORDINATOR} or is_joining):
            self._fail(RunError("No peer is left, so no further round can close; the run ends here."))
        elif not (self._is_waiting or self._view.can_lead(self._alive)):
            self._is_waiting = True
            self._begin(self._wait_for_voters(cause))

    async def _wait_for_voters(self, cause: SwarmError | None) -> None:
        """Too few voters are left by what was told, though whoever is being elected may know better."""
        left, voters = self._view.voters_left(self._alive)
        sentence = f"Too few voters are left to choose a leader, {left} of {voters}"
        self._emit(Warned(message=f"{sentence}; the run waits until one comes back."))
        waited = 0.0
        while not (self._view.can_lead(self._alive) or self._is_ending):
            if waited >= VOTERS_SECONDS:
                self._fail(cause or RunError(f"{sentence}, and none comes back; the run ends here."))
                return
            await asyncio.sleep(LOOK_SECONDS)
            waited = 0.0 if self._is_somebody_coming() else waited + LOOK_SECONDS
        self._is_waiting = False

    def _is_somebody_coming(self) -> bool:
        """Who comes back in a later round does not count: without a leader none opens."""
        round = 0 if self._moment is None else self._moment[0]
        return bool(self._coming) or any(isinstance(fault, Back) and fault.round <= round for fault in self._faults)

    # --- faults -------------------------------------------------------------------------------------------------

    async def _place(self, fault: Fault) -> None:
        match fault:
            case LateJoin(who=who):
                await self._start_peer(who)
            case Kill():
                self._kill(fault)
            case Back():
                self._call_back(fault)
            case Suspend() | Partition() if not self._is_ending:
                self._have(fault)

    def _kill(self, fault: Kill) -> None:
        who = self._find(fault)
        if who is not None:
            self._emit(FaultPlaced(fault=_text(fault, who), is_over=False))
            self._killed.pop(who, None)  # the newest is the last
            self._killed[who] = fault
            self._children[who].kill()

    def _find(self, fault: Kill | Suspend) -> int | None:
        """Who that is now. None, and people are told, if nobody is."""
        alive = self._alive - self._killed.keys()  # it takes a moment to die
        who = self._view.find(fault.who, alive)
        if who in alive:
            return who
        why = f"{name_of(who)} is not there" if who is not None else "nobody does that now"
        self._emit(Warned(message=f"{fault} cannot be placed: {why}."))
        return None

    def _call_back(self, fault: Back) -> None:
        who = next((who for who, kill in reversed(self._killed.items()) if kill.who == fault.who), None)
        if self._is_ending:
            return
        if who is None:
            self._emit(Warned(message=f"{fault} cannot be placed: nobody was killed as that."))
            return
        self._coming[who] = self._begin(self._come_back(who, fault))

    async def _come_back(self, who: int, fault: Back) -> None:
        await self._children[who].wait()
        await asyncio.sleep(fault.seconds)
        self._emit(FaultPlaced(fault=_text(fault, who), is_over=False))
        if who == COORDINATOR:
            await self._start_coordinator(is_back=True)
        else:
            await self._start_peer(who, is_back=True)
        del self._coming[who], self._killed[who]

    def _have(self, fault: Suspend | Partition) -> None:
        """Have ``fault`` until its time is over."""

        async def end_later() -> None:
            await asyncio.sleep(fault.seconds)
            self._end(fault)

        who = self._find(fault) if isinstance(fault, Suspend) else COORDINATOR
        if who is None:
            return
        self._passing[fault] = _Passing(who, _text(fault, who), self._begin(end_later()))
        self._apply_what_passes(fault, who)
        self._emit(FaultPlaced(fault=_text(fault, who), is_over=False))

    def _end(self, fault: Suspend | Partition) -> None:
        passed = self._passing.pop(fault)
        passed.end.cancel()  # or it is the one that calls this, as the last thing it does
        self._apply_what_passes(fault, passed.who)
        self._emit(FaultPlaced(fault=passed.text, is_over=True))

    def _end_what_passes(self) -> None:
        """The run is over, or asked to be: everybody gets the chance to leave, and nobody comes back any more."""
        for fault in list(self._passing):
            self._end(fault)
        for coming in self._coming.values():
            coming.cancel()
        self._coming.clear()

    def _apply_what_passes(self, changed: Suspend | Partition, who: int) -> None:
        if isinstance(changed, Partition):
            partitions = [fault for fault in self._passing if isinstance(fault, Partition)]
            self._where.cut({pair for fault in partitions for pair in fault.pairs})
            return
        is_stopped = any(isinstance(fault, Suspend) and other.who == who for fault, other in self._passing.items())
        (self._family.pause if is_stopped else self._family.go_on)(self._children[who])

    # --- the end ------------------------------------------------------------------------------------------------

    async def _watch_the_place(self) -> None:
        self._fail(await self._where.broken())

    async def _pass_on_the_request(self) -> None:
        await self._stop.gently.wait()
        self._end_what_passes()
        # The leader first: it finishes the round, for which it needs the others' work and votes.
        leader = self._children.get(self._view.leader)
        if leader is not None and not self._view.is_leaderless:
            leader.ask()
            ends = [asyncio.create_task(end) for end in (self._over.wait(), leader.wait())]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
        for child in self._children.values():
            if child is not leader:
                child.ask()
        self._look_who_is_left()

    async def _see_off(self) -> None:
        """The run has ended: give everybody time to leave."""
        if not self._stop.gently.is_set():
            for fault in self._faults:
                self._emit(Warned(message=f"The run ended before {fault} was due."))
        if self._tends:
            await asyncio.wait(self._tends, timeout=LEAVE_SECONDS)
        coordinator = self._children[COORDINATOR]
        if not coordinator.exit_code or COORDINATOR in self._missed or COORDINATOR in self._killed:
            return
        with self._log(COORDINATOR) as log:
            if not (self._stop.gently.is_set() and was_interrupted(coordinator, log)):
                raise failure_of(coordinator, log)

    def _failure_of(self, who: int) -> ChildError:
        with self._log(who) as log:
            return failure_of(self._children[who], log)

    # --- processes ----------------------------------------------------------------------------------------------

    async def _start_coordinator(self, is_back: bool = False) -> None:
        where = self._where.coordinator_arguments(self._view.addresses.get(COORDINATOR, ""))
        run_file = str(self._options.folder / RUN_FILE)
        await self._start(COORDINATOR, ["coordinate", run_file, *where, *self._common(is_back)])

    async def _start_peer(self, who: int, is_back: bool = False) -> None:
        folder = self._options.folder / name_of(who)
        where = self._where.peer_arguments(who, self._view.contact(self._running))
        slowness = self._options.plan.slowness.get(who)
        slow = [] if slowness is None else ["--slowdown", str(slowness)]
        named = ["--name", name_of(who), "--dir", str(folder)]
        await self._start(who, ["join", *where, *named, *slow, *self._common(is_back)])

    def _common(self, is_back: bool) -> list[str]:
        return ["--json", "--resume"] if is_back or self._options.resume else ["--json"]

    async def _start(self, who: int, arguments: list[str]) -> None:
        """Its stderr goes to its log; its events to us, and beside the log."""
        environment = _environment({**THREADS, **self._options.plan.environment.get(who, {})})
        with self._log(who) as log:
            child = await self._family.start(
                name_of(who),
                self._where.command(who, own_command(*arguments)),
                environment=environment,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._children[who] = child
        tend = self._begin(self._tend(who, child))
        self._tends.add(tend)
        tend.add_done_callback(self._tends.discard)

    def _log(self, who: int, kind: str = "log") -> IO[bytes]:
        return (self._options.folder / "logs" / f"{name_of(who)}.{kind}").open("a+b")


def _text(fault: Kill | Back | Suspend | Partition, who: int) -> str:
    """As it is written, and whom it is on where that does not say it."""
    is_role = not isinstance(fault, Partition) and isinstance(fault.who, ActingRole)
    return f"{fault} ({name_of(who)})" if is_role else str(fault)


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours with ``extra``, but without our own settings: they are in the run file and in the arguments already."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}, **extra}
