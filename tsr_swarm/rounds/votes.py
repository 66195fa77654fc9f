"""Who decides that a round stands: a majority of voters that journaled it first. Raft's rule for a log of rounds.

Today the coordinator is the only voter; the rules do not depend on that.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace


def has_majority(accepted: Collection[str], voters: Collection[str]) -> bool:
    """More than half of ``voters`` are among ``accepted``."""
    return 2 * len(set(accepted) & set(voters)) > len(voters)


@dataclass(frozen=True, slots=True)
class VoterState:
    """What a voter has journaled. Terms and rounds never go back."""

    term: int = 0  # the newest term it has seen
    voted_for: str = ""  # in that term
    accepted_term: int = 0
    accepted_round: int = 0
    accepted_chain: str = ""


@dataclass(frozen=True, slots=True)
class VoteRequest:
    """A candidate asks for the votes of its term, and says how far its own journal goes."""

    term: int
    candidate: str
    last_term: int
    last_round: int


@dataclass(frozen=True, slots=True)
class Proposal:
    """A leader's result of a round."""

    term: int
    round: int
    chain: str


@dataclass(frozen=True, slots=True)
class Answer:
    """``granted`` holds only once ``state`` has been journaled."""

    granted: bool
    reason: str


def vote(state: VoterState, request: VoteRequest) -> tuple[VoterState, Answer]:
    """One vote a term, and only for a candidate whose journal is at least as new (Raft, sections 5.2 and 5.4)."""
    if request.term < state.term:
        return state, Answer(False, f"term {request.term} is over, term {state.term} has begun")
    if request.term == state.term and state.voted_for not in ("", request.candidate):
        return state, Answer(False, f"the vote of term {state.term} went to {state.voted_for}")
    seen = replace(state, term=request.term, voted_for=state.voted_for if request.term == state.term else "")
    if (request.last_term, request.last_round) < (state.accepted_term, state.accepted_round):
        return seen, Answer(False, f"round {state.accepted_round} of term {state.accepted_term} is newer than yours")
    return replace(seen, voted_for=request.candidate), Answer(True, "granted")


def accept(state: VoterState, proposal: Proposal) -> tuple[VoterState, Answer]:
    """Journal a leader's proposal. In one term a round has one result; an older leader is refused."""
    if proposal.term < state.term:
        return state, Answer(False, f"term {proposal.term} is over, term {state.term} has begun")
    if proposal.round < state.accepted_round:
        return state, Answer(False, f"round {state.accepted_round} was accepted already")
    same_place = (proposal.term, proposal.round) == (state.accepted_term, state.accepted_round)
    if same_place and proposal.chain != state.accepted_chain:
        return state, Answer(False, f"another result of round {proposal.round} was accepted in this term")
    voted_for = state.voted_for if proposal.term == state.term else ""
    return VoterState(proposal.term, voted_for, proposal.term, proposal.round, proposal.chain), Answer(True, "accepted")
