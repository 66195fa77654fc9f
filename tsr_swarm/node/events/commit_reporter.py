"""Commits, for a leader's events: each committed round is reported once, in order, by whichever node leads then."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.node.context import NodeContext
from tsr_swarm.node.contribution_store import ContributionStore
from tsr_swarm.node.leader import Leader
from tsr_swarm.node.round_cache import ReducedShard
from tsr_swarm.node.weights import AppliedRound
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.wire.messages import PublishedHeader, published_from_proto

MAX_UNREPORTED = 8  # rounds that a leader may not have reported when it died: it waits for peers' reports in order


@dataclass(slots=True, eq=False)
class CommitReporter:
    """Reports committed rounds to the leadership of this node, in order, with digest and loss.

    log: where this node keeps rounds; None if it cannot be dialled, and never leads. To be called from one event loop.
    """

    context: NodeContext
    contributions: ContributionStore
    log: RoundLog | None
    began: int = 0  # the round of the state that this node's weights began with: none up to it will be applied here
    _commits: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    _in_order: asyncio.Lock = field(default_factory=asyncio.Lock)
    _last: tuple[int, AppliedRound] | None = None  # the newest round in this node's weights
    _digests: dict[int, str] = field(default_factory=dict)  # of the newest ones

    def begin_to_lead(self, leader: Leader, base: RoundRecord) -> None:
        """Report the committed rounds that the leader before did not report before it died."""
        self._commits.clear()
        if base.round > self.context.run_log.log.closed_round:
            self.context.background.start(self._report_rest(leader, base))

    def commit(self, record: RoundRecord) -> None:
        """Report a committed round; one that an earlier leader sealed is read from disk first."""
        sealed = self.context.round_cache.sealed(record.chain)
        if sealed is None:
            self._commits[record.round] = self.context.background.start(self._read_commit(record))
        else:
            self._report_commit(*sealed)

    async def _read_commit(self, record: RoundRecord) -> None:
        header = await self._read(record.round, bytes.fromhex(record.chain))
        if header is not None:
            self._report_commit(header, [None] * len(header.shards))

    async def _read(self, round: int, chain: bytes = b"") -> PublishedHeader | None:
        assert self.log is not None, "a leader keeps rounds"
        try:
            header = await asyncio.to_thread(self.log.header, round, chain)
            return None if header is None else published_from_proto(header, self.context.manifest)
        except (RunError, PeerError) as error:
            self.context.warn(f"{error} The round stands all the same.")
            return None

    def _report_commit(self, header: PublishedHeader, shards: Sequence[ReducedShard | None]) -> None:
        leader = self.context.leader
        if leader is not None:
            leader.committed(header, shards, self._members(header))

    def _members(self, header: PublishedHeader) -> int:
        return len(self.context.state.members | header.contributors)

    async def applied(self, header: PublishedHeader, applied: AppliedRound, seconds: float) -> None:
        """Report a round that was applied to this node's weights, in ``seconds``."""
        round, outer = header.plan.round, self.contributions.outer
        async with self._in_order:  # fair: rounds take it in the order in which they were applied
            self._last = round, applied
            self._digests = {**self._digests, round: applied.digest}
            self._digests.pop(round - MAX_UNREPORTED, None)
            await self.context.host.applied(header, applied, outer, seconds)
            await self._report_applied(round, applied)

    async def _report_applied(self, round: int, applied: AppliedRound) -> None:
        """Compute the held-out loss, if this node is to, and report the round while it leads."""
        loss = None
        if self.context.leader is not None or not self.context.info.trains:
            loss = await self.context.host.score(round, applied.consensus)
        await self._report(round, applied.digest, loss)

    async def _report(self, round: int, digest: str, loss: float | None) -> None:
        commit = self._commits.pop(round, None)
        if commit is not None:
            await commit
        leader = self.context.leader
        if leader is not None:
            leader.round_reporter.applied(round, digest, loss)

    async def _report_rest(self, leader: Leader, base: RoundRecord) -> None:
        """Report rounds up to ``base`` that no voter has in its log. Rounds that are committed meanwhile wait."""
        context, run_log = self.context, self.context.run_log
        async with self._in_order:
            await run_log.ask([voter for voter in base.voters if voter != context.me], base.round, context.clients)
            for round in range(max(run_log.log.closed_round, base.round - MAX_UNREPORTED) + 1, base.round):
                header = await self._read(round)
                if header is not None and context.leader is leader:
                    leader.round_reporter.committed(header, [None] * len(header.shards), self._members(header))
                    leader.round_reporter.applied(round, self._digests.get(round, ""), None)
            if context.leader is not leader or base.round <= run_log.log.closed_round:
                return
            self.commit(base)
            if self._last is not None and self._last[0] == base.round:
                await self._report_applied(*self._last)
            elif base.round <= self.began:
                await self._report(base.round, "", None)

    async def finish(self) -> None:
        """Wait until the newest round is scored, saved and reported."""
        async with self._in_order:
            pass
