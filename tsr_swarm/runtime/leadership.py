"""The coordinator's rounds at work: runs the leader's state machine and carries out what it decides.

One event loop owns everything here; torch works on one worker thread, in the order in which it is asked.
"""

import asyncio
import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.plan import RoundPlan
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import CheckpointError, RunError
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.exchange import after_round, begin_exchange, within_budget
from tsr_swarm.optim.outer import OuterState, rotate_outer
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.rounds import leader, votes
from tsr_swarm.rounds.deadlines import DeadlinePolicy
from tsr_swarm.rounds.reducer import split_blocks
from tsr_swarm.runtime.background import Background, Signal
from tsr_swarm.runtime.donor import STATE_ROUNDS, Donor, is_agreed
from tsr_swarm.runtime.journal import Journal
from tsr_swarm.runtime.reduction import Published, Reduction
from tsr_swarm.runtime.roster import Roster
from tsr_swarm.runtime.round_report import Outcome, closed_event, outcome_of
from tsr_swarm.runtime.state_chunks import shipped_tensors, state_length
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.events import Event
from tsr_swarm.wire.messages import published_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

VOTER = "coordinator"
TICK_SECONDS = 0.25
REPORT_SECONDS = 5.0  # how long a closed round waits for its peers' reports before it is shown
GOODBYE_SECONDS = 60.0
WRITE_AGAIN_SECONDS = 5.0
KEPT_DIGESTS = 100  # rounds; a peer reports within a round or two

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True)
class Progress:
    """A round and its chain hash ("" before round 1)."""

    round: int = 0
    chain: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Applied:
    """All state after one round, as a checkpoint keeps it. Nothing in it is ever written to."""

    progress: Progress
    consensus: Consensus
    outer: OuterState  # what the reducer keeps, in the bases of the consensus
    digest: str  # of the consensus


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What leading needs from outside."""

    journal: Journal
    donor: Donor
    evaluate: Callable[[Consensus], float]  # held-out loss, on the worker thread
    save: Callable[["Applied"], str]  # writes a checkpoint and returns its path
    emit: Callable[[Event], None]
    clock: Callable[[], float]


@dataclass(slots=True)
class Totals:
    """What run_finished tells."""

    first_loss: float | None = None
    last_loss: float | None = None
    wire_bytes: int = 0
    dense_bytes: int = 0


class Leadership:
    """Leads and reduces one run. ``changed`` wakes followers and whoever waits for reports or departures."""

    def __init__(
        self,
        config: RunConfig,
        manifest: Manifest,
        consensus: Consensus,
        outer: OuterState,
        progress: Progress,
        tools: Tools,
    ) -> None:
        self.config = config
        self.manifest = manifest
        self.roster = Roster()
        self.changed = Signal()
        self.version = 1  # of what followers are told
        self.committed = progress  # what followers may fetch
        self.reduction: Reduction | None = None
        self.digests: dict[int, asyncio.Future[str]] = {}
        self.reported: dict[int, set[str]] = {}
        self._consensus, self._outer, self._applied = consensus, outer, progress  # only the worker changes these
        self._exchange = begin_exchange(config, manifest.blocks, progress.round + 1)  # what sketches are chosen by
        self._tools = tools
        self._totals = Totals()
        self._worker = ThreadPoolExecutor(1, "maths")
        self._background = Background()
        self._after_commit: set[asyncio.Task[None]] = set()
        self._result: Published | None = None  # proposed, not yet committed
        self._expected: frozenset[str] = frozenset()  # in the round that is being reduced
        self._state_being_made: asyncio.Task[pb.StateDescription] | None = None
        self._state_bytes = state_length(shipped_tensors(manifest, consensus))  # the same in every round
        self._opened_at = 0.0
        self._show_in_order = asyncio.Lock()
        self._finished = asyncio.Event()
        self._finish_reason = ""
        self._voter = tools.journal.load()
        self._leader = self._stand_for_election(progress)
        sizes = [block.size for block in manifest.blocks]
        self._shard_blocks = split_blocks(sizes, config.round.shards)

    def _stand_for_election(self, progress: Progress) -> leader.LeaderState:
        """Take the next term. With one voter the vote is the coordinator's own, journaled like any other."""
        term = self._voter.term + 1
        request = votes.VoteRequest(term, VOTER, self._voter.accepted_term, self._voter.accepted_round)
        self._voter, answer = votes.vote(self._voter, request)
        assert answer.granted, "a voter grants its own newer term"
        self._tools.journal.write(self._voter)
        limits = self.config.round
        deadlines = DeadlinePolicy(
            quorum=limits.quorum, floor_seconds=limits.floor_seconds, ceiling_seconds=limits.ceiling_seconds
        )
        policy = leader.LeaderPolicy(deadlines, self.config.run.min_peers, self.config.run.rounds)
        return leader.LeaderState(policy, progress.round)

    # --- life ---------------------------------------------------------------------------------------------------

    async def run(self, stop_gently: asyncio.Event) -> events.RunFinished:
        """Lead until the run is finished or asked to stop. Raises RunError if it cannot go on."""
        self._totals.first_loss = self._totals.last_loss = await self._score(self._consensus, self._applied.round)
        self._background.start(self._tick())
        self._background.start(self._stop_when(stop_gently))
        await self._background.until(self._finished)
        await asyncio.gather(*self._after_commit)
        return events.RunFinished(
            rounds=self._applied.round,
            first_loss=self._totals.first_loss,
            last_loss=self._totals.last_loss,
            wire_bytes=self._totals.wire_bytes,
            dense_bytes=self._totals.dense_bytes,
            digest=self._consensus.digest().hex(),
            reason=self._finish_reason,
        )

    async def see_peers_off(self) -> None:
        """After the last round, stay until every peer has fetched it and left, or has fallen silent.

        A run that was only stopped needs no goodbye: its rounds are on disk, and its peers wait for it.
        """
        if self.is_over:
            await self.changed.wait_for(lambda: not self._leader.members, GOODBYE_SECONDS)

    async def close(self) -> None:
        """End what is still running."""
        if self._state_being_made is not None:
            self._state_being_made.cancel()
        await self._background.close()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def dispatch(self, event: leader.Event) -> None:
        """Feed the leader one event and carry out its decisions, in order and with no await between them."""
        self._leader, actions = leader.step(self._leader, event, self._tools.clock())
        for action in actions:
            self._carry_out(action)

    async def _tick(self) -> None:
        while True:
            self.dispatch(leader.Tick())
            await asyncio.sleep(TICK_SECONDS)

    async def _stop_when(self, stop_gently: asyncio.Event) -> None:
        await stop_gently.wait()
        self.dispatch(leader.Stop())

    async def _on_worker(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)

    async def _write(self, function: Callable[[*Ts], None], *arguments: *Ts) -> None:
        """Write what must be on disk before the run can go on. A full disk makes the run wait, not end."""
        has_warned = False
        while True:
            try:
                return await asyncio.to_thread(function, *arguments)
            except RunError as error:
                if not has_warned:
                    self._emit(events.Warned(message=f"{error} The run waits until it can be written."))
                has_warned = True
                await asyncio.sleep(WRITE_AGAIN_SECONDS)

    # --- what the leader decides --------------------------------------------------------------------------------

    def _carry_out(self, action: leader.Action) -> None:
        match action:
            case leader.OpenRound(round):
                self._open(round)
            case leader.Reduce():
                self._expected = self._leader.expected
                self._background.start(self._reduce())
            case leader.Propose(round, chain):
                self._background.start(self._propose(votes.Proposal(self._voter.term, round, chain)))
            case leader.Commit():
                self._commit()
            case leader.Drop(peer_id, reason):
                self._drop(peer_id, reason)
            case leader.Explain(phase, deadline, reason):
                self._explain(self._leader.round, phase.value, deadline, reason)
            case leader.Finish(reason):
                self._finish_reason = reason
                self._explain(self._leader.round, leader.Phase.FINISHED.value, None, reason)
                self._tell_followers()
                self._finished.set()

    def _open(self, round: int) -> None:
        plan = plan_round(self.config, self.manifest.blocks, round, self.committed.chain)
        plan = within_budget(plan, self.config, self.manifest.blocks, self._exchange)
        self.reduction = Reduction(self.manifest, plan, self._shard_blocks)
        self._opened_at = self._tools.clock()
        self._emit(
            events.RoundOpened(
                round=round,
                peers=len(self._leader.members),
                steps=plan.steps,
                lr=plan.lr_last,
                refresh=len(plan.due.refresh),
            )
        )
        self._explain(round, leader.Phase.TRAIN.value, None, "peers take their local steps")
        self._tell_followers()

    async def _reduce(self) -> None:
        reduction = self._open_reduction()
        reduction.close()
        result = await self._on_worker(self._reduce_on_worker, reduction)
        # On disk before it is voted on: whoever restarts can apply what was accepted.
        await self._write(self._tools.donor.delta_log.store, published_to_proto(result.header), result.data)
        self._result = result
        self.dispatch(leader.Reduced(reduction.plan.round, result.header.chain.hex()))

    def _reduce_on_worker(self, reduction: Reduction) -> Published:
        return reduction.result(self._consensus.bases, self.config.round.quorum, self._outer)

    async def _propose(self, proposal: votes.Proposal) -> None:
        self._voter, answer = votes.accept(self._voter, proposal)
        if not answer.granted:
            raise RunError(f"Round {proposal.round} was not accepted ({answer.reason}); start again with --resume.")
        await self._write(self._tools.journal.write, self._voter)
        self.dispatch(leader.Decided(proposal.round, proposal.chain))  # one voter is the majority

    def _commit(self) -> None:
        result, reduction = self._result, self._open_reduction()
        assert result is not None, "a commit follows a proposal"
        self._result = None
        round = reduction.plan.round
        self._exchange = after_round(self._exchange, reduction.plan, result.void, reduction.captured())
        self._tools.donor.delta_log.commit(round)
        self.committed = Progress(round, result.header.chain.hex())
        self.digests[round] = asyncio.get_running_loop().create_future()
        self.reported[round] = set()
        for old in [known for known in self.digests if known <= round - KEPT_DIGESTS]:
            del self.digests[old], self.reported[old]
        outcome = outcome_of(result, reduction, self._expected, self.members, self.seconds_open())
        task = self._background.start(self._apply(result, self.committed, outcome))
        self._after_commit.add(task)
        task.add_done_callback(self._after_commit.discard)
        self._explain(round, "apply", None, "committed: fetch, apply, report")
        self._tell_followers()

    def _drop(self, peer_id: str, reason: str) -> None:
        peer = self.roster.get(peer_id)
        if peer is not None and peer.is_here:
            peer.is_here = False
            self._emit(events.PeerLeft(peer=peer_id, name=peer.name, reason=reason))
        self.changed.notify()

    def _explain(self, round: int, phase: str, deadline: float | None, reason: str) -> None:
        self._emit(events.PhaseChanged(round=round, phase=phase, deadline=deadline, reason=reason))

    def _tell_followers(self) -> None:
        self.version += 1
        self.changed.notify()

    def _open_reduction(self) -> Reduction:
        assert self.reduction is not None, "a round is open"
        return self.reduction

    # --- after the commit ---------------------------------------------------------------------------------------

    async def _apply(self, result: Published, progress: Progress, outcome: Outcome) -> None:
        """Apply to the leader's own weights, score, save and show. The worker thread keeps rounds in order."""
        until = self._tools.clock() + REPORT_SECONDS
        applied = await self._on_worker(self._apply_on_worker, result, progress)
        del result  # its payloads need not wait for the rest
        self.digests[progress.round].set_result(applied.digest)
        if is_agreed(progress.round) and any(peer.address for peer in self.roster.here()):
            self._background.start(self._keep_state(applied))  # as every donor does now
        async with self._show_in_order:  # fair: rounds take it in the order of their commits
            loss = await self._score(applied.consensus, progress.round)
            path = await self._save(applied)
            await self._wait_for_reports(outcome, until - self._tools.clock())
            self._show(outcome, loss, applied.digest)
            if path:
                self._emit(events.CheckpointSaved(round=progress.round, path=path))

    def _apply_on_worker(self, result: Published, progress: Progress) -> Applied:
        refreshed = self._consensus.apply(result.header.plan, result.grids, result.void)
        self._outer = rotate_outer(result.outer, refreshed, self.config.optimizer)
        self._applied = progress
        # Its tensors are replaced by the next round, never written to: a shallow copy stays what it is.
        consensus, digest = copy.copy(self._consensus), self._consensus.digest().hex()
        return Applied(progress=progress, consensus=consensus, outer=self._outer, digest=digest)

    async def _score(self, consensus: Consensus, round: int) -> float | None:
        value = await self._on_worker(self._tools.evaluate, consensus)
        loss = value if math.isfinite(value) else None
        self._emit(events.Evaluated(round=round, loss=loss))
        return loss

    async def _save(self, applied: Applied) -> str:
        """Write a checkpoint if one is due. One that cannot be written is a warning: the rounds are on disk."""
        round = applied.progress.round
        if round % self.config.checkpoint.every and not self._finish_reason:
            return ""
        try:
            path = await self._on_worker(self._tools.save, applied)
        except CheckpointError as error:
            self._emit(events.Warned(message=f"{error} Training goes on; the next round tries again."))
            return ""
        self._tools.donor.delta_log.checkpointed(round)
        return path

    async def _wait_for_reports(self, outcome: Outcome, seconds: float) -> None:
        """A round's bytes are known once its peers have reported them; a busy peer's are counted with the next."""
        reported = self.reported.get(outcome.round, set())
        await self.changed.wait_for(
            lambda: all(peer in reported or not self.is_member(peer) for peer in outcome.included), seconds
        )

    def _show(self, outcome: Outcome, loss: float | None, digest: str) -> None:
        if not outcome.included:
            reason = "no shard reached its quorum; the work stays with its peers"
            self._emit(events.RoundVoid(round=outcome.round, reason=reason))
        closed = closed_event(outcome, self.roster.everyone(), self.manifest.parameters, loss, digest)
        sent, received = closed.wire_bytes["sent"], closed.wire_bytes["received"]
        self._totals.wire_bytes += sum(sent.values()) + sum(received.values())
        self._totals.dense_bytes += closed.dense_bytes
        self._totals.last_loss = loss
        self._emit(closed)

    def _emit(self, event: Event) -> None:
        self._tools.emit(event)

    # --- what others ask for ------------------------------------------------------------------------------------

    @property
    def phase(self) -> leader.Phase:
        """Where the run is."""
        return self._leader.phase

    @property
    def is_over(self) -> bool:
        """Whether the last round is done, so that peers may go. A coordinator that is only stopped comes back."""
        last = self.config.run.rounds
        return self.phase is leader.Phase.FINISHED and 0 < last <= self.committed.round

    @property
    def members(self) -> int:
        """How many peers take part."""
        return len(self._leader.members)

    def is_member(self, peer_id: str) -> bool:
        """Whether this peer takes part."""
        return peer_id in self._leader.members

    @property
    def open_plan(self) -> RoundPlan | None:
        """The round that peers should train for or send to; None between rounds."""
        phases = (leader.Phase.TRAIN, leader.Phase.EXCHANGE, leader.Phase.COMMIT)
        return self.reduction.plan if self.reduction is not None and self.phase in phases else None

    def seconds_open(self) -> float:
        """Since the open round was announced."""
        return self._tools.clock() - self._opened_at

    def seconds_left(self) -> float | None:
        """Until the open round closes at the latest, as known now."""
        deadline = leader.deadline_at(self._leader)
        return None if deadline is None else max(0.0, deadline - self._tools.clock())

    async def state(self, begun: int = 0) -> pb.StateDescription:
        """The state to serve: the one of round ``begun`` if it is kept, else a recent one, made now if there is none.

        What came since is in the delta log.
        """
        donor = self._tools.donor
        for description in (donor.describe(begun), donor.describe()):
            if description is not None and self._is_recent(description, is_begun=description.round == begun > 0):
                donor.lease(description.round)
                return description
        if self._state_being_made is None or self._state_being_made.done():
            self._state_being_made = asyncio.create_task(self._make_state())
        return await asyncio.shield(self._state_being_made)

    def catch_up(self, applied: int) -> pb.CatchUp:
        """What a peer whose weights are at round ``applied`` has to know to choose its way."""
        log, state = self._tools.donor.delta_log, self._tools.donor.describe()
        is_served = state is not None and self._is_recent(state)
        state_round = state.round if state is not None and is_served else self.committed.round
        return pb.CatchUp(
            round_bytes=log.bytes_since(applied),
            state_round=state_round,
            state_bytes=self._state_bytes,
            rest_bytes=log.bytes_since(state_round),
        )

    def _is_recent(self, state: pb.StateDescription, is_begun: bool = False) -> bool:
        is_new = is_begun or state.round >= self.committed.round - STATE_ROUNDS
        return is_new and self._tools.donor.delta_log.keeps_since(state.round)

    async def _make_state(self) -> pb.StateDescription:
        consensus, progress = await self._on_worker(self._freeze_on_worker)
        return await self._tools.donor.keep_state(consensus, progress.round, bytes.fromhex(progress.chain))

    def _freeze_on_worker(self) -> tuple[Consensus, Progress]:
        return copy.copy(self._consensus), self._applied

    async def _keep_state(self, applied: Applied) -> None:
        """One that cannot be written is a warning: a newer one is made when somebody asks."""
        progress = applied.progress
        try:
            await self._tools.donor.keep_state(applied.consensus, progress.round, bytes.fromhex(progress.chain))
        except RunError as error:
            self._emit(events.Warned(message=f"{error} Training goes on."))
