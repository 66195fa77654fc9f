"""What a node takes from others: proposals it is to vote on, rounds that stand, and states. Applied in their order."""

import asyncio
import time
from dataclasses import dataclass, field

from tsr_swarm.errors import PeerError, RefusedError, RunError, UnreachableError
from tsr_swarm.node.context import NodeContext
from tsr_swarm.node.contribution_store import ContributionStore
from tsr_swarm.node.events.commit_reporter import CommitReporter
from tsr_swarm.node.sync.downloader import Downloader
from tsr_swarm.node.trainer_task import TrainerTask
from tsr_swarm.node.weights import AppliedRound, WeightsThread
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.storage.run_folder import record_of
from tsr_swarm.storage.state_store import StateStore, is_agreed
from tsr_swarm.telemetry.events import StateReceived, Warned
from tsr_swarm.wire.v1 import swarm_pb2 as pb


@dataclass(slots=True, eq=False)
class Follower:
    """Fetches and applies what the decisions ask for, and tells the parts that go on with it."""

    context: NodeContext
    downloader: Downloader
    weights: WeightsThread
    contributions: ContributionStore
    trainer_task: TrainerTask
    commit_reporter: CommitReporter
    state_store: StateStore | None  # None for a node that gives nothing to others
    _warning: str = ""  # the newest
    _has_warned_of_the_disk: bool = False
    _storing: set[str] = field(default_factory=set)  # chain hashes of proposals

    async def store(self, order: pt.Store) -> None:
        """Have a proposal's bytes on disk; the leader asks again every second, which changes nothing."""
        if order.record.chain in self._storing:
            return
        self._storing.add(order.record.chain)
        try:
            await self.downloader.proposal(order.record, order.sources, order.donors)
        except UnreachableError:
            return  # asked for again with the next beat
        except (RefusedError, RunError) as error:
            self._warn(f"{error} This node does not vote for round {order.record.round} until it has its bytes.")
            return
        finally:
            self._storing.discard(order.record.chain)
        self.context.put(pt.Stored(order.record))

    async def fetch_round(self, order: pt.FetchRound) -> None:
        context, started = self.context, time.monotonic()
        newest, parent = context.newest, context.state.peer.chain
        try:
            if order.round > newest.round:
                raise UnreachableError(f"Nobody has said yet what round {order.round} came to.")
            fetched = await self.downloader.round(order.round, newest, parent, order.sources, order.donors)
        except UnreachableError:
            context.put(pt.FetchFailed(is_gone=False))
            return
        if fetched is None:
            context.put(pt.FetchFailed(is_gone=True))
            return
        message, data, published = fetched
        await self._keep_round(message, data)
        applied = await self.weights.apply(published)
        self.contributions.advance(published.header, applied.refreshed)
        self.trainer_task.count_tokens(published.header)
        context.put(pt.Applied(record_of(published.header), published.header.contributors))
        if self.state_store is not None and is_agreed(order.round):
            context.background.start(self._keep_state(self.state_store, applied, message))
        await self.commit_reporter.applied(published.header, applied, time.monotonic() - started)

    async def _keep_round(self, message: pb.PublishedHeader, data: bytes) -> None:
        """Have the round on disk before it is known to stand here, so that a restart finds what the journal names."""
        if self.state_store is not None:
            try:
                await asyncio.to_thread(self.state_store.round_log.store, message, data)
                self._has_warned_of_the_disk = False
            except RunError as error:
                self._warn_of_the_disk(error)

    async def _keep_state(self, store: StateStore, applied: AppliedRound, message: pb.PublishedHeader) -> None:
        try:
            await store.keep_state(applied.consensus, message.plan.round, message.chain)
        except RunError as error:
            self._warn_of_the_disk(error)

    async def fetch_state(self, order: pt.FetchState) -> None:
        """Download a recent state, going on after a break where it stopped."""
        context, started = self.context, time.monotonic()
        try:
            state, donor_count, record = await self.downloader.state(order.donors, lambda: context.is_stopping)
            consensus = await self.weights.run(state.consensus, context.manifest)
        except (UnreachableError, PeerError, RunError) as error:
            if not context.is_stopping:
                self._warn(f"{error} This peer keeps trying.")
            context.put(pt.FetchFailed(is_gone=False))
            return
        await self.weights.replace(consensus, record)
        self.contributions.restore(record.chain)
        self.commit_reporter.began = record.round
        await context.host.restored(record, consensus)  # before the journal knows of its round: a restart finds it
        context.emit(
            StateReceived(
                round=record.round,
                bytes=state.description.total_bytes,
                seconds=round(time.monotonic() - started, 3),
                donors=donor_count,
                found_bytes=state.found_bytes,
            )
        )
        context.put(pt.Restored(record))
        if self.state_store is None:
            state.remove()
            return
        try:
            await self.state_store.start_anew(state.path, state.description)
        except RunError as error:
            self._warn_of_the_disk(error)

    def _warn_of_the_disk(self, error: RunError) -> None:
        """Once: training needs none of it."""
        if not self._has_warned_of_the_disk:
            self._warn(f"{error} Training goes on; others download elsewhere.")
        self._has_warned_of_the_disk = True

    def _warn(self, message: str) -> None:
        """What fails is tried every second, and told once."""
        if message != self._warning:
            self.context.emit(Warned(message=message))
        self._warning = message
