"""What a node takes from others: proposals it is to vote on, rounds that stand, and states. Applied in their order."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.errors import PeerError, RefusedError, RunError, UnreachableError
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.node.sync.downloader import Downloader
from tsr_swarm.node.weights import AppliedRound, Weights, apply_round, frozen
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.process.machine_limits import memory_errors
from tsr_swarm.process.tasks import Background, Signal
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.storage.run_folder import record_of
from tsr_swarm.storage.state_store import StateStore, is_agreed
from tsr_swarm.telemetry.events import Event, StateReceived, Warned
from tsr_swarm.wire.messages import PublishedHeader
from tsr_swarm.wire.v1 import swarm_pb2 as pb

WAIT_SECONDS = 60.0  # nothing is waited for without looking again

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """What following asks the rest of the node for."""

    put: Callable[[pt.Event], None]
    emit: Callable[[Event], None]
    newest: Callable[[], RoundRecord]  # the newest round that anybody told to stand
    at: Callable[[], tuple[int, str]]  # the round and chain hash of this node's weights
    should_stop: Callable[[], bool]
    settle: Callable[[PublishedHeader, Mapping[int, tuple[Basis, Basis]]], None]  # what a reducer keeps, at once
    restored: Callable[[RoundRecord], None]  # likewise
    keep: Callable[[RoundRecord, Consensus], Awaitable[None]]  # a state that was taken, on disk
    applied: Callable[[PublishedHeader, AppliedRound, float], Awaitable[None]]  # with the seconds that it took


class Follower:
    """One node's. Its event loop owns it; whatever touches weights is done on its one worker thread, in order."""

    def __init__(
        self,
        me: str,
        manifest: Manifest,
        weights: Weights,
        fetcher: Downloader,
        donor: StateStore | None,
        seams: Seams,
        background: Background,
    ) -> None:
        self._me, self._manifest, self._weights = me, manifest, weights
        self._fetcher, self._donor, self._seams, self._background = fetcher, donor, seams, background
        self._worker = ThreadPoolExecutor(1, "maths")
        self._now: tuple[Consensus, RoundRecord] | None = None  # the newest weights, and of which round; None: none yet
        self._warning = ""  # the newest
        self._has_warned_of_the_disk = False
        self._moved = Signal()
        self._storing: set[str] = set()  # chain hashes of proposals

    def begin(self, record: RoundRecord) -> None:
        """This node has a state: that of the round of ``record``."""
        self._move(frozen(self._weights), record)

    def freeze(self) -> tuple[Consensus, RoundRecord]:
        """The newest weights, and of which round. Raises UnreachableError before the first state."""
        if self._now is None:
            raise UnreachableError("There is no state here yet; try again when it has been downloaded.")
        return self._now

    def _move(self, consensus: Consensus, record: RoundRecord) -> None:
        self._now = consensus, record
        self._moved.notify()

    def close(self) -> None:
        """End the worker when it has done what it does."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def on_worker(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Do heavy work after all that was asked for before. Raises RunError where memory does not suffice."""
        with memory_errors():
            return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)

    async def bases(self, round: int) -> Mapping[int, Basis] | None:
        """The bases after ``round``, once they are here; None if that is past or does not come."""
        await self._moved.wait_for(lambda: self._now is not None and self._now[1].round >= round, WAIT_SECONDS)
        return self._now[0].bases if self._now is not None and self._now[1].round == round else None

    # --- proposals ----------------------------------------------------------------------------------------------

    def store(self, order: pt.Store) -> None:
        """Have a proposal's bytes on disk; the leader asks again every second, which changes nothing."""
        if order.record.chain not in self._storing:
            self._storing.add(order.record.chain)
            self._background.start(self._store(order))

    async def _store(self, order: pt.Store) -> None:
        try:
            await self._fetcher.proposal(order.record, order.sources, order.donors)
        except UnreachableError:
            return  # asked for again with the next beat
        except (RefusedError, RunError) as error:
            self._warn(f"{error} This node does not vote for round {order.record.round} until it has its bytes.")
            return
        finally:
            self._storing.discard(order.record.chain)
        self._seams.put(pt.Stored(order.record))

    # --- rounds -------------------------------------------------------------------------------------------------

    def fetch_round(self, order: pt.FetchRound) -> None:
        """Fetch the next round and apply it."""
        self._background.start(self._fetch_round(order))

    async def _fetch_round(self, order: pt.FetchRound) -> None:
        started = time.monotonic()
        newest, (_, parent) = self._seams.newest(), self._seams.at()
        try:
            if order.round > newest.round:
                raise UnreachableError(f"Nobody has said yet what round {order.round} came to.")
            fetched = await self._fetcher.round(order.round, newest, parent, order.sources, order.donors)
        except UnreachableError:
            self._seams.put(pt.FetchFailed(is_gone=False))
            return
        if fetched is None:
            self._seams.put(pt.FetchFailed(is_gone=True))
            return
        message, data, published = fetched
        await self._keep(message, data)
        applied = await self.on_worker(apply_round, self._weights, published, self._me)
        record = record_of(published.header)
        self._move(applied.consensus, record)
        self._seams.settle(published.header, applied.refreshed)
        self._seams.put(pt.Applied(record, published.header.contributors))
        if self._donor is not None and is_agreed(order.round):
            self._background.start(self._keep_state(self._donor, applied, message))
        await self._seams.applied(published.header, applied, time.monotonic() - started)

    async def _keep(self, message: pb.PublishedHeader, data: bytes) -> None:
        """Have the round on disk before it is known to stand here, so that a restart finds what the journal names."""
        if self._donor is not None:
            try:
                await asyncio.to_thread(self._donor.round_log.store, message, data)
                self._has_warned_of_the_disk = False
            except RunError as error:
                self._warn_of_the_disk(error)

    async def _keep_state(self, donor: StateStore, applied: AppliedRound, message: pb.PublishedHeader) -> None:
        try:
            await donor.keep_state(applied.consensus, message.plan.round, message.chain)
        except RunError as error:
            self._warn_of_the_disk(error)

    # --- states -------------------------------------------------------------------------------------------------

    def fetch_state(self, order: pt.FetchState) -> None:
        """Download a recent state, going on after a break where it stopped."""
        self._background.start(self._fetch_state(order))

    async def _fetch_state(self, order: pt.FetchState) -> None:
        started = time.monotonic()
        try:
            state, givers, record = await self._fetcher.state(order.donors, self._seams.should_stop)
            consensus = await self.on_worker(state.consensus, self._manifest)
        except (UnreachableError, PeerError, RunError) as error:
            if not self._seams.should_stop():
                self._warn(f"{error} This peer keeps trying.")
            self._seams.put(pt.FetchFailed(is_gone=False))
            return
        await self.on_worker(self._weights.replace, consensus)
        self.begin(record)
        self._seams.restored(record)
        await self._seams.keep(record, consensus)  # before the journal knows of its round: a restart finds it
        self._seams.emit(
            StateReceived(
                round=record.round,
                bytes=state.description.total_bytes,
                seconds=round(time.monotonic() - started, 3),
                donors=givers,
                found_bytes=state.found_bytes,
            )
        )
        self._seams.put(pt.Restored(record))
        if self._donor is None:
            state.remove()
            return
        try:
            await self._donor.start_anew(state.path, state.description)
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
            self._seams.emit(Warned(message=message))
        self._warning = message
