"""Whether a run would survive its leader, as the leader tells people. Decides; tells nobody itself."""

from dataclasses import dataclass

from tsr_swarm.rounds.raft_state import majority
from tsr_swarm.rounds.state import Node
from tsr_swarm.telemetry.events import LeaderChanged

SAFE_VOTERS = 3  # from here on the run survives one of them


@dataclass(frozen=True, slots=True)
class _Told:
    term: int
    voters: tuple[str, ...]
    since: int  # the round that made them voters, or that stood when this leader began
    is_safe: bool


class FailoverStatus:
    """One leadership's."""

    def __init__(self) -> None:
        self._told: _Told | None = None

    def look(self, node: Node, name: str) -> LeaderChanged | None:
        """That ``node`` leads, and whether others can take over; None if it does not, or that was told."""
        if node.leading is None or not node.council.leads:
            return None
        council, callers = node.council, node.leading.callers
        since = council.ledger.base.round
        if self._told is not None and self._told.voters == council.voters:
            since = self._told.since
        # The others go on without this leader if most voters are among them, and have the round that made them voters.
        others = [voter for voter in council.voters if voter in callers and callers[voter].applied >= since]
        is_safe = len(council.voters) >= SAFE_VOTERS and majority(set(others) - {node.me}, council.voters)
        told = _Told(council.term, council.voters, since, is_safe)
        if told == self._told:
            return None
        self._told = told
        return LeaderChanged(
            peer=node.me,
            name=name,
            term=council.term,
            voters=len(council.voters),
            is_safe=is_safe,
            voter_ids=",".join(council.voters),
        )
