"""What a reducer made of a shard, beside its bytes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from tsr_swarm.lowrank.sketch import Captured
from tsr_swarm.rounds import gather
from tsr_swarm.wire.messages import ShardResult


@dataclass(frozen=True, slots=True)
class ReducedShard:
    """``result`` is published and hashed into the chain; the rest is for the leader alone."""

    result: ShardResult
    local_loss: float = 0.0  # mean over the tokens in it, nats a token
    raw_sent: int = 0  # bytes of the contributions in it, before compression
    captured: Mapping[int, Captured] = field(default_factory=dict)  # by block, the mean of what its peers measured

    @property
    def decided(self) -> gather.ShardDigest:
        """As the decisions of a round know it: whose work is in it, and what tells it from any other result."""
        if self.result.void:
            return gather.ShardDigest()
        hasher = hashlib.blake2b(digest_size=16, person=b"tsr/v1/shard")
        hasher.update(",".join(self.result.included).encode())
        hasher.update(self.result.tokens.to_bytes(8, "little"))
        for section in self.result.sections:
            hasher.update(section.kind.encode() + b"\0" + section.hash)
        return gather.ShardDigest(frozenset(self.result.included), hasher.hexdigest())


VOID = ReducedShard(ShardResult(void=True))
