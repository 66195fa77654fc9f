"""A volunteer's process around its node: trainer, checkpoints, reports; and what it needs to lead when it has to."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.errors import CheckpointError, ConfigError, RunError
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.build import Around, hosted
from tsr_swarm.node.context import Seams, Start
from tsr_swarm.node.events.peer_report import PeerReporter
from tsr_swarm.node.events.run_log import LINGER_SECONDS, RunLog
from tsr_swarm.node.handshake import Handshake
from tsr_swarm.node.messenger import NodeInfo
from tsr_swarm.node.service import NodeService
from tsr_swarm.node.weights import AppliedRound, TrainedWeights
from tsr_swarm.node.workspace import Workspace
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.outer_step import OuterState
from tsr_swarm.process.machine_limits import memory_errors
from tsr_swarm.rounds.peer import PeerState
from tsr_swarm.rounds.raft_state import HardState, RoundRecord
from tsr_swarm.storage.journal import Journal
from tsr_swarm.storage.run_folder import PEER_RUN, STATES, RunFolder, find_lost_proposal
from tsr_swarm.storage.state_store import StateStore
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.events import Event
from tsr_swarm.telemetry.log import EventLog
from tsr_swarm.telemetry.text import reason_text
from tsr_swarm.train.scoring import make_evaluate
from tsr_swarm.train.trainer import Trainer
from tsr_swarm.wire.messages import PublishedHeader
from tsr_swarm.wire.run_rules import with_rules

SAVE_SECONDS = 60.0  # what is lost with a crash is replayed: disks need not turn every round for it
LAST_REPORT_SECONDS = 5.0


class PeerProcess:
    """One peer in one run, from its first call to its goodbye."""

    def __init__(
        self,
        who: NodeInfo,
        manifest: Manifest,
        met: Handshake,
        folder: Path,
        book: AddressBook,
        clients: ClientPool,
        workshop: Workspace,
        restored: tuple[Trainer, PeerState] | None,
        service: NodeService | None,
        emit: Callable[[Event], None],
    ) -> None:
        """``service``: None for a peer that nobody can dial. ``restored``: from this peer's own checkpoint."""
        self._who, self._manifest, self._met = who, manifest, met
        self._book, self._clients, self._workshop, self._service, self._emit = book, clients, workshop, service, emit
        self._folder = RunFolder(folder / f"{PEER_RUN}{manifest.digest[:16]}")  # a key serves one run after the other
        self._restored = restored
        self._weights = TrainedWeights(workshop, restored[0] if restored is not None else None)
        self._run_log = RunLog(EventLog(time.time), self._see_run) if service is not None else None
        self._evaluate: Callable[[Consensus], float] | None = None
        self._has_looked_for_data = False
        self._reports: set[asyncio.Task[None]] = set()
        self._saved_at = -math.inf
        self.rounds_included = 0

    async def run(self, reporter: PeerReporter, stop_gently: asyncio.Event) -> str:
        """Take part until the run ends, or ``stop_gently`` is set and the round is over. Returns the reason."""
        self._reporter = reporter
        async with AsyncExitStack() as stack:
            start = await asyncio.to_thread(self._start)
            around = Around(
                book=self._book,
                clients=self._clients,
                states=self._folder.path / STATES,
                service=self._service,
                run_log=self._run_log,
            )
            self._node = node = await stack.enter_async_context(hosted(start, around, self._seams()))
            reason = await node.run(stop_gently)
            await self._save()
            if self._reports:  # the last one says whether all weights agree at the end
                await asyncio.wait(self._reports, timeout=LAST_REPORT_SECONDS)
            if node.leading is not None and self._run_log is not None:
                await node.leading.chronicle.finish()
                if node.is_over:
                    self._run_log.emit(self._run_log.finished(reason))
                    await asyncio.sleep(LINGER_SECONDS)
            elif node.is_over and self._run_log is not None:
                await self._run_log.pass_on_the_end(reason)
            return reason

    def _start(self) -> Start:
        """Read what this peer promised and has. Raises RunError."""
        first = self._met.hello.first
        genesis = RoundRecord(voters=(first,))
        ledger, journal, donor, lost = HardState(genesis), None, None, ""
        record = None
        if self._restored is not None:
            state = self._restored[1]
            record = RoundRecord(state.applied, state.chain, voters=(first,))
        try:
            self._folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{self._folder.path} cannot be made ({reason_text(error)}); choose a folder you can write to."
            ) from error
        if self._service is not None:
            journal = self._folder.journal(self._manifest, self._who.peer_id)
            ledger = self._promised(journal, genesis)
            log = self._folder.delta_log(self._manifest)
            newest = record if record is not None and record.round > ledger.base.round else ledger.base
            log.open(newest.round, bytes.fromhex(newest.chain))
            lost = find_lost_proposal(self._manifest, ledger, log, self._warn)
            donor = StateStore(self._manifest, self._folder.path / STATES, log)
            donor.open()
        return Start(
            who=self._who,
            manifest=self._manifest,
            config=with_rules(self._manifest.config, self._met.hello.rules),
            first=first,
            known=self._met.known,
            ledger=ledger,
            journal=journal,
            record=record,
            weights=self._weights,
            outer={},
            donor=donor,
            lost=lost,
        )

    def _promised(self, journal: Journal, genesis: RoundRecord) -> HardState:
        """What this peer's journal says; a new one begins with ``genesis``, before anything else is kept."""
        ledger = journal.load(self._warn)
        if ledger is not None:
            return ledger
        if self._folder.has_rounds:
            raise RunError(
                f"{self._folder.path} holds rounds but no journal; restore the journal from a copy, or join with "
                "another --dir as a new node: without it this peer could break a promise that it gave to others."
            )
        journal.write(HardState(genesis))
        return HardState(genesis)

    def _warn(self, message: str) -> None:
        self._emit(events.Warned(message=message))

    def _seams(self) -> Seams:
        def trainer() -> Trainer:
            assert self._weights.trainer is not None, "a peer that trains has a state"
            return self._weights.trainer

        return Seams(
            emit=self._emit,
            emit_run=self._run_log.emit if self._run_log is not None else self._emit,
            trainer=trainer,
            take_number=self._workshop.take_number,
            read_part=self._workshop.take_part if self._workshop.is_on_shared_data else None,
            applied=self._applied,
            restored=self._keep_state,
            score=self._score,
            told=lambda: self._run_log.log.closed_round if self._run_log is not None else 0,
            peers=lambda: self._run_log.peers if self._run_log is not None else {},
            sample=self._reporter.sample,
            follow=self._follow,
            votes=self._run_log.votes if self._run_log is not None else lambda votes: None,
            ask=self._ask,
            ends=self._run_log.ends if self._run_log is not None else lambda: None,
        )

    def _follow(self, leader: str) -> None:
        if self._run_log is not None:
            self._run_log.follow(leader, self._clients)

    async def _ask(self, others: Sequence[str], round: int) -> None:
        if self._run_log is not None:
            await self._run_log.ask(others, round, self._clients)

    def _see_run(self, event: Event) -> None:
        """All of the run while this peer leads it; else only who does, and that nobody does."""
        if self._node.leading is not None or isinstance(event, events.LeaderChanged | events.LeaderLost):
            self._emit(event)

    # --- after a round --------------------------------------------------------------------------------------------

    async def _applied(self, header: PublishedHeader, applied: AppliedRound, outer: OuterState, seconds: float) -> None:
        round, included = header.plan.round, self._who.peer_id in header.contributors
        self.rounds_included += included
        report = self._reporter.prepare(round, bytes.fromhex(applied.digest))
        work = self._node.training.work
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
        task = asyncio.create_task(self._node.report(report))
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            await self._save()

    async def _keep_state(self, record: RoundRecord, consensus: Consensus) -> None:
        """A state that was taken is a checkpoint."""
        await self._save_at(PeerState(applied=record.round, chain=record.chain))

    async def _score(self, round: int, consensus: Consensus) -> float | None:
        """Held-out loss, if this machine has the run's data; beside the training, on the CPU."""
        if not self._has_looked_for_data:
            self._has_looked_for_data = True
            try:
                with memory_errors():
                    self._evaluate = await asyncio.to_thread(make_evaluate, self._manifest.config, self._workshop.warn)
            except (ConfigError, RunError) as error:
                self._emit(events.Warned(message=f"This peer leads without a held-out loss: {error}"))
        if self._evaluate is None:
            return None
        try:
            with memory_errors():
                value = await asyncio.to_thread(self._evaluate, consensus)
        except RunError as error:
            self._emit(events.Warned(message=f"Round {round} is not scored: {error}"))
            return None
        loss = value if math.isfinite(value) else None
        if self._run_log is not None and self._node.leading is not None:
            self._run_log.emit(events.Evaluated(round=round, loss=loss))
        return loss

    async def _save(self) -> None:
        if self._node.node.peer.applied >= 0:
            await self._save_at(self._node.node.peer)

    async def _save_at(self, peer: PeerState) -> None:
        """Write this peer's checkpoint. One that cannot be written is a warning."""
        trainer = self._weights.trainer
        if trainer is None:
            return
        self._saved_at = time.monotonic()
        try:
            await self._node.following.on_worker(self._workshop.save, trainer, peer)
        except CheckpointError as error:
            self._emit(events.Warned(message=f"{error} Training goes on."))
