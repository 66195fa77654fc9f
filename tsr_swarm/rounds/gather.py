"""How a leader collects the shards of a closed round from their reducers.

Every reducer is told to close its shards and answers with the average of each. The shards of a reducer that does not
answer in time are void: the work in them is not lost, since it stays in the residuals of the peers.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

AGAIN_SECONDS = 1.0  # a reducer that has not answered is asked again
PATIENCE_SECONDS = 5.0  # beyond three times what the quickest half needed


@dataclass(frozen=True, slots=True)
class ShardDigest:
    """What is published of a shard: whose contributions are in it, and the hash of its bytes. Void: nothing."""

    included: frozenset[str] = frozenset()
    digest: str = ""

    @property
    def is_void(self) -> bool:
        return not self.included


@dataclass(frozen=True, slots=True)
class Gather:
    """The shards of one closed round, as far as they were answered."""

    round: int
    reducers: tuple[str, ...]  # by shard
    closed_at: float
    asked_at: float = float("-inf")
    answers: Mapping[int, ShardDigest] = field(default_factory=dict)  # by shard
    delays: tuple[float, ...] = ()  # seconds from closing to each answer

    @property
    def deadline(self) -> float:
        """When shards without an answer are given up."""
        if 2 * len(self.delays) < len(self.reducers):
            return self.closed_at + 2 * PATIENCE_SECONDS
        middle = sorted(self.delays)[(len(self.delays) - 1) // 2]
        return self.closed_at + PATIENCE_SECONDS + 3 * middle

    @property
    def results(self) -> tuple[ShardDigest, ...]:
        """By shard; void where there is no answer."""
        return tuple(self.answers.get(shard, ShardDigest()) for shard in range(len(self.reducers)))


def take_answer(gather: Gather, sender: str, shard: int, result: ShardDigest, now: float) -> Gather:
    """Take in a reducer's answer; one of another reducer, or a second one, changes nothing."""
    is_asked = 0 <= shard < len(gather.reducers) and gather.reducers[shard] == sender
    if not is_asked or shard in gather.answers:
        return gather
    return replace(gather, answers={**gather.answers, shard: result}, delays=(*gather.delays, now - gather.closed_at))


def missing_shards(gather: Gather, lost: Collection[str], now: float) -> dict[str, tuple[int, ...]]:
    """Return the shards that are still waited for, by reducer. ``lost``: reducers that are known to be gone."""
    missing: dict[str, tuple[int, ...]] = {}
    if now < gather.deadline:
        for shard, reducer in enumerate(gather.reducers):
            if shard not in gather.answers and reducer not in lost:
                missing[reducer] = (*missing.get(reducer, ()), shard)
    return dict(sorted(missing.items()))
