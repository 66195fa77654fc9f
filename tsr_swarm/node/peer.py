"""A volunteer peer: one process that joins a run, trains on its own machine and exchanges cores and sketches.

It has what it needs to lead the run when it has to: a run log, and a score of its own.
"""

import asyncio
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

import torch

from tsr_swarm.config.manifest import Manifest, decode_manifest
from tsr_swarm.discovery.addresses import clock_warning, is_loopback, is_multiaddr, require_consent, shown_address
from tsr_swarm.discovery.announcer import Announcer
from tsr_swarm.discovery.identity import load_identity
from tsr_swarm.errors import CheckpointError, ConfigError, RefusedError, RunError
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.calls import Handshake
from tsr_swarm.node.context import NodeContext, NodeInfo
from tsr_swarm.node.events.run_log import LINGER_SECONDS, RunLog
from tsr_swarm.node.find_run import dht_listen, find_run
from tsr_swarm.node.join_options import JoinOptions
from tsr_swarm.node.node import SavedState, SwarmNode, open_node
from tsr_swarm.node.rejoin import keep_announcing, keep_rejoining
from tsr_swarm.node.service import StartingService
from tsr_swarm.node.weights import AppliedRound
from tsr_swarm.node.workspace import Workspace, choose_device, require_its_memory, require_its_model
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.outer_step import OuterState
from tsr_swarm.process.machine_limits import disk_errors, memory_errors
from tsr_swarm.process.shutdown import Shutdown, run_unless
from tsr_swarm.rounds.raft_state import HardState, RoundRecord
from tsr_swarm.rounds.state import PeerState
from tsr_swarm.storage.journal import Journal
from tsr_swarm.storage.run_folder import (
    CONTACTS,
    IDENTITY,
    PEER_RUN,
    STATES,
    RunFolder,
    find_lost_proposal,
    folder_lock,
    holds_work,
)
from tsr_swarm.storage.state_store import StateStore
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.events import Event
from tsr_swarm.telemetry.log import EventLog
from tsr_swarm.train.corpus import find_documents
from tsr_swarm.train.evaluate import make_evaluate
from tsr_swarm.transport.base import Caller, SwarmHandler
from tsr_swarm.transport.client import retry_while_unreachable
from tsr_swarm.transport.server import serve
from tsr_swarm.wire.messages import PublishedHeader, with_rules

MAX_CALLS = 256  # at a time, of others to this peer
SAVE_SECONDS = 60.0  # what is lost with a crash is replayed: disks need not turn every round for it


async def run_peer(options: JoinOptions, emit: Callable[[Event], None], stop: Shutdown) -> None:
    """Take part in a run until it ends or ``stop``. Raises SwarmError with one sentence."""
    if options.listen:
        require_consent(options.listen, options.announce or None, options.insecure, "read the model")
    if options.resume and not options.dir:
        raise ConfigError("--resume needs to know where this peer kept its state; add --dir DIR.")
    await run_unless(stop.immediate, _take_part(options, emit, stop.graceful))


async def _take_part(options: JoinOptions, emit: Callable[[Event], None], stop_gently: asyncio.Event) -> None:
    async with AsyncExitStack() as stack:
        process = PeerProcess(options, emit)
        if await run_unless(stop_gently, process.prepare(stack)) is None:
            return  # nobody has been told of this peer
        reason = await process.run(stop_gently)
        emit(events.Left(reason=reason, rounds=process.rounds_included))


