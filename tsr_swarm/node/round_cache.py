"""What travels beside the decisions' own messages: plans, numbers, and what shards became. Bounded by rounds."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.node.made import ReducedShard
from tsr_swarm.rounds.gather import ShardDigest
from tsr_swarm.wire.roster import Members

KEPT_ROUNDS = 3  # the open one, the one that is being fetched, and one for whoever is late
KEPT_ROSTERS = 4  # of a round: it is closed again while shards are missing, and somebody may have gone meanwhile


@dataclass(slots=True)
class RoundCache:
    """One node's. Its event loop owns it."""

    _plans: dict[tuple[int, str], RoundPlan] = field(default_factory=dict)  # by round and parent
    _closed: dict[int, tuple[int, tuple[Members, ...]]] = field(default_factory=dict)  # by round, of the newest term
    _made: dict[tuple[int, int, str], tuple[ReducedShard, bytes]] = field(default_factory=dict)  # round, shard, digest

    def hear_plan(self, plan: RoundPlan) -> None:
        """A leader announced this round."""
        self._plans[plan.round, plan.parent] = plan
        self._forget(plan.round - KEPT_ROUNDS)

    def plan(self, round: int, parent: str) -> RoundPlan | None:
        """What training for this round is, as a leader announced it last."""
        return self._plans.get((round, parent))

    def hear_close(self, round: int, term: int, members: Members) -> None:
        """A leader closed shards of this round, which was announced: whose work counts, and in which order."""
        known, before = self._closed.get(round, (0, ()))
        if term >= known and any(key[0] == round for key in self._plans):
            others = [other for other in before if term == known and other.digest != members.digest]
            self._closed[round] = term, (members, *others)[:KEPT_ROSTERS]

    def numbers(self, round: int, term: int) -> Mapping[str, int]:
        """As they were heard last; empty where they were not."""
        known, rosters = self._closed.get(round, (0, ()))
        return rosters[0].numbers if known == term else {}

    def members(self, round: int, term: int, included: Collection[str]) -> Members | None:
        """What was heard of this term, and names all that are ``included``; None where that is gone."""
        known, rosters = self._closed.get(round, (0, ()))
        fits = (members for members in rosters if known == term and members.numbers.keys() >= set(included))
        return next(fits, None)

    def keep(self, round: int, shard: int, made: ReducedShard, frames: bytes) -> None:
        """A reducer told of this shard, and its bytes are here."""
        self._made[round, shard, made.decided.digest] = made, frames

    def made(self, round: int, shard: int, result: ShardDigest) -> tuple[ReducedShard, bytes] | None:
        """What ``result`` stands for; None where it is not here."""
        return self._made.get((round, shard, result.digest))

    def _forget(self, last: int) -> None:
        self._plans = {key: plan for key, plan in self._plans.items() if key[0] > last}
        self._closed = {round: heard for round, heard in self._closed.items() if round > last}
        self._made = {key: made for key, made in self._made.items() if key[0] > last}
