"""A coordinator: one process that begins a run, serves its manifest and first state, leads and votes, and keeps it all.

It trains nothing. Once others can lead it may go and come back: it follows whoever leads then, scores, and saves.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tsr_swarm import __version__
from tsr_swarm.config.blocks import matrix_rank
from tsr_swarm.config.run import RunConfig
from tsr_swarm.discovery.addresses import dht_addresses, require_consent, shown_address
from tsr_swarm.discovery.announcer import Announcer
from tsr_swarm.discovery.identity import load_identity
from tsr_swarm.errors import CheckpointError, RunError, SwarmError
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.context import NodeContext, NodeInfo
from tsr_swarm.node.events.run_log import LINGER_SECONDS, RunLog
from tsr_swarm.node.find_run import ask_multiaddrs
from tsr_swarm.node.node import SavedState, SwarmNode, open_node
from tsr_swarm.node.rejoin import keep_announcing, keep_rejoining
from tsr_swarm.node.service import StartingService
from tsr_swarm.node.weights import AppliedRound, PlainWeights
from tsr_swarm.node.workspace import advise_organiser
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.outer_step import OuterState
from tsr_swarm.process.machine_limits import memory_errors, memory_room, require_memory
from tsr_swarm.process.shutdown import Shutdown, run_unless
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.storage.run_folder import (
    CONTACTS,
    IDENTITY,
    STATES,
    RunFolder,
    RunState,
    StartingPoint,
    folder_lock,
    holds_work,
    record_of,
    resume_run,
    start_run,
)
from tsr_swarm.storage.state_store import StateStore
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.events import Event
from tsr_swarm.telemetry.log import EventLog
from tsr_swarm.telemetry.recording import EVENTS_FILE, read_recording, recording
from tsr_swarm.telemetry.text import reason_text
from tsr_swarm.train.evaluate import make_evaluate
from tsr_swarm.train.llama import parameter_count
from tsr_swarm.transport.base import Caller, SwarmHandler
from tsr_swarm.transport.server import serve
from tsr_swarm.wire.messages import PublishedHeader

NAME = "coordinator"
PROGRESS = '"peer_progress"'
MODEL_BYTES = 12  # of memory, a parameter: the consensus before and after a round, and the model that scores it


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinateOptions:
    """What the command line says beyond the run's configuration."""

    config: RunConfig
    listen: str
    announce: str | None = None  # HOST or HOST:PORT under which others reach this machine
    dht_port: int = 0
    use_dht: bool = True
    dht: tuple[str, ...] = ()  # ways into a DHT that there is: multiaddrs, or host:port of any node of any run
    insecure: bool = False
    resume: bool = False
    proxy: str | None = None  # the HTTP proxy that every call goes through


async def run_coordinator(options: CoordinateOptions, emit: Callable[[Event], None], stop: Shutdown) -> None:
    """Take part in a run until its last round, or until ``stop``. Raises SwarmError with one sentence."""
    require_consent(options.listen, options.announce, options.insecure, "join, read the model and send updates")
    await run_unless(stop.immediate, _coordinate(options, emit, stop.graceful))


async def _coordinate(options: CoordinateOptions, sink: Callable[[Event], None], stop_gently: asyncio.Event) -> None:
    config, folder = options.config, RunFolder(Path(options.config.folder))
    require_memory(MODEL_BYTES * parameter_count(config.model), memory_room())
    unread: list[str] = []
    # First: it finds a data source that is not there.
    evaluate = await asyncio.to_thread(make_evaluate, config, unread.append)
    with folder_lock(folder.path), open_log(folder.path / EVENTS_FILE, sink) as log:
        run_log = RunLog(log, sink, has_people=True)
        if options.resume:
            with suppress(OSError):  # people were warned as it was opened
                run_log.restore(read_recording(folder.path / EVENTS_FILE))
        process = CoordinatorProcess(options, folder, evaluate, run_log)
        with memory_errors():
            await asyncio.to_thread(process.begin)
        await process.run(stop_gently, unread)


