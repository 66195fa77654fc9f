"""What travels beside the decisions' own messages: plans, numbers, headers, and reduced shards. Bounded by rounds."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.lowrank.sketch import Captured
from tsr_swarm.process.tasks import Signal
from tsr_swarm.rounds.protocol import ShardDigest
from tsr_swarm.wire.messages import PublishedHeader, ShardResult
from tsr_swarm.wire.roster import Members
from tsr_swarm.wire.v1 import swarm_pb2 as pb

KEPT_ROUNDS = 3  # the open one, the one that is being fetched, and one for whoever is late
KEPT_ROSTERS = 4  # of a round: it is closed again while shards are missing, and somebody may have gone meanwhile
KEPT_HEADERS = 4  # a round of which several were proposed, and the one after it


@dataclass(frozen=True, slots=True)
class ReducedShard:
    """What a reducer made of a shard, beside its bytes.

    ``result`` is published and hashed into the chain; the rest is for the leader alone.
    """

    result: ShardResult
    local_loss: float = 0.0  # mean over the tokens in it, nats a token
    raw_sent: int = 0  # bytes of the contributions in it, before compression
    captured: Mapping[int, Captured] = field(default_factory=dict)  # by block, the mean of what its peers measured

    @property
    def decided(self) -> ShardDigest:
        """As the decisions of a round know it: whose work is in it, and what tells it from any other result."""
        if self.result.void:
            return ShardDigest()
        hasher = hashlib.blake2b(digest_size=16, person=b"tsr/v1/shard")
        hasher.update(",".join(self.result.included).encode())
        hasher.update(self.result.tokens.to_bytes(8, "little"))
        for section in self.result.sections:
            hasher.update(section.kind.encode() + b"\0" + section.hash)
        return ShardDigest(frozenset(self.result.included), hasher.hexdigest())


VOID = ReducedShard(ShardResult(void=True))
Sealed = tuple[PublishedHeader, tuple[ReducedShard, ...]]  # a round that was put together here, and its shards


@dataclass(slots=True)
class RoundCache:
    """Plans, members and reduced shards of the newest rounds at one node."""

    _plans: dict[tuple[int, str], RoundPlan] = field(default_factory=dict)  # by round and parent
    _closed: dict[int, tuple[int, tuple[Members, ...]]] = field(default_factory=dict)  # by round, of the newest term
    _shards: dict[tuple[int, int, str], tuple[ReducedShard, bytes]] = field(default_factory=dict)  # with the digest
    _sealed: Sealed | None = None  # the newest

    def add_plan(self, plan: RoundPlan) -> None:
        """A leader announced this round."""
        self._plans[plan.round, plan.parent] = plan
        self._forget(plan.round - KEPT_ROUNDS)

    def plan(self, round: int, parent: str) -> RoundPlan | None:
        """What training for this round is, as a leader announced it last."""
        return self._plans.get((round, parent))

    def add_close(self, round: int, term: int, members: Members) -> None:
        """A leader closed shards of this round, which was announced: whose work counts, and in which order."""
        known, before = self._closed.get(round, (0, ()))
        if term >= known and any(key[0] == round for key in self._plans):
            others = [other for other in before if term == known and other.digest != members.digest]
            self._closed[round] = term, (members, *others)[:KEPT_ROSTERS]

    def numbers(self, round: int, term: int) -> Mapping[str, int]:
        """Places in sums, as a leader of this term told them last; empty where it did not."""
        known, rosters = self._closed.get(round, (0, ()))
        return rosters[0].numbers if known == term else {}

    def members(self, round: int, term: int, included: Collection[str]) -> Members | None:
        """A list that was told in this term and names all that are ``included``; None where it is gone."""
        known, rosters = self._closed.get(round, (0, ()))
        fits = (members for members in rosters if known == term and members.numbers.keys() >= set(included))
        return next(fits, None)

    def add_reduced_shard(self, round: int, shard: int, reduced: ReducedShard, frames: bytes) -> None:
        """A shard was reduced, and its bytes are here."""
        self._shards[round, shard, reduced.decided.digest] = reduced, frames

    def reduced_shard(self, round: int, shard: int, result: ShardDigest) -> tuple[ReducedShard, bytes] | None:
        """What ``result`` stands for, and its bytes; None where it is not here."""
        return self._shards.get((round, shard, result.digest))

    def add_sealed(self, header: PublishedHeader, shards: tuple[ReducedShard, ...]) -> None:
        """A round was put together here; the one before is forgotten."""
        self._sealed = header, shards

    def sealed(self, chain: str) -> Sealed | None:
        """The round of this chain hash, if it was the newest that was put together here."""
        return self._sealed if self._sealed is not None and self._sealed[0].chain.hex() == chain else None

    def _forget(self, last: int) -> None:
        self._plans = {key: plan for key, plan in self._plans.items() if key[0] > last}
        self._closed = {round: closed for round, closed in self._closed.items() if round > last}
        self._shards = {key: shard for key, shard in self._shards.items() if key[0] > last}


class Headers:
    """Headers of the newest rounds at one node, which it gives to others before it has all shards of a round.

    What is kept was checked: its chain hash is that of its content.
    """

    def __init__(self) -> None:
        self._kept: dict[bytes, pb.PublishedHeader] = {}  # by chain hash, the newest last
        self._changed = Signal()

    def keep(self, header: pb.PublishedHeader) -> None:
        """Have it here: whoever waits for it gets it."""
        self._kept.pop(header.chain, None)
        self._kept[header.chain] = header
        if len(self._kept) > KEPT_HEADERS:
            del self._kept[next(iter(self._kept))]
        self._changed.notify()

    async def get(self, round: int, chain: bytes, seconds: float = 0.0) -> pb.PublishedHeader | None:
        """That of this round and hash, as soon as it is here; None if it is not within ``seconds``."""
        if seconds:
            await self._changed.wait_for(lambda: chain in self._kept, seconds)
        header = self._kept.get(chain)
        return header if header is not None and header.plan.round == round else None
