"""A node's shards at work: contributions are checked and held, averaged beside all else, and sealed in a round."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.errors import PeerError, RunError, UnreachableError
from tsr_swarm.exchange.reduction import seal
from tsr_swarm.node.context import NodeContext
from tsr_swarm.node.contribution_store import ContributionStore, HeldContribution
from tsr_swarm.node.roster_cache import RosterCache
from tsr_swarm.node.round_cache import VOID, ReducedShard
from tsr_swarm.node.weights import WeightsThread
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.protocol import Verdict
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.wire.gate import CheckedContribution
from tsr_swarm.wire.messages import ContributionHeader, open_envelope, published_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

WRITE_AGAIN_SECONDS = 5.0
ANSWER_SECONDS = 10.0  # what was offered is answered at once; this is for a node that is going

Key = tuple[str, int, int]  # peer, round, shard


@dataclass(slots=True, eq=False)
class Reducer:
    """Takes contributions to this node's shards, averages them, and puts a round together while this node leads."""

    context: NodeContext
    roster_cache: RosterCache
    weights: WeightsThread
    contributions: ContributionStore
    log: RoundLog | None  # None for a node that nobody can dial, which never leads
    _offers: dict[Key, tuple[HeldContribution, asyncio.Future[Verdict]]] = field(default_factory=dict)

    def expect(self, envelope: pb.Envelope) -> CheckedContribution:
        """Check an upload's envelope before any of its bytes are taken."""
        return self._check(open_envelope(envelope))

    def _check(self, header: ContributionHeader, checked: CheckedContribution | None = None) -> CheckedContribution:
        try:
            contribution = self.contributions.check(header, checked)
        except PeerError as error:
            if error.reason == "round" and header.round > self.contributions.newest:
                raise UnreachableError("This reducer has not heard of that round yet; try again.") from error
            self._show_refused(header, error)
            raise
        if header.term > self.context.term:
            raise UnreachableError("This reducer has not heard of that leader yet; try again.")
        if not self.roster_cache.is_member(header.peer_id):
            raise UnreachableError("This reducer does not know that peer yet; try again.")
        return contribution

    async def submit(self, contribution: CheckedContribution, data: bytes) -> pb.SubmitReply:
        """Take what ``expect`` has checked. If it is late or refused, the answer is the reason; nothing is kept."""
        contribution = self._check(contribution.header, contribution)
        header = contribution.header
        try:
            grids = await asyncio.to_thread(contribution.decode, data)
        except PeerError as error:
            self._show_refused(header, error)
            raise
        verdict = await self._offer(HeldContribution(header, grids))
        if not verdict.counted and self.context.leader is not None:
            self.context.leader.round_reporter.late(header.round, header.peer_id, verdict.reason)
        return pb.SubmitReply(counted=verdict.counted, reason=verdict.reason)

    async def _offer(self, offered: HeldContribution) -> Verdict:
        header = offered.header
        key = header.peer_id, header.round, header.shard
        if key in self._offers:
            raise UnreachableError("The same shard of this contribution is being taken in; try again.")
        verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._offers[key] = offered, verdict
        try:
            self.context.put(
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
        """Pass on what was decided of an offer."""
        offer = self._offers.get((reply.peer, reply.round, reply.shard))
        if offer is None:
            return
        offered, verdict = offer
        if reply.verdict.is_new:
            self.contributions.add(offered.header, offered.grids)
        if not verdict.done():
            verdict.set_result(reply.verdict)

    def _show_refused(self, header: ContributionHeader, error: PeerError) -> None:
        if self.context.leader is not None:
            self.context.leader.round_reporter.refused(header, error)

    def average(self, average: pt.Average) -> None:
        """Average shards beside everything else, one after the other."""
        leader = self.context.leader
        numbers = (
            leader.numbers if leader is not None else self.context.round_cache.numbers(average.round, average.term)
        )
        self.context.background.start(self._average(average, numbers))

    async def _average(self, average: pt.Average, numbers: Mapping[str, int]) -> None:
        bases = await self.weights.bases(average.round - 1)
        job = partial(self.contributions.job, average.round, numbers=numbers)
        try:
            jobs = {shard: job(shard, peers) for shard, peers in average.included.items()}
        except RunError:
            bases = None
        if bases is None:  # the round is over, or the one before does not come: nobody need wait for these shards
            for shard in average.included:
                self.context.put(pt.Averaged(average.term, average.round, shard, VOID.decided))
            return
        for shard, shard_job in jobs.items():
            done = await asyncio.to_thread(shard_job.run, bases)
            reduced = self.contributions.keep(done)
            if not reduced.result.void:
                self.context.round_cache.add_reduced_shard(average.round, shard, reduced, done.frames)
            self.context.put(pt.Averaged(average.term, average.round, shard, reduced.decided))

    def seal(self, order: pt.Seal) -> None:
        """Put a round together of its reduced shards, on disk: whoever restarts can apply what was accepted."""
        plan = self.context.round_cache.plan(order.round, order.parent)
        assert plan is not None, "who leads has announced it"
        shards = []
        for shard, result in enumerate(order.results):
            found = self.context.round_cache.reduced_shard(order.round, shard, result)
            assert found is not None or result.is_void, "a shard counts as done when its bytes are here"
            shards.append((VOID, b"") if result.is_void or found is None else found)
        self.context.background.start(self._seal(order, plan, shards))

    async def _seal(self, order: pt.Seal, plan: RoundPlan, shards: list[tuple[ReducedShard, bytes]]) -> None:
        results = [shard.result for shard, _ in shards]
        header = seal(plan, self.context.manifest.shard_blocks, results, order.voters)
        await self._store(published_to_proto(header), b"".join(frames for _, frames in shards))
        self.context.round_cache.add_sealed(header, tuple(shard for shard, _ in shards))
        self.context.put(pt.Sealed(RoundRecord(order.round, header.chain.hex(), order.parent, order.voters)))

    async def _store(self, header: pb.PublishedHeader, data: bytes) -> None:
        """A full disk makes the run wait, not end."""
        assert self.log is not None, "who leads keeps rounds"
        has_warned = False
        while True:
            try:
                return await asyncio.to_thread(self.log.store, header, data)
            except RunError as error:
                if not has_warned:
                    self.context.warn(f"{error} The run waits until it can be written.")
                has_warned = True
                await asyncio.sleep(WRITE_AGAIN_SECONDS)
