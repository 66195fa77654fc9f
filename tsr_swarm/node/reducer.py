"""A node's shards at work: contributions are checked and held, averaged beside all else, and sealed in a round."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from tsr_swarm.config.layout import Slot
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.errors import PeerError, RunError, UnreachableError
from tsr_swarm.exchange.reduction import seal
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.grid import Grid
from tsr_swarm.node.contribution_store import ContributionStore
from tsr_swarm.node.round_cache import VOID, ReducedShard, RoundCache
from tsr_swarm.process.tasks import Background
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.rounds.reducer import Verdict
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.wire.gate import CheckedContribution
from tsr_swarm.wire.messages import ContributionHeader, PublishedHeader, open_envelope, published_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

WRITE_AGAIN_SECONDS = 5.0
ANSWER_SECONDS = 10.0  # what was offered is answered at once; this is for a node that is going

Key = tuple[str, int, int]  # peer, round, shard


@dataclass(frozen=True, slots=True)
class _Offer:
    header: ContributionHeader
    grids: Mapping[Slot, Grid]
    verdict: asyncio.Future[Verdict]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """What reducing asks the rest of the node for."""

    put: Callable[[pt.Event], None]
    warn: Callable[[str], None]
    term: Callable[[], int]  # the newest that a leader has told of
    is_member: Callable[[str], bool]  # whether this peer takes part, as far as this node knows
    refused: Callable[[ContributionHeader, PeerError], None]  # for people
    late: Callable[[int, str, str], None]  # for people: round, peer, reason
    numbers: Callable[[int, int], Mapping[str, int]]  # by round and term: whose work counts, and its place in sums
    bases: Callable[[int], Awaitable[Mapping[int, Basis] | None]]  # after this round; None: it is over


class Reducer:
    """One node's. Its event loop owns it."""

    def __init__(
        self,
        manifest: Manifest,
        contributions: ContributionStore,
        round_cache: RoundCache,
        log: RoundLog | None,
        seams: Seams,
        background: Background,
    ) -> None:
        self.contributions = contributions
        self._manifest, self._round_cache, self._log = manifest, round_cache, log
        self._seams, self._background = seams, background
        self._offers: dict[Key, _Offer] = {}
        self.sealed: dict[
            str, tuple[PublishedHeader, tuple[ReducedShard, ...]]
        ] = {}  # by chain hash, of the newest round

    # --- contributions ------------------------------------------------------------------------------------------

    def expect(self, envelope: pb.Envelope) -> CheckedContribution:
        """Check an upload's envelope before any of its bytes are taken."""
        return self._check(open_envelope(envelope))

    def _check(self, header: ContributionHeader, checked: CheckedContribution | None = None) -> CheckedContribution:
        try:
            contribution = self.contributions.check(header, checked)
        except PeerError as error:
            if error.reason == "round" and header.round > self.contributions.newest:
                raise UnreachableError("This reducer has not heard of that round yet; try again.") from error
            self._seams.refused(header, error)
            raise
        if contribution.header.term > self._seams.term():
            raise UnreachableError("This reducer has not heard of that leader yet; try again.")
        if not self._seams.is_member(contribution.header.peer_id):
            raise UnreachableError("This reducer does not know that peer yet; try again.")
        return contribution

    async def submit(self, contribution: CheckedContribution, data: bytes) -> pb.SubmitReply:
        """Take what ``expect`` has checked. If it is late or refused, the answer is the reason; nothing is kept."""
        contribution = self._check(contribution.header, contribution)
        try:
            grids = await asyncio.to_thread(contribution.decode, data)
        except PeerError as error:
            self._seams.refused(contribution.header, error)
            raise
        verdict = await self._offer(contribution.header, grids)
        if not verdict.counted:
            self._seams.late(contribution.header.round, contribution.header.peer_id, verdict.reason)
        return pb.SubmitReply(counted=verdict.counted, reason=verdict.reason)

    async def _offer(self, header: ContributionHeader, grids: Mapping[Slot, Grid]) -> Verdict:
        key = header.peer_id, header.round, header.shard
        if key in self._offers:
            raise UnreachableError("The same shard of this contribution is being taken in; try again.")
        verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._offers[key] = _Offer(header, grids, verdict)
        try:
            self._seams.put(
                pt.Offered(
                    peer=header.peer_id,
                    term=header.term,
                    round=header.round,
                    parent=header.parent.hex(),
                    shard=header.shard,
                    tokens=header.tokens,
                )
            )
            async with asyncio.timeout(ANSWER_SECONDS):
                return await verdict
        except TimeoutError:
            raise UnreachableError("This node has no answer now; try again.") from None
        finally:
            del self._offers[key]

    def reply(self, reply: pt.Reply) -> None:
        """What became of an offer."""
        offer = self._offers.get((reply.peer, reply.round, reply.shard))
        if offer is None:
            return
        if reply.verdict.is_new:
            self.contributions.add(offer.header, offer.grids)
        if not offer.verdict.done():
            offer.verdict.set_result(reply.verdict)

    # --- averages -----------------------------------------------------------------------------------------------

    def average(self, average: pt.Average) -> None:
        """Average shards beside everything else, one after the other."""
        numbers = self._seams.numbers(average.round, average.term)
        self._background.start(self._average(average, numbers))

    async def _average(self, average: pt.Average, numbers: Mapping[str, int]) -> None:
        bases = await self._seams.bases(average.round - 1)
        try:
            jobs = {
                shard: self.contributions.job(average.round, shard, peers, numbers)
                for shard, peers in average.included.items()
            }
        except RunError:
            bases = None
        if bases is None:  # the round is over, or the one before does not come: nobody need wait for these shards
            for shard in average.included:
                self._seams.put(pt.Averaged(average.term, average.round, shard, VOID.decided))
            return
        for shard, job in jobs.items():
            done = await asyncio.to_thread(job.run, bases)
            made = self.contributions.keep(done)
            if not made.result.void:
                self._round_cache.add_reduced_shard(average.round, shard, made, done.frames)
            self._seams.put(pt.Averaged(average.term, average.round, shard, made.decided))

    # --- rounds -------------------------------------------------------------------------------------------------

    def seal(self, order: pt.Seal) -> None:
        """Put a round together of what its reducers made, and on disk: whoever restarts can apply what was accepted."""
        plan = self._round_cache.plan(order.round, order.parent)
        assert plan is not None, "who leads has announced it"
        made = []
        for shard, result in enumerate(order.results):
            found = self._round_cache.reduced_shard(order.round, shard, result)
            assert found is not None or result.is_void, "a shard counts as done when its bytes are here"
            made.append((VOID, b"") if result.is_void or found is None else found)
        self._background.start(self._seal(order, plan, made))

    async def _seal(self, order: pt.Seal, plan: RoundPlan, made: list[tuple[ReducedShard, bytes]]) -> None:
        results = [shard.result for shard, _ in made]
        header = seal(plan, self._manifest.shard_blocks, results, order.voters)
        await self._store(published_to_proto(header), b"".join(frames for _, frames in made))
        self.sealed = {header.chain.hex(): (header, tuple(shard for shard, _ in made))}
        self._seams.put(pt.Sealed(RoundRecord(order.round, header.chain.hex(), order.parent, order.voters)))

    async def _store(self, header: pb.PublishedHeader, data: bytes) -> None:
        """A full disk makes the run wait, not end."""
        assert self._log is not None, "who leads keeps rounds"
        has_warned = False
        while True:
            try:
                return await asyncio.to_thread(self._log.store, header, data)
            except RunError as error:
                if not has_warned:
                    self._seams.warn(f"{error} The run waits until it can be written.")
                has_warned = True
                await asyncio.sleep(WRITE_AGAIN_SECONDS)
