"""What a node takes from others: proposals it is to vote on, rounds that stand, and states. Applied in their order."""

import asyncio
import time

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


class Follower:
    """Fetches and applies what the decisions ask for, and tells the parts that go on with it."""

    def __init__(
        self,
        context: NodeContext,
        downloader: Downloader,
        weights: WeightsThread,
        contributions: ContributionStore,
        trainer_task: TrainerTask,
        commit_reporter: CommitReporter,
        store: StateStore | None,
    ) -> None:
        """``store``: None for a node that gives nothing to others."""
        self._context, self._downloader, self._weights, self._store = context, downloader, weights, store
        self._contributions, self._trainer_task = contributions, trainer_task
        self._commit_reporter = commit_reporter
        self._warning = ""  # the newest
        self._has_warned_of_the_disk = False
        self._storing: set[str] = set()  # chain hashes of proposals

    # --- proposals ----------------------------------------------------------------------------------------------

    async def store(self, order: pt.Store) -> None:
        """Have a proposal's bytes on disk; the leader asks again every second, which changes nothing."""
        if order.record.chain in self._storing:
            return
        self._storing.add(order.record.chain)
        try:
            await self._downloader.proposal(order.record, order.sources, order.donors)
        except UnreachableError:
            return  # asked for again with the next beat
        except (RefusedError, RunError) as error:
            self._warn(f"{error} This node does not vote for round {order.record.round} until it has its bytes.")
            return
        finally:
            self._storing.discard(order.record.chain)
        self._context.put(pt.Stored(order.record))

    # --- rounds -------------------------------------------------------------------------------------------------

    async def fetch_round(self, order: pt.FetchRound) -> None:
        """Fetch the next round and apply it."""
        context, started = self._context, time.monotonic()
        newest, parent = context.newest, context.state.peer.chain
        try:
            if order.round > newest.round:
                raise UnreachableError(f"Nobody has said yet what round {order.round} came to.")
            fetched = await self._downloader.round(order.round, newest, parent, order.sources, order.donors)
        except UnreachableError:
            context.put(pt.FetchFailed(is_gone=False))
            return
        if fetched is None:
            context.put(pt.FetchFailed(is_gone=True))
            return
        message, data, published = fetched
        await self._keep_round(message, data)
        applied = await self._weights.apply(published)
        self._contributions.advance(published.header, applied.refreshed)
        self._trainer_task.count_tokens(published.header)
        context.put(pt.Applied(record_of(published.header), published.header.contributors))
        if self._store is not None and is_agreed(order.round):
            context.background.start(self._keep_state(self._store, applied, message))
        await self._commit_reporter.applied(published.header, applied, time.monotonic() - started)

    async def _keep_round(self, message: pb.PublishedHeader, data: bytes) -> None:
        """Have the round on disk before it is known to stand here, so that a restart finds what the journal names."""
        if self._store is not None:
            try:
                await asyncio.to_thread(self._store.round_log.store, message, data)
                self._has_warned_of_the_disk = False
            except RunError as error:
                self._warn_of_the_disk(error)

    async def _keep_state(self, store: StateStore, applied: AppliedRound, message: pb.PublishedHeader) -> None:
        try:
            await store.keep_state(applied.consensus, message.plan.round, message.chain)
        except RunError as error:
            self._warn_of_the_disk(error)

    # --- states -------------------------------------------------------------------------------------------------

    async def fetch_state(self, order: pt.FetchState) -> None:
        """Download a recent state, going on after a break where it stopped."""
        context, started = self._context, time.monotonic()
        try:
            state, givers, record = await self._downloader.state(order.donors, lambda: context.is_stopping)
            consensus = await self._weights.run(state.consensus, context.manifest)
        except (UnreachableError, PeerError, RunError) as error:
            if not context.is_stopping:
                self._warn(f"{error} This peer keeps trying.")
            context.put(pt.FetchFailed(is_gone=False))
            return
        await self._weights.replace(consensus, record)
        self._contributions.restore(record.chain)
        self._commit_reporter.begin(record.round)
        await context.host.restored(record, consensus)  # before the journal knows of its round: a restart finds it
        context.emit(
            StateReceived(
                round=record.round,
                bytes=state.description.total_bytes,
                seconds=round(time.monotonic() - started, 3),
                donors=givers,
                found_bytes=state.found_bytes,
            )
        )
        context.put(pt.Restored(record))
        if self._store is None:
            state.remove()
            return
        try:
            await self._store.start_anew(state.path, state.description)
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
            self._context.emit(Warned(message=message))
        self._warning = message
