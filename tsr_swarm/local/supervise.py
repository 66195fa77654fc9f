"""Run a swarm of real processes on this machine: a coordinator and its peers, on loopback or in a lab (network/).

Nothing is simulated: the same commands run that people type by hand. The supervisor starts them, passes on what the
leader prints of the run, and injects each fault when the leader announces its moment.
"""

import asyncio
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tsr_swarm.config.load import ENV_PREFIX
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import RunError, SwarmError
from tsr_swarm.local.faults import (
    COORDINATOR,
    Fault,
    Kill,
    LateJoin,
    LocalPlan,
    Moment,
    Partition,
    Restart,
    Suspend,
    due,
    due_with_state,
    is_over,
    moment_of,
    name_of,
    text_of,
)
from tsr_swarm.local.folder import RUN_FILE, coordinator_folder, write_run_file
from tsr_swarm.local.network.local_network import LocalNetwork, open_network
from tsr_swarm.local.run_view import RunView
from tsr_swarm.process.shutdown import Shutdown, run_unless
from tsr_swarm.process.supervisor import Child, ChildError, ProcessGroup, failure_of, own_command, was_interrupted
from tsr_swarm.process.tasks import Background
from tsr_swarm.telemetry import events

EXIT_SECONDS = 15.0  # everybody has this long to leave by itself once the run has ended
VOTERS_SECONDS = 15.0  # without enough voters, and with none coming back: longer than an election takes
VOTERS_POLL_SECONDS = 0.5
PROMPT = "def "
# Peers share one machine: each with as many threads as there are cores would be slower than one thread each.
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


