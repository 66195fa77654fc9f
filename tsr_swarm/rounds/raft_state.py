"""Who votes, what a Raft voter knows and has promised, and the messages that voters exchange. Rules: rounds/raft.py."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

MOST_VOTERS = 5


class RaftRole(StrEnum):
    """What a voter is in its term."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"  # asks whether it would be elected; nobody's term moves
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """A round's result, as an entry of the replicated log. Round 0 is the beginning of the run."""

    round: int = 0
    chain: str = ""  # hash of the result and of all results before it
    parent: str = ""  # chain hash of the round before
    voters: tuple[str, ...] = ()  # who decides about the next round


@dataclass(frozen=True, slots=True)
class HardState:
    """What a voter has journaled. Terms and rounds never go back."""

    base: RoundRecord  # the newest round that it knows to be committed
    term: int = 0  # the newest term it has seen
    voted_for: str = ""  # in that term
    tail: RoundRecord | None = None  # accepted after ``base``, not committed as far as it knows
    tail_term: int = 0

    @property
    def extent(self) -> tuple[int, int]:
        """How far the log goes; voters compare it as they compare logs in Raft (section 5.4.1).

        Of two logs with the same committed round, the one whose tail was accepted in the newer term goes further. A
        log with a later committed round goes further than any tail of that round, since a committed tail is that round.
        """
        return self.base.round, self.tail_term


@dataclass(frozen=True, slots=True)
class Voter:
    """The Raft state of one node, which is a voter or may become one."""

    me: str
    hard_state: HardState
    role: RaftRole = RaftRole.FOLLOWER
    leader: str = ""  # of this term, as far as known
    contact_at: float = 0.0  # the last message of the leader, or of a candidate that got this vote
    election_at: float = 0.0  # when it next tries to be elected
    votes: frozenset[str] = frozenset()  # granted to it in this term or pre-vote
    proposal: RoundRecord | None = None  # a leader's, not committed yet
    accepted: frozenset[str] = frozenset()  # voters that hold the proposal
    answered_at: Mapping[str, float] = field(default_factory=dict)  # voter -> when it last answered this leader
    beat_at: float = 0.0  # when a leader sends its next heartbeats
    pending: tuple[int, RoundRecord] | None = None  # term and record to accept once its bytes are stored
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
        """Whether it may lead: it votes, and others can fetch from it what it accepted and would propose again.

        A voter that has lost those bytes keeps its promise: it refuses candidates that may not know of that round.
        """
        tail = self.hard_state.tail
        return self.me in self.voters and (tail is None or tail.chain != self.lost)


@dataclass(frozen=True, slots=True)
class VoteRequest:
    """A candidate asks for the vote of its term, and says how far its log goes. A pre-vote only asks for a promise."""

    term: int
    candidate: str
    extent: tuple[int, int]
    is_pre_vote: bool


@dataclass(frozen=True, slots=True)
class VoteReply:
    """Answer to a VoteRequest, for the same term."""

    term: int
    voter_term: int  # the voter's own, which may be newer
    granted: bool
    is_pre_vote: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life of the leader. ``base`` is committed; ``proposal`` is to be stored, journaled and accepted."""

    term: int
    base: RoundRecord
    proposal: RoundRecord | None


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """Answer to a Heartbeat."""

    term: int
    round: int  # the newest that the voter knows to be committed
    accepted: str  # chain hash of the proposal that it holds; "" none
    reason: str


RaftMessage = VoteRequest | VoteReply | Heartbeat | HeartbeatReply


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Raft's answer that rounds before ``round`` are missing here: fetch them from ``source``, and learn each."""

    round: int
    source: str


@dataclass(frozen=True, slots=True)
class RoundCommitted:
    """Raft's answer that a majority has accepted this record."""

    record: RoundRecord


@dataclass(frozen=True, slots=True)
class BecomeLeader:
    """Raft's answer that this node leads from now on."""


def is_majority(accepted: Collection[str], voters: Collection[str]) -> bool:
    """Return whether more than half of ``voters`` are among ``accepted``."""
    return 2 * len(set(accepted) & set(voters)) > len(set(voters))


def next_voters(voters: Collection[str], serving: Sequence[str], first: str) -> tuple[str, ...]:
    """Return the voters that the next record names: an odd number of ``serving``, or ``voters`` if nobody serves.

    serving: nodes that can be dialled and are up to date, the longest-serving first. first: the coordinator, which is
    preferred to all others. A fourth voter would make a majority no easier to reach. Voters that serve stay voters, so
    that the set changes as seldom as possible.
    """
    if not serving:
        return tuple(sorted(voters))
    size = min(MOST_VOTERS, len(serving) - 1 + len(serving) % 2)
    order = sorted(serving, key=lambda node: (node != first, node not in voters))  # stable: by service within each
    return tuple(sorted(order[:size]))
