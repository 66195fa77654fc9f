"""Rounds that stand, as people are told of them: each once, in order, by whoever leads then."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.node.leader import Leader
from tsr_swarm.node.round_cache import ReducedShard
from tsr_swarm.node.weights import AppliedRound
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.outer_step import OuterState
from tsr_swarm.process.tasks import Background
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.wire.messages import PublishedHeader, published_from_proto

MOST_UNTOLD = 8  # rounds that a leader may have died before it told: it waits for reports of one after the other

Sealed = tuple[PublishedHeader, tuple[ReducedShard, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """What this asks the rest of the node for."""

    warn: Callable[[str], None]
    leading: Callable[[], Leader | None]
    members: Callable[[], frozenset[str]]  # who takes part, while this node leads
    sealed: Callable[[], Mapping[str, Sealed]]  # by chain hash: put together here
    outer: Callable[[], OuterState]  # of this node as a reducer, after the newest round
    applied: Callable[[PublishedHeader, AppliedRound, OuterState, float], Awaitable[None]]  # rounds in order
    score: Callable[[int, Consensus], Awaitable[float | None]]  # held-out loss after a round, where it can be known
    told: Callable[[], int]  # the newest round that people were told of
    ask: Callable[[Sequence[str], int], Awaitable[None]]  # these nodes, which rounds up to this one were told


class CommitReporter:
    """One node's. Its event loop owns it."""

    def __init__(
        self, me: str, trains: bool, manifest: Manifest, log: RoundLog | None, seams: Seams, background: Background
    ) -> None:
        self._me, self._trains, self._manifest, self._log = me, trains, manifest, log
        self._seams, self._background = seams, background
        self._commits: dict[int, asyncio.Task[None]] = {}
        self._in_order = asyncio.Lock()
        self._last: tuple[int, AppliedRound] | None = None  # the newest round in this node's weights
        self._digests: dict[int, str] = {}  # of the newest ones
        self._began = 0  # the round of the state that this node's weights began with

    def begin(self, round: int) -> None:
        """This node's weights are a state, of after this round: rounds up to it will not be applied here."""
        self._began = round

    def begin_to_lead(self, leading: Leader, base: RoundRecord) -> None:
        """What stands has to be told, if the leader before did not live to."""
        self._commits.clear()
        if base.round > self._seams.told():
            self._background.start(self._tell_rest(leading, base))

    def commit(self, record: RoundRecord) -> None:
        """Tell people of a round; one that an earlier leader put together is read from disk first."""
        sealed = self._seams.sealed().get(record.chain)
        if sealed is None:
            self._commits[record.round] = self._background.start(self._read_commit(record))
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
            return None if header is None else published_from_proto(header, self._manifest)
        except (RunError, PeerError) as error:
            self._seams.warn(f"{error} The round stands all the same.")
            return None

    def _tell_commit(self, header: PublishedHeader, made: Sequence[ReducedShard | None]) -> None:
        leading = self._seams.leading()
        if leading is not None:
            leading.committed(header, made, self._members(header))

    def _members(self, header: PublishedHeader) -> int:
        return len(self._seams.members() | header.contributors)

    async def applied(self, header: PublishedHeader, applied: AppliedRound, seconds: float) -> None:
        """This node's weights have moved."""
        round, outer = header.plan.round, self._seams.outer()
        async with self._in_order:  # fair: rounds take it in the order in which they were applied
            self._last = round, applied
            self._digests = {**self._digests, round: applied.digest}
            self._digests.pop(round - MOST_UNTOLD, None)
            await self._seams.applied(header, applied, outer, seconds)
            await self._tell_applied(round, applied)

    async def _tell_applied(self, round: int, applied: AppliedRound) -> None:
        """Score a round, where this node is to, and tell people of it while it leads."""
        loss = None
        if self._seams.leading() is not None or not self._trains:
            loss = await self._seams.score(round, applied.consensus)
        await self._tell(round, applied.digest, loss)

    async def _tell(self, round: int, digest: str, loss: float | None) -> None:
        commit = self._commits.pop(round, None)
        if commit is not None:
            await commit
        leading = self._seams.leading()
        if leading is not None:
            leading.chronicle.applied(round, digest, loss)

    async def _tell_rest(self, leading: Leader, base: RoundRecord) -> None:
        """The leader before died before it told people of the newest rounds, as far as voters know.

        Rounds that come to stand meanwhile are told after them: they wait.
        """
        async with self._in_order:
            await self._seams.ask([voter for voter in base.voters if voter != self._me], base.round)
            for round in range(max(self._seams.told(), base.round - MOST_UNTOLD) + 1, base.round):
                header = await self._read(round)
                if header is not None and self._seams.leading() is leading:
                    leading.chronicle.committed(header, [None] * len(header.shards), self._members(header))
                    leading.chronicle.applied(round, self._digests.get(round, ""), None)
            if self._seams.leading() is not leading or base.round <= self._seams.told():
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
