"""One node of a swarm: everything that it knows. What it does about it is in leading, reducing and following."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tsr_swarm.rounds.gather import Gather, ShardDigest
from tsr_swarm.rounds.peer import PeerState
from tsr_swarm.rounds.protocol import Action, OpenRound, ReducerSlot
from tsr_swarm.rounds.raft_state import RoundRecord, Voter
from tsr_swarm.rounds.reducer import ReducerState
from tsr_swarm.rounds.round_phases import LeaderPolicy, LeaderState


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIdentity:
    """What does not change while a node lives."""

    me: str
    incarnation: int  # grows with every start
    trains: bool  # the coordinator does not
    is_dialable: bool  # and so may lead, vote and reduce
    first: str  # the coordinator: known to everybody from the start
    known: tuple[str, ...] = ()  # whom else it was told of; they may know the leader
    sizes: tuple[int, ...]  # of the shards: bytes of a contribution
    policy: LeaderPolicy


@dataclass(frozen=True, slots=True)
class LeaderTracking:
    """Whom this node follows, and how it finds out."""

    leader: str = ""  # "" unknown
    round: int = 0  # the newest that a leader said stands
    term: int = 0  # of that leader. Of two leaders after the same round, the newer term leads
    version: int = 0  # of the news it has
    asked: str = ""  # who has its poll, "" nobody
    asked_at: float = 0.0
    number: int = 0  # of the newest poll
    oldest: int = 0  # the answers to polls before this one are out of date
    next_at: float = 0.0  # the next poll
    turn: int = 0  # whom to try next while no leader is known
    hops: int = 0  # from hint to hint since the last news
    nodes: tuple[str, ...] = ()  # that may know the leader, as far as others said
    sources: tuple[str, ...] = ()  # of the newest round that stands
    is_finished: bool = False


@dataclass(frozen=True, slots=True)
class LocalProgress:
    """What goes on beside deciding."""

    is_training: bool = False
    is_fetching: bool = False
    round: int = 0  # whose contribution is sent
    sent: Mapping[int, ReducerSlot] = field(default_factory=dict)  # shard -> where it is
    sending: frozenset[int] = frozenset()
    term: int = 0  # of the plan that is followed
    refused: frozenset[int] = frozenset()  # shards that came too late for that leader; another may take them
    retry_at: float = 0.0


@dataclass(frozen=True, slots=True)
class MemberContact:
    """Somebody who polls this leader."""

    since: float
    due: float  # by when it must be heard
    seen: float
    incarnation: int
    applied: int
    trains: bool
    is_dialable: bool


@dataclass(frozen=True, slots=True)
class HeldPoll:
    """A poll that waits for news."""

    until: float
    number: int


@dataclass(frozen=True, slots=True)
class LeaderRole:
    """What a leader has, beside the state of the round."""

    state: LeaderState
    since: float
    looked_at: float = 0.0  # the last time that ``tick`` looked at what is due
    version: int = 1
    contacts: Mapping[str, MemberContact] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()  # of the contacts, who can be dialled
    held_polls: Mapping[str, HeldPoll] = field(default_factory=dict)  # peers whose polls are held
    plan: OpenRound | None = None
    gather: Gather | None = None
    sealed: RoundRecord | None = None
    sources: tuple[str, ...] = ()  # by shard, who made the newest round that stands


@dataclass(frozen=True, slots=True)
class Reducing:
    """Shards that this node averages."""

    state: ReducerState
    term: int = 0  # of the plan or the Close that was heard last
    leader: str = ""  # who asked for the averages
    done: Mapping[int, ShardDigest] = field(default_factory=dict)
    under_way: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Node:
    """One node. ``voter.hard_state`` is what it has journaled; the rest is gone when it dies."""

    identity: NodeIdentity
    voter: Voter
    peer: PeerState
    tracking: LeaderTracking = LeaderTracking()
    plan: OpenRound | None = None  # the open round
    progress: LocalProgress = LocalProgress()
    leader_role: LeaderRole | None = None
    reducer: Reducing | None = None
    contributors: frozenset[str] = frozenset()  # to the newest round in its weights
    stepped_at: float = 0.0
    is_leaving: bool = False
    has_quit: bool = False

    @property
    def me(self) -> str:
        return self.identity.me


Result = tuple[Node, list[Action]]


def then(result: Result, more: Callable[[Node, float], Result], now: float) -> Result:
    """Go on from ``result``."""
    node, actions = result
    node, rest = more(node, now)
    return node, [*actions, *rest]


def known_nodes(node: Node) -> Sequence[str]:
    """Who may know the leader."""
    identity = node.identity
    return sorted({*node.voter.voters, *node.tracking.nodes, identity.first, *identity.known} - {node.me})
