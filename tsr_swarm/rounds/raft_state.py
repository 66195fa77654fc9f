"""The voters of a run: what each knows and has promised, and what they tell each other. See voting.py for the rules."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class RaftRole(StrEnum):
    """What a voter is in its term."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"  # asks whether it would be elected; nobody's term moves
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """A round's result as voters see it. Round 0 is the beginning. ``voters`` decide about what follows."""

    round: int = 0
    chain: str = ""
    parent: str = ""
    voters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HardState:
    """What a voter has journaled. Terms and rounds never go back."""

    base: RoundRecord  # the newest round it knows to stand
    term: int = 0  # the newest term it has seen
    voted_for: str = ""  # in that term
    tail: RoundRecord | None = None  # accepted after ``base``, undecided as far as it knows
    tail_term: int = 0

    @property
    def extent(self) -> tuple[int, int]:
        """How far it goes; hard_states are compared by it as logs are in Raft (section 5.4.1).

        Of two that know the same round to stand, the one whose tail was accepted in the newer term goes further. One
        that knows a later round to stand goes further than any tail of that round: a tail that stands is that round.
        """
        return self.base.round, self.tail_term


@dataclass(frozen=True, slots=True)
class Voter:
    """One voter, or a node that may become one."""

    me: str
    hard_state: HardState
    role: RaftRole = RaftRole.FOLLOWER
    leader: str = ""  # of this term, as far as known
    contact_at: float = 0.0  # the leader, or a candidate that was given the vote
    election_at: float = 0.0  # time of the next try to be elected
    granted: frozenset[str] = frozenset()  # votes of this term or trial
    proposal: RoundRecord | None = None  # a leader's, undecided
    accepted: frozenset[str] = frozenset()  # voters that hold it
    answers: Mapping[str, float] = field(default_factory=dict)  # voter -> when it last answered this leader
    beat_at: float = 0.0
    wanted: tuple[int, RoundRecord] | None = None  # term and record to accept once its bytes are stored
    lost: str = ""  # chain hash of a tail whose bytes this voter's disk has lost

    @property
    def voters(self) -> tuple[str, ...]:
        """Who decides about the next round."""
        return self.hard_state.base.voters

    @property
    def term(self) -> int:
        return self.hard_state.term

    @property
    def leads(self) -> bool:
        return self.role is RaftRole.LEADER

    @property
    def may_campaign(self) -> bool:
        """Whether it may lead: it votes, and what it accepted and would propose anew can be fetched from it.

        One that has lost those bytes keeps its promise as a voter: it refuses whoever may not know of that round.
        """
        has_tail = self.hard_state.tail is None or self.hard_state.tail.chain != self.lost
        return self.me in self.voters and has_tail


# --- messages ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VoteRequest:
    """A candidate asks for the vote of its term, and says how far its journal goes."""

    term: int
    candidate: str
    extent: tuple[int, int]
    is_pre_vote: bool


@dataclass(frozen=True, slots=True)
class VoteReply:
    """``term`` is the one that was asked for, or the voter's own newer one; ``voter_term`` the voter's own."""

    term: int
    voter_term: int
    granted: bool
    is_pre_vote: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The leader is there. ``base`` stands; ``proposal``, if any, is to be stored, journaled and accepted."""

    term: int
    base: RoundRecord
    proposal: RoundRecord | None


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """``accepted``: the chain hash of the proposal it holds, "" for none. ``round``: the newest it knows to stand."""

    term: int
    round: int
    accepted: str
    reason: str


Message = VoteRequest | VoteReply | Heartbeat | HeartbeatReply

# --- events -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    sender: str
    message: Message


@dataclass(frozen=True, slots=True)
class Propose:
    """The leader's own result of the next round, whose bytes it has stored."""

    record: RoundRecord


@dataclass(frozen=True, slots=True)
class Stored:
    """The bytes of this record are on disk."""

    record: RoundRecord


@dataclass(frozen=True, slots=True)
class RoundLearned:
    """This record stands: a leader said so."""

    record: RoundRecord


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A call to this node failed: its process is gone, or the line to it."""

    node: str


Event = Received | Propose | Stored | RoundLearned | PeerLost | Tick

# --- actions. If a step changes the hard state, it is journaled before any of them; if that fails, there was no step --


@dataclass(frozen=True, slots=True)
class Send:
    to: str
    message: Message


@dataclass(frozen=True, slots=True)
class Store:
    """Fetch the bytes of this record, from ``source`` or anybody who has them, and answer with Stored."""

    record: RoundRecord
    source: str


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Rounds before ``round`` are missing here: fetch them from ``source``; each is answered with Learned."""

    round: int
    source: str


@dataclass(frozen=True, slots=True)
class RoundCommitted:
    """A majority has accepted this record: it stands."""

    record: RoundRecord


@dataclass(frozen=True, slots=True)
class BecomeLeader:
    """This node leads from now on."""

    term: int
    base: RoundRecord


@dataclass(frozen=True, slots=True)
class StepDown:
    """This node does not lead any more."""

    reason: str


Action = Send | Store | CatchUp | RoundCommitted | BecomeLeader | StepDown
Result = tuple[Voter, list[Action]]


def majority(accepted: Collection[str], voters: Collection[str]) -> bool:
    """More than half of ``voters`` are among ``accepted``."""
    return 2 * len(set(accepted) & set(voters)) > len(set(voters))