class PeerProcess:
    """One peer in one run, from its first call to its goodbye. Implements context.Host."""

    def __init__(self, options: JoinOptions, emit: Callable[[Event], None]) -> None:
        self._options, self._emit = options, emit
        self._run_log = RunLog(EventLog(time.time), self._see_run)
        self._service = StartingService() if options.listen else None
        self._context: NodeContext  # from here on: set by prepare
        self._handshake: Handshake
        self._folder: RunFolder
        self._workspace: Workspace
        self._announcer: Announcer | None
        self._restored: PeerState | None  # from this peer's own checkpoint
        self._node: SwarmNode
        self._evaluate: Callable[[Consensus], float] | None = None
        self._has_looked_for_data = False
        self._saved_at = -math.inf
        self.rounds_included = 0

    async def prepare(self, stack: AsyncExitStack) -> bool:
        """Do all that can fail before the first call that makes this peer known. What is opened belongs to ``stack``.

        Returns True.
        """
        options = self._options
        device = choose_device(options.device)
        if options.data:
            await asyncio.to_thread(find_documents, options.data)
        if options.dir:
            stack.enter_context(folder_lock(Path(options.dir)))
        folder = Path(options.dir) if options.dir else _temporary_folder(stack)
        identity = load_identity(folder / IDENTITY, is_new=not holds_work(folder))
        book = AddressBook(identity.peer_id, folder / CONTACTS)
        book.load(options.coordinator or options.run)
        clients = await stack.enter_async_context(ClientPool(book, options.proxy))
        address = await self._listen(stack, clients)
        self._announcer = None if options.no_dht else Announcer(identity, self._emit)
        if self._announcer is not None:
            stack.push_async_callback(self._announcer.close)
        met = await retry_while_unreachable(
            lambda: find_run(options, clients, book, self._announcer), options.wait, self._warn
        )
        if (warning := clock_warning(met.hello.unix_time, time.time())) is not None:
            self._warn(warning)
        manifest = decode_manifest(met.hello.manifest)
        require_its_model(manifest)
        require_its_memory(manifest, device)
        kind = _local_space(options, manifest)
        self._workspace = await self._open_workspace(manifest, kind, device)
        self._restored = await asyncio.to_thread(self._workspace.load, self._emit) if options.resume else None
        self._handshake = met
        self._folder = RunFolder(folder / f"{PEER_RUN}{manifest.digest[:16]}")  # a key serves one run after the other
        self._context = NodeContext(
            info=NodeInfo(
                peer_id=identity.peer_id, name=options.name, address=address, local_space=kind, device=str(device)
            ),
            manifest=manifest,
            config=with_rules(manifest.config, met.hello.rules),
            first=met.hello.first,
            host=self,
            book=book,
            clients=clients,
            run_log=self._run_log,
        )
        return True

    async def run(self, stop_gently: asyncio.Event) -> str:
        """Take part until the run ends, or ``stop_gently`` is set and the round is over. Returns the reason."""
        context, run_log = self._context, self._run_log
        saved = await asyncio.to_thread(self._load_saved)
        async with open_node(context, saved, self._service, self._initial_peers) as node:
            self._node = node
            if self._announcer is not None:
                context.background.start(self._join_dht(self._announcer))
            reason = await node.run(stop_gently)
            await self._save(context.state.peer)
            await node.leader_client.wait_for_reports()  # the last one says whether all weights agree at the end
            if context.leader is not None:
                await context.leader.round_reporter.finish()
                if context.is_over:
                    run_log.emit(run_log.finished(reason))
                    await asyncio.sleep(LINGER_SECONDS)
            elif context.is_over:
                await run_log.finish_for_monitors(reason)
            return reason

    async def _listen(self, stack: AsyncExitStack, clients: ClientPool) -> str:
        """Answer calls, if others may dial this peer. Returns where they can; "": they cannot."""
        options = self._options
        if not options.listen:
            return ""
        server = serve(
            cast(SwarmHandler, self._service), options.listen, clients.counter, max_concurrent_rpcs=MAX_CALLS
        )
        port = await stack.enter_async_context(server)
        clients.kernel.watch(port)
        return shown_address(options.listen, options.announce, port)

    async def _open_workspace(self, manifest: Manifest, kind: str, device: torch.device) -> Workspace:
        options, loop = self._options, asyncio.get_running_loop()

        def warn_from_thread(message: str) -> None:
            loop.call_soon_threadsafe(self._warn, message)

        data, folder = tuple(map(Path, options.data)), Path(options.dir) if options.dir else None
        workspace = Workspace(manifest, kind, device, data, folder, options.slowdown, warn_from_thread)
        await asyncio.to_thread(workspace.require_data)
        return workspace

    async def _join_dht(self, announcer: Announcer) -> None:
        """Take part in the DHT beside the training, and find others there when all that are known are gone."""
        options, context, met, book = self._options, self._context, self._handshake, self._context.book
        known = [*met.hello.initial_peers, *filter(is_multiaddr, options.dht), *book.multiaddrs]
        listen, announce = dht_listen(options, is_loopback(met.host))
        await announcer.start(listen=listen, announce=announce, initial_peers=known)
        context.background.start(keep_rejoining(context, announcer))
        await keep_announcing(context, announcer)

    def _initial_peers(self, caller: Caller) -> list[str]:
        return [] if self._announcer is None else [*self._announcer.multiaddrs_for(caller.address)]

    def _load_saved(self) -> SavedState:
        """Read what this peer promised and has. Raises RunError."""
        manifest, first = self._context.manifest, self._context.first
        genesis = RoundRecord(voters=(first,))
        hard_state, journal, store, lost = HardState(genesis), None, None, ""
        record = None
        if self._restored is not None:
            record = RoundRecord(self._restored.applied, self._restored.chain, voters=(first,))
        with disk_errors(f"{self._folder.path} cannot be made", "choose a folder you can write to"):
            self._folder.path.mkdir(parents=True, exist_ok=True)
        states = self._folder.path / STATES
        if self._service is not None:
            journal = self._folder.journal(manifest, self._context.me)
            hard_state = self._promised(journal, genesis)
            log = self._folder.round_log(manifest)
            newest = record if record is not None and record.round > hard_state.base.round else hard_state.base
            log.open(newest.round, bytes.fromhex(newest.chain))
            lost = find_lost_proposal(manifest, hard_state, log, self._warn)
            store = StateStore(manifest, states, log)
            store.open()
        return SavedState(
            hard_state=hard_state,
            weights=self._workspace,
            record=record,
            folder=states,
            journal=journal,
            store=store,
            workspace=self._workspace,
            known=self._handshake.known,
            lost=lost,
        )

    def _promised(self, journal: Journal, genesis: RoundRecord) -> HardState:
        """What this peer's journal says; a new one begins with ``genesis``, before anything else is kept."""
        hard_state = journal.load(self._warn)
        if hard_state is not None:
            return hard_state
        if self._folder.has_rounds:
            raise RunError(
                f"{self._folder.path} holds rounds but no journal; restore the journal from a copy, or join with "
                "another --dir as a new node: without it this peer could break a promise that it gave to others."
            )
        journal.write(HardState(genesis))
        return HardState(genesis)

    def _warn(self, message: str) -> None:
        self._emit(events.Warned(message=message))

    def _see_run(self, event: Event) -> None:
        """Show all of the run while this peer leads it; else only who does, and that nobody does."""
        if self._context.leader is not None or isinstance(event, events.LeaderChanged | events.LeaderLost):
            self._emit(event)

    def emit(self, event: Event) -> None:
        self._emit(event)

    async def applied(self, header: PublishedHeader, applied: AppliedRound, outer: OuterState, seconds: float) -> None:
        round, included = header.plan.round, self._context.me in header.contributors
        self.rounds_included += included
        report = self._node.leader_client.report(round, bytes.fromhex(applied.digest))
        work = self._node.trainer_task.work
        mine = work if work is not None and work.plan.round == round else None
        self._emit(
            events.RoundApplied(
                round=round,
                included=included,
                local_loss=mine.local_loss if mine is not None else None,
                tokens=mine.tokens if mine is not None else 0,
                seconds=seconds,
                digest=applied.digest,
                wire_bytes={"sent": dict(report.sent), "received": dict(report.received)},
                overhead=report.overhead_bytes,
            )
        )
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            await self._save(self._context.state.peer)

    async def restored(self, record: RoundRecord, consensus: Consensus) -> None:
        await self._save(PeerState(applied=record.round, chain=record.chain))

    async def score(self, round: int, consensus: Consensus) -> float | None:
        """Held-out loss, if this machine has the run's data; beside the training, on the CPU."""
        if not self._has_looked_for_data:
            self._has_looked_for_data = True
            try:
                with memory_errors():
                    config = self._context.manifest.config
                    self._evaluate = await asyncio.to_thread(make_evaluate, config, self._workspace.warn)
            except (ConfigError, RunError) as error:
                self._warn(f"This peer leads without a held-out loss: {error}")
        if self._evaluate is None:
            return None
        try:
            with memory_errors():
                value = await asyncio.to_thread(self._evaluate, consensus)
        except RunError as error:
            self._warn(f"Round {round} is not scored: {error}")
            return None
        loss = value if math.isfinite(value) else None
        if self._context.leader is not None:
            self._run_log.emit(events.Evaluated(round=round, loss=loss))
        return loss

    async def _save(self, state: PeerState) -> None:
        """Write this peer's checkpoint, if there is a state. One that cannot be written is a warning."""
        if state.applied < 0:
            return
        self._saved_at = time.monotonic()
        try:
            await self._node.weights.run(self._workspace.save, state)
        except CheckpointError as error:
            self._warn(f"{error} Training goes on.")


def _temporary_folder(stack: AsyncExitStack) -> Path:
    """A folder that goes with ``stack``. Raises ConfigError."""
    with disk_errors("No temporary folder can be made", "add --dir DIR, or set TMPDIR", ConfigError):
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tsr-swarm-")))


def _local_space(options: JoinOptions, manifest: Manifest) -> str:
    """The run decides, unless it takes both kinds of peer."""
    allowed = manifest.config.optimizer.local_space
    if allowed == "mixed":
        return options.local_space or "core"
    if options.local_space not in ("", allowed):
        raise RefusedError(f'This run takes peers of local_space "{allowed}" only; leave --local-space out.')
    return allowed
