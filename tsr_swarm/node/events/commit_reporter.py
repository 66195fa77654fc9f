"""Rounds that stand, as people are told of them: each once, in order, by whoever leads then."""

import asyncio
from collections.abc import Sequence

from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.node.context import NodeContext
from tsr_swarm.node.contribution_store import ContributionStore
from tsr_swarm.node.leader import Leader
from tsr_swarm.node.round_cache import ReducedShard, RoundCache
from tsr_swarm.node.weights import AppliedRound
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.wire.messages import PublishedHeader, published_from_proto

MOST_UNTOLD = 8  # rounds that a leader may have died before it told: it waits for reports of one after the other


class CommitReporter:
    """Tells the program around this node of applied rounds, and people of rounds that stand while this node leads."""

    def __init__(
        self, context: NodeContext, round_cache: RoundCache, contributions: ContributionStore, log: RoundLog | None
    ) -> None:
        """``log``: None for a node that nobody can dial, which never leads."""
        self._context, self._round_cache, self._contributions, self._log = context, round_cache, contributions, log
        self._commits: dict[int, asyncio.Task[None]] = {}
        self._in_order = asyncio.Lock()
        self._last: tuple[int, AppliedRound] | None = None  # the newest round in this node's weights
        self._digests: dict[int, str] = {}  # of the newest ones
        self._began = 0  # the round of the state that this node's weights began with

    def begin(self, round: int) -> None:
        """This node's weights are a state, of after this round: rounds up to it will not be applied here."""
        self._began = round

    def begin_to_lead(self, leader: Leader, base: RoundRecord) -> None:
        """What stands has to be told, if the leader before did not live to."""
        self._commits.clear()
        if base.round > self._context.run_log.log.closed_round:
            self._context.background.start(self._tell_rest(leader, base))

    def commit(self, record: RoundRecord) -> None:
        """Tell people of a round; one that an earlier leader put together is read from disk first."""
        sealed = self._round_cache.sealed(record.chain)
        if sealed is None:
            self._commits[record.round] = self._context.background.start(self._read_commit(record))
        else:
            self._tell_commit(*sealed)

    async def _read_commit(self, record: RoundRecord) -> None:
        header = await self._read(record.round, bytes.fromhex(record.chain))
        if header is not None:
            self._tell_commit(header, [None] * len(header.shards))

    async def _read(self, round: int, chain: bytes = b"") -> PublishedHeader | None:
        assert self._log is not None, "who leads keeps rounds"
        try:
            header = await asyncio.to_thread(self._log.header, round, chain)
            return None if header is None else published_from_proto(header, self._context.manifest)
        except (RunError, PeerError) as error:
            self._context.warn(f"{error} The round stands all the same.")
            return None

    def _tell_commit(self, header: PublishedHeader, made: Sequence[ReducedShard | None]) -> None:
        leader = self._context.leader
        if leader is not None:
            leader.committed(header, made, self._members(header))

    def _members(self, header: PublishedHeader) -> int:
        leading = self._context.state.leading
        members = frozenset(leading.state.members) if leading is not None else frozenset()
        return len(members | header.contributors)

    async def applied(self, header: PublishedHeader, applied: AppliedRound, seconds: float) -> None:
        """This node's weights have moved."""
        round, outer = header.plan.round, self._contributions.outer
        async with self._in_order:  # fair: rounds take it in the order in which they were applied
            self._last = round, applied
            self._digests = {**self._digests, round: applied.digest}
            self._digests.pop(round - MOST_UNTOLD, None)
            await self._context.host.applied(header, applied, outer, seconds)
            await self._tell_applied(round, applied)

    async def _tell_applied(self, round: int, applied: AppliedRound) -> None:
        """Score a round, where this node is to, and tell people of it while it leads."""
        loss = None
        if self._context.leader is not None or not self._context.info.trains:
            loss = await self._context.host.score(round, applied.consensus)
        await self._tell(round, applied.digest, loss)

    async def _tell(self, round: int, digest: str, loss: float | None) -> None:
        commit = self._commits.pop(round, None)
        if commit is not None:
            await commit
        leader = self._context.leader
        if leader is not None:
            leader.round_reporter.applied(round, digest, loss)

    async def _tell_rest(self, leader: Leader, base: RoundRecord) -> None:
        """The leader before died before it told people of the newest rounds, as far as voters know.

        Rounds that come to stand meanwhile are told after them: they wait.
        """
        context, run_log = self._context, self._context.run_log
        async with self._in_order:
            await run_log.ask([voter for voter in base.voters if voter != context.me], base.round, context.clients)
            for round in range(max(run_log.log.closed_round, base.round - MOST_UNTOLD) + 1, base.round):
                header = await self._read(round)
                if header is not None and context.leader is leader:
                    leader.round_reporter.committed(header, [None] * len(header.shards), self._members(header))
                    leader.round_reporter.applied(round, self._digests.get(round, ""), None)
            if context.leader is not leader or base.round <= run_log.log.closed_round:
                return
            self.commit(base)
            if self._last is not None and self._last[0] == base.round:
                await self._tell_applied(*self._last)
            elif base.round <= self._began:
                await self._tell(base.round, "", None)

    async def told_all(self) -> None:
        """Wait until the newest round is scored, kept and told."""
        async with self._in_order:
            pass
