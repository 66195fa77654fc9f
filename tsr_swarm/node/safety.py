"""Whether a run would survive its leader, as the leader tells people. Decides; tells nobody itself."""

from dataclasses import dataclass

from tsr_swarm.rounds.raft_state import is_majority
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
        if node.leader_role is None or not node.voter.leads:
            return None
        voter, contacts = node.voter, node.leader_role.contacts
        since = voter.hard_state.base.round
        if self._told is not None and self._told.voters == voter.voters:
            since = self._told.since
        # The others go on without this leader if most voters are among them, and have the round that made them voters.
        others = [other for other in voter.voters if other in contacts and contacts[other].applied >= since]
        is_safe = len(voter.voters) >= SAFE_VOTERS and is_majority(set(others) - {node.me}, voter.voters)
        told = _Told(voter.term, voter.voters, since, is_safe)
        if told == self._told:
            return None
        self._told = told
        return LeaderChanged(
            peer=node.me,
            name=name,
            term=voter.term,
            voters=len(voter.voters),
            is_safe=is_safe,
            voter_ids=",".join(voter.voters),
        )
