"""A closed round's shards, collected from their reducers. Pure.

Every reducer is told to close its shards and answers with the average of each. One that does not answer in time leaves
its shards void: nobody's work in them is lost, it stays in the residuals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

AGAIN_SECONDS = 1.0  # a reducer that has not answered is asked again
PATIENCE_SECONDS = 5.0  # beyond the time that the quickest half needed, threefold


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
    """The shards of one closed round."""

    round: int
    reducers: tuple[str, ...]  # by shard
    closed_at: float
    asked_at: float = float("-inf")
    results: Mapping[int, ShardDigest] = field(default_factory=dict)
    arrived: tuple[float, ...] = ()  # seconds after closing, of the results

    @property
    def missing(self) -> tuple[int, ...]:
        return tuple(shard for shard in range(len(self.reducers)) if shard not in self.results)

    @property
    def deadline(self) -> float:
        """When what is missing is given up."""
        if 2 * len(self.arrived) < len(self.reducers):
            return self.closed_at + 2 * PATIENCE_SECONDS
        middle = sorted(self.arrived)[(len(self.arrived) - 1) // 2]
        return self.closed_at + PATIENCE_SECONDS + 3 * middle


@dataclass(frozen=True, slots=True)
class Ask:
    """Tell this reducer to close these shards, and to answer with their averages."""

    reducer: str
    shards: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Complete:
    """Every shard has its result, or is void."""

    results: tuple[ShardDigest, ...]


def result(gather: Gather, sender: str, shard: int, shard_result: ShardDigest, now: float) -> Gather:
    """Take in a reducer's answer; one of another reducer, or a second one, changes nothing."""
    is_asked = 0 <= shard < len(gather.reducers) and gather.reducers[shard] == sender
    if not is_asked or shard in gather.results:
        return gather
    arrived = (*gather.arrived, now - gather.closed_at)
    return replace(gather, results={**gather.results, shard: shard_result}, arrived=arrived)


def progress(gather: Gather, lost: Sequence[str], now: float) -> tuple[Gather, list[Ask | Complete]]:
    """Ask who is missing, or say that the round is complete. ``lost``: reducers that are known to be gone."""
    waiting = [shard for shard in gather.missing if gather.reducers[shard] not in lost]
    if not waiting or now >= gather.deadline:
        void = ShardDigest()
        results = tuple(gather.results.get(shard, void) for shard in range(len(gather.reducers)))
        return gather, [Complete(results)]
    if now < gather.asked_at + AGAIN_SECONDS:
        return gather, []
    by_reducer: dict[str, list[int]] = {}
    for shard in waiting:
        by_reducer.setdefault(gather.reducers[shard], []).append(shard)
    asks: list[Ask | Complete] = [Ask(reducer, tuple(shards)) for reducer, shards in sorted(by_reducer.items())]
    return replace(gather, asked_at=now), asks