@contextmanager
def open_log(path: Path, warn: Callable[[Event], None]) -> Iterator[EventLog]:
    """The run's events, also kept in ``path``: after a restart the account goes on, and `replay` shows all of it.

    Progress within a round, most of the events, is left out of the file. A file that cannot be used is a warning.
    """
    with ExitStack() as stack:
        try:
            write = stack.enter_context(recording(path))
            log = EventLog(time.time, [lambda line: None if PROGRESS in line[:40] else write(line)])
        except OSError as error:
            sentence = f"{path} cannot be used ({reason_text(error)}); the run goes on without a record of it."
            warn(events.Warned(message=sentence))
            log = EventLog(time.time)
        yield log


class CoordinatorProcess:
    """A coordinator from its first event to its last. Implements context.Host."""

    def __init__(
        self, options: CoordinateOptions, folder: RunFolder, evaluate: Callable[[Consensus], float], run_log: RunLog
    ) -> None:
        self._options, self._folder, self._evaluate, self._run_log = options, folder, evaluate, run_log
        self._identity = load_identity(folder.path / IDENTITY, is_new=not holds_work(folder.path))
        self._book = AddressBook(self._identity.peer_id, folder.path / CONTACTS)
        self._book.load()
        self._begun: StartingPoint  # set by begin, as what follows
        self._store: StateStore
        self._announcer: Announcer
        self._node: SwarmNode  # set by run

    def begin(self) -> None:
        """Start a run, or go on with the one in the folder. Raises ConfigError or RunError."""
        options, folder, me = self._options, self._folder, self._identity.peer_id
        if options.resume:
            self._begun = resume_run(folder, options.config, me, bool(self._book.addresses), self._warn)
        else:
            self._begun = start_run(folder, options.config, me)
        manifest = self._begun.manifest
        self._store = StateStore(manifest, folder.path / STATES, self._begun.round_log)
        self._announcer = Announcer(self._identity, self._run_log.emit)

    async def run(self, stop_gently: asyncio.Event, unread: Sequence[str]) -> None:
        """Take part to the end. ``unread`` says what of the data could not be read."""
        options, begun, clients = self._options, self._begun, ClientPool(self._book, self._options.proxy)
        await asyncio.to_thread(self._store.open)
        service = StartingService()
        async with AsyncExitStack() as stack:
            port = await stack.enter_async_context(serve(cast(SwarmHandler, service), options.listen, clients.counter))
            address = shown_address(options.listen, options.announce, port)
            await stack.enter_async_context(clients)
            if options.use_dht:
                stack.push_async_callback(self._announcer.close)
                await self._start_dht(clients)
            context = self._context(address, clients)
            saved = SavedState(
                hard_state=begun.hard_state,
                weights=PlainWeights(begun.consensus),
                record=begun.record,
                folder=self._store.folder,
                journal=begun.journal,
                store=self._store,
                outer=begun.outer,
                coverage=begun.coverage,
                lost=begun.lost,
            )
            self._node = await stack.enter_async_context(open_node(context, saved, service, self._initial_peers))
            self._run_log.emit(_started(options, begun, address))
            advice = advise_organiser(options.config.data, options.listen)
            for sentence in (*unread, *([] if advice is None else [advice])):
                self._warn(sentence)
            if options.use_dht:
                context.background.start(keep_rejoining(context, self._announcer))
                context.background.start(keep_announcing(context, self._announcer))
            await self.score(begun.record.round, begun.consensus)
            reason = await self._node.run(stop_gently)
            await self._end(context, reason)

    async def _start_dht(self, clients: ClientPool) -> None:
        """Join the DHT that was named or that an earlier start was in; begin one where there is none."""
        options, known = self._options, list[str]()
        listen, announce = dht_addresses(options.listen, options.announce, options.dht_port)
        if ways_in := [*options.dht, *self._book.multiaddrs]:
            try:
                known = await ask_multiaddrs(clients, ways_in)
            except SwarmError as error:
                self._warn(f"{error} The run goes on in a DHT of its own.")
        await self._announcer.start(listen=listen, announce=announce, initial_peers=known)

    async def _end(self, context: NodeContext, reason: str) -> None:
        """Tell people how the run ended, or that this node goes before that, while others can still read it here."""
        run_log = self._run_log
        if context.leader is not None:
            await context.leader.round_reporter.finish()
        elif context.is_over:
            await run_log.wait_for_round(context.base.round)
        if context.is_over:
            run_log.emit(run_log.finished(reason))
            is_asked_by_others = context.leader is not None and len(context.voters) > 1
            if is_asked_by_others or run_log.subscribers.has_monitor:
                await asyncio.sleep(LINGER_SECONDS)
            return
        if context.voters == (context.me,):  # nobody else can lead: whoever watches is told why no round opens
            sentence = "The coordinator was asked to stop; the run waits until it is back ('coordinate --resume')."
            self._warn(sentence)
            if run_log.subscribers.has_monitor:
                await asyncio.sleep(LINGER_SECONDS)
        run_log.stopped(reason)

    def _context(self, address: str, clients: ClientPool) -> NodeContext:
        manifest, me = self._begun.manifest, self._identity.peer_id
        kind = manifest.config.optimizer.local_space
        return NodeContext(
            info=NodeInfo(peer_id=me, name=NAME, address=address, local_space=kind, device="cpu", trains=False),
            manifest=manifest,
            config=self._options.config,
            first=me,
            host=self,
            book=self._book,
            clients=clients,
            run_log=self._run_log,
        )

    def _warn(self, message: str) -> None:
        self._run_log.emit(events.Warned(message=message))

    def _initial_peers(self, caller: Caller) -> list[str]:
        return [*self._announcer.multiaddrs_for(caller.address)]

    def emit(self, event: Event) -> None:
        self._run_log.emit(event)

    async def applied(self, header: PublishedHeader, applied: AppliedRound, outer: OuterState, seconds: float) -> None:
        """Write a checkpoint if one is due. The rounds since the one before are on disk."""
        state = self._node.context.state
        is_ending = state.is_leaving or self._node.context.is_over
        if header.plan.round % self._options.config.checkpoint.every and not is_ending:
            return
        await self._write(record_of(header), applied.consensus, outer, applied.digest)

    async def restored(self, record: RoundRecord, consensus: Consensus) -> None:
        """A state that was taken is a checkpoint: the rounds that lead to it are on no disk here."""
        digest = await self._node.weights.run(consensus.digest)
        await self._write(record, consensus, {}, digest.hex())

    async def score(self, round: int, consensus: Consensus) -> float | None:
        try:
            value = await self._node.weights.run(self._evaluate, consensus)
        except RunError as error:
            self._warn(f"Round {round} is not scored: {error}")
            value = math.nan
        loss = value if math.isfinite(value) else None
        self._run_log.emit(events.Evaluated(round=round, loss=loss))
        return loss

    async def _write(self, record: RoundRecord, consensus: Consensus, outer: OuterState, digest: str) -> None:
        """Write a checkpoint. One that cannot be written is a warning."""
        coverage, keep = self._node.data_leases.coverage, self._options.config.checkpoint.keep
        state = RunState(record=record, consensus=consensus, outer=outer, digest=digest, coverage=coverage)
        try:
            path = await self._node.weights.run(self._folder.save, self._begun.manifest, state, keep)
        except CheckpointError as error:
            self._warn(f"{error} Training goes on; the next round tries again.")
            return
        self._store.round_log.checkpointed(self._folder.oldest_checkpoint)
        self._run_log.emit(events.CheckpointSaved(round=record.round, path=path))


def _started(options: CoordinateOptions, begun: StartingPoint, address: str) -> events.RunStarted:
    config = options.config
    return events.RunStarted(
        run=config.run.name,
        run_id=begun.manifest.run_id,
        address=address,
        rounds=config.run.rounds,
        min_peers=config.run.min_peers,
        parameters=begun.manifest.parameters,
        k_x=config.periods.k_x,
        local_space=config.optimizer.local_space,
        rank=str(matrix_rank(config.optimizer, config.model.hidden_size)),
        voters=len(begun.hard_state.base.voters),
        version=__version__,
    )