Emit = Callable[[events.Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    """What to run, who takes part, and the folder that keeps all of it."""

    config: RunConfig
    plan: LocalPlan
    folder: Path
    resume: bool = False
    use_dht: bool = True
    lab: str | None = None  # which kind of lab; None: the best one there is, if the plan asks for any


async def run_local(options: LocalOptions, group: ProcessGroup, emit: Emit, stop: Shutdown) -> None:
    """Run the swarm to its end. Every process belongs to ``group``, which ends those that are left.

    Raises the error of the process that failed when the run cannot go on without it.
    """
    async with open_network(
        options.plan,
        options.lab,
        group,
        seed=options.config.run.seed,
        environment=_environment({}),
        use_dht=options.use_dht,
        emit=emit,
    ) as network:
        await _Swarm(options, network, group, emit, stop).run()


async def sample_text(group: ProcessGroup, folder: Path, length: int) -> str | None:
    """Let the model of the local run in ``folder`` write ``length`` tokens; None when it cannot."""
    command = own_command("sample", str(coordinator_folder(folder)), "--length", str(length), "--prompt", PROMPT)
    child = await group.start("sample", command, environment=_environment(THREADS), stdout=subprocess.PIPE)
    text = "\n".join([line async for line in child.lines()])
    return text if await child.wait() == 0 else None


@dataclass(frozen=True, slots=True)
class _Ongoing:
    """A fault that lasts for a time, while it does."""

    who: int  # COORDINATOR where it concerns nobody in particular
    end: asyncio.Task[None]


class _Swarm:
    """The processes of one local run: starts them, reads their events, injects the faults, and ends with the run."""

    def __init__(
        self, options: LocalOptions, network: LocalNetwork, group: ProcessGroup, emit: Emit, stop: Shutdown
    ) -> None:
        self._options, self._network, self._group, self._emit, self._stop = options, network, group, emit, stop
        self._faults: Sequence[Fault] = options.plan.faults  # those still to come
        self._view = RunView()
        self._moment: Moment | None = None  # the newest that was announced; from the first on, a peer may be missing
        self._children: dict[int, Child] = {}
        self._readers: list[asyncio.Task[None]] = []  # of the events of each child
        self._killed: dict[int, Kill] = {}  # by WHO: those that a fault has killed
        self._lost: set[int] = set()  # those that have ended otherwise, which was reported
        self._restarts: dict[int, asyncio.Task[None]] = {}
        self._ongoing: dict[Suspend | Partition, _Ongoing] = {}
        self._background = Background()
        self._over = asyncio.Event()  # the run has finished, or nobody is left
        self._is_waiting = False  # too few voters are left
        self._is_finishing = False  # no further round opens

    async def run(self) -> None:
        restore_run_file = write_run_file(self._options.folder, self._options.config)
        await self._start_coordinator()
        self._background.start(self._forward_stop())
        self._background.start(self._watch_network())
        try:
            await run_unless(self._stop.immediate, self._background.until(self._over))
            if self._over.is_set():
                await self._wait_for_exit()
        except Exception:
            if self._children.keys() == {COORDINATOR} and self._moment is None:
                restore_run_file()  # the run was refused
            raise
        finally:
            self._end_ongoing()
            await self._background.close()

    @property
    def _is_ending(self) -> bool:
        return self._is_finishing or self._stop.graceful.is_set()

    @property
    def _alive(self) -> set[int]:
        return {who for who, child in self._children.items() if child.exit_code is None}

    @property
    def _running(self) -> set[int]:
        suspended = {ongoing.who for fault, ongoing in self._ongoing.items() if isinstance(fault, Suspend)}
        return self._alive - suspended - self._killed.keys()  # dying takes a moment

    async def _read(self, who: int, child: Child) -> None:
        """Keep what a process prints and handle its events, to its end."""
        with self._log(who, "jsonl") as kept:
            async for line in child.lines():
                kept.write(line.encode() + b"\n")
                kept.flush()
                event = events.decode(line)
                if event is not None:
                    await self._handle(who, event)
        await child.wait()
        if self._children[who] is child:  # it was not restarted meanwhile
            self._handle_exit(who, child)

    async def _handle(self, who: int, event: events.Event) -> None:
        if isinstance(event, events.StateReceived) and self._moment is not None:
            await self._inject(due_with_state(self._faults, who, self._moment))
        self._view, is_news = self._view.update(who, event, self._running)
        if not is_news:
            return
        self._emit(event)
        match event:
            case events.RunStarted() if len(self._children) == 1:
                for peer in range(1, self._options.plan.peers + 1):
                    await self._start_peer(peer)
            case events.RunFinished() | events.PhaseChanged(phase="finished"):
                self._is_finishing = True
                self._end_ongoing()
        if isinstance(event, events.RunFinished):
            self._over.set()
        faults, moment = due(self._faults, event, self._moment), moment_of(event)
        if moment is not None:
            self._moment = moment if self._moment is None else max(moment, self._moment)
            for fault in [fault for fault in self._ongoing if is_over(fault, self._moment)]:
                self._end(fault)
        await self._inject(faults)

    def _handle_exit(self, who: int, child: Child) -> None:
        """A process has ended: a fault killed it, or it failed, or its part is over. Raises what ends the run."""
        if not (self._is_ending or child.exit_code == 0):
            cause: ChildError | None = None
            if who not in self._killed:
                with self._log(who) as log:
                    cause = failure_of(child, log)
                if self._moment is None:
                    raise cause
                self._lost.add(who)
                self._emit(events.Warned(message=f"{child.name} is gone: {cause}"))
            self._check_survivors(cause)
        self._check_anybody_left()

    def _check_anybody_left(self) -> None:
        """With nobody left the run is over. Raises RunError if it was not about to end."""
        if not self._alive and not self._restarts:
            if not self._is_ending and all(child.exit_code for child in self._children.values()):
                raise RunError("No process of the swarm is left; the run ends here.")
            self._over.set()

    def _check_survivors(self, cause: SwarmError | None) -> None:
        """Raise RunError if no peer is left; wait if too few voters are. ``cause``: why the last process has failed."""
        is_joining = any(isinstance(fault, LateJoin) for fault in self._faults)
        if not ((self._alive | self._restarts.keys()) - {COORDINATOR} or is_joining):
            raise RunError("No peer is left, so no further round can close; the run ends here.")
        if not (self._is_waiting or self._view.can_lead(self._alive)):
            self._is_waiting = True
            self._background.start(self._wait_for_voters(cause))

    async def _wait_for_voters(self, cause: SwarmError | None) -> None:
        """Wait for voters to come back: by the newest events too few are left, but a new leader may know more."""
        left, voters = self._view.voters_left(self._alive)
        sentence = f"Too few voters are left to choose a leader, {left} of {voters}"
        self._emit(events.Warned(message=f"{sentence}; the run waits until one comes back."))
        waited = 0.0
        while not (self._view.can_lead(self._alive) or self._is_ending):
            if waited >= VOTERS_SECONDS:
                raise cause or RunError(f"{sentence}, and none comes back; the run ends here.")
            await asyncio.sleep(VOTERS_POLL_SECONDS)
            waited = 0.0 if self._is_anybody_coming() else waited + VOTERS_POLL_SECONDS
        self._is_waiting = False

    def _is_anybody_coming(self) -> bool:
        """A restart in a later round does not count: without a leader no round opens."""
        round = 0 if self._moment is None else self._moment[0]
        return bool(self._restarts) or any(
            isinstance(fault, Restart) and fault.round <= round for fault in self._faults
        )

    async def _inject(self, faults: Sequence[Fault]) -> None:
        self._faults = [fault for fault in self._faults if fault not in faults]
        for fault in faults:
            match fault:
                case LateJoin(who=who):
                    await self._start_peer(who)
                case Kill():
                    self._kill(fault)
                case Restart() if not self._is_ending:
                    self._restart_later(fault)
                case Suspend() | Partition() if not self._is_ending:
                    self._begin(fault)

    def _kill(self, fault: Kill) -> None:
        who = self._find(fault)
        if who is not None:
            self._emit(events.FaultPlaced(fault=text_of(fault, who), is_over=False))
            self._killed.pop(who, None)  # the newest has to be the last one
            self._killed[who] = fault
            self._children[who].kill()

    def _find(self, fault: Kill | Suspend) -> int | None:
        """The node that the fault is for now; None, with a warning, if it is nobody."""
        alive = self._alive - self._killed.keys()
        who = self._view.find(fault.who, alive)
        if who in alive:
            return who
        why = f"{name_of(who)} is not there" if who is not None else "nobody does that now"
        self._emit(events.Warned(message=f"{fault} cannot be placed: {why}."))
        return None

    def _restart_later(self, fault: Restart) -> None:
        who = next((who for who, kill in reversed(self._killed.items()) if kill.who == fault.who), None)
        if who is None:
            self._emit(events.Warned(message=f"{fault} cannot be placed: nobody was killed as that."))
            return
        self._restarts[who] = self._background.start(self._restart(who, fault))

    async def _restart(self, who: int, fault: Restart) -> None:
        await self._children[who].wait()
        await asyncio.sleep(fault.seconds)
        self._emit(events.FaultPlaced(fault=text_of(fault, who), is_over=False))
        if who == COORDINATOR:
            await self._start_coordinator(resume=True)
        else:
            await self._start_peer(who, resume=True)
        del self._restarts[who], self._killed[who]

    def _begin(self, fault: Suspend | Partition) -> None:
        """Let ``fault`` last for its time; its last round is noticed in ``_handle``."""

        async def end_later() -> None:
            if not fault.rounds:
                await asyncio.sleep(fault.seconds)
                self._end(fault)

        who = self._find(fault) if isinstance(fault, Suspend) else COORDINATOR
        if who is None:
            return
        self._ongoing[fault] = _Ongoing(who, self._background.start(end_later()))
        self._apply_ongoing(fault, who)
        self._emit(events.FaultPlaced(fault=text_of(fault, who), is_over=False))

    def _end(self, fault: Suspend | Partition) -> None:
        ended = self._ongoing.pop(fault)
        ended.end.cancel()  # or it is the caller, which does nothing after this
        self._apply_ongoing(fault, ended.who)
        self._emit(events.FaultPlaced(fault=text_of(fault, ended.who), is_over=True))

    def _end_ongoing(self) -> None:
        """The run is over or was asked to stop: everybody gets the chance to leave, and nobody is restarted."""
        for fault in list(self._ongoing):
            self._end(fault)
        for restart in self._restarts.values():
            restart.cancel()
        self._restarts.clear()

    def _apply_ongoing(self, changed: Suspend | Partition, who: int) -> None:
        if isinstance(changed, Partition):
            partitions = [fault for fault in self._ongoing if isinstance(fault, Partition)]
            self._network.cut({pair for fault in partitions for pair in fault.pairs})
            return
        is_suspended = any(isinstance(fault, Suspend) and other.who == who for fault, other in self._ongoing.items())
        (self._group.pause if is_suspended else self._group.resume)(self._children[who])

    async def _watch_network(self) -> None:
        raise await self._network.failure()

    async def _forward_stop(self) -> None:
        """Ask the processes to leave once this one is asked to."""
        await self._stop.graceful.wait()
        self._end_ongoing()
        # The leader first: it finishes the round, for which it needs the others' work and votes.
        leader = self._children.get(self._view.leader)
        if leader is not None and not self._view.is_leaderless:
            leader.interrupt()
            await run_unless(self._over, leader.wait())
        for child in self._children.values():
            if child is not leader:
                child.interrupt()
        self._check_anybody_left()

    async def _wait_for_exit(self) -> None:
        """The run has ended: give everybody time to leave. Raises ChildError if the coordinator failed."""
        if not self._stop.graceful.is_set():
            for fault in self._faults:
                self._emit(events.Warned(message=f"The run ended before {fault} was due."))
        await asyncio.wait(self._readers, timeout=EXIT_SECONDS)
        coordinator = self._children[COORDINATOR]
        if not coordinator.exit_code or COORDINATOR in self._lost or COORDINATOR in self._killed:
            return
        with self._log(COORDINATOR) as log:
            if not (self._stop.graceful.is_set() and was_interrupted(coordinator, log)):
                raise failure_of(coordinator, log)

    async def _start_coordinator(self, resume: bool = False) -> None:
        arguments = self._network.coordinator_arguments(self._view.addresses.get(COORDINATOR, ""))
        await self._start(COORDINATOR, ["coordinate", str(self._options.folder / RUN_FILE), *arguments], resume)

    async def _start_peer(self, who: int, resume: bool = False) -> None:
        arguments = self._network.peer_arguments(who, self._view.contact(self._running))
        slowness = self._options.plan.slowness.get(who)
        slow = [] if slowness is None else ["--slowdown", str(slowness)]
        named = ["--name", name_of(who), "--dir", str(self._options.folder / name_of(who))]
        await self._start(who, ["join", *arguments, *named, *slow], resume)

    async def _start(self, who: int, arguments: list[str], resume: bool) -> None:
        """Start one of our commands. Its stderr goes to its log, its events to us and beside the log."""
        resumed = ["--resume"] if resume or self._options.resume else []
        with self._log(who) as log:
            child = await self._group.start(
                name_of(who),
                self._network.command(who, own_command(*arguments, "--json", *resumed)),
                environment=_environment({**THREADS, **self._options.plan.environment.get(who, {})}),
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._children[who] = child
        self._readers.append(self._background.start(self._read(who, child)))

    def _log(self, who: int, kind: str = "log") -> IO[bytes]:
        return (self._options.folder / "logs" / f"{name_of(who)}.{kind}").open("a+b")


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours with ``extra``, but without our own settings: they are in the run file and in the arguments already."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}, **extra}
