"""Everything that one node knows, and what it should do next as a peer.

What it decides is in rounds/leader.py, rounds/reducer.py and rounds/follower.py. Training and exchange are separate
activities. They meet at two points only: a published round is applied between two rounds of training, and training
starts from the newest applied round.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import TypeVarTuple

from tsr_swarm.rounds.protocol import Action, OpenRound, ReducerSlot, ShardDigest
from tsr_swarm.rounds.raft_state import RoundRecord, Voter
from tsr_swarm.rounds.round_phases import Gather, LeaderState, RoundPolicy

Arguments = TypeVarTuple("Arguments")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIdentity:
    """What does not change while a node runs."""

    me: str
    incarnation: int  # grows with every start
    trains: bool  # the coordinator does not
    is_dialable: bool  # and so may lead, vote and reduce
    first: str  # the coordinator: known to everybody from the start
    known: tuple[str, ...] = ()  # other nodes that it was told of; they may know the leader
    sizes: tuple[int, ...]  # of the shards: bytes of a contribution
    policy: RoundPolicy


@dataclass(frozen=True, slots=True)
class PeerState:
    """What a peer knows of the rounds. ``applied`` is the round that its consensus weights are at; -1: it has none."""

    applied: int = -1
    chain: str = ""  # chain hash at ``applied``
    is_member: bool = False  # of a run that somebody has told it about
    needs_state: bool = False
    committed: int = 0  # the newest round that may be fetched
    trained: int = 0  # the newest round this peer has a contribution of
    unsent: int = 0  # round of a contribution that is not uploaded yet, 0: none
    is_finished: bool = False


@dataclass(frozen=True, slots=True)
class LeaderTracking:
    """Which leader a node follows, and how it finds the leader."""

    leader: str = ""  # "" unknown
    round: int = 0  # the newest that a leader said is committed
    term: int = 0  # of that leader. Of two leaders after the same round, the newer term leads
    version: int = 0  # of the newest update
    asked: str = ""  # the node that has its poll, "" none
    asked_at: float = 0.0
    number: int = 0  # of the newest poll
    oldest: int = 0  # the answers to polls before this one are out of date
    next_at: float = 0.0  # time of the next poll
    turn: int = 0  # which of the known nodes to try next while no leader is known
    hops: int = 0  # redirects since the last update
    nodes: tuple[str, ...] = ()  # that may know the leader, as far as others said
    sources: tuple[str, ...] = ()  # by shard, who reduced it in the newest committed round


@dataclass(frozen=True, slots=True)
class LocalProgress:
    """What a node is busy with while it takes in events."""

    is_training: bool = False
    is_fetching: bool = False
    round: int = 0  # whose contribution is sent
    sent: Mapping[int, ReducerSlot] = field(default_factory=dict)  # shard -> where it is
    sending: frozenset[int] = frozenset()
    term: int = 0  # of the announcement that is followed
    refused: frozenset[int] = frozenset()  # shards that came too late for that leader; another may take them
    retry_at: float = 0.0


@dataclass(frozen=True, slots=True)
class MemberContact:
    """What a leader knows of a node that polls it."""

    since: float
    due: float  # by when it must poll again
    seen: float
    incarnation: int
    applied: int
    trains: bool
    is_dialable: bool


@dataclass(frozen=True, slots=True)
class HeldPoll:
    """A poll that waits for an update."""

    until: float
    number: int


@dataclass(frozen=True, slots=True)
class LeaderRole:
    """What a leader has, beside the state of its rounds."""

    state: LeaderState
    since: float
    ticked_at: float = 0.0  # the last time that it looked at what is due
    version: int = 1  # of its update
    contacts: Mapping[str, MemberContact] = field(default_factory=dict)  # by name
    nodes: tuple[str, ...] = ()  # of the contacts, some that can be dialled
    held_polls: Mapping[str, HeldPoll] = field(default_factory=dict)  # by peer
    plan: OpenRound | None = None
    gather: Gather | None = None
    sources: tuple[str, ...] = ()  # by shard, who reduced it in the newest committed round


@dataclass(frozen=True, slots=True)
class ReducerState:
    """The contributions that a reducer holds for one round, and the averages that it was asked for."""

    round: int
    is_open: bool = True
    held: Mapping[tuple[str, int], int] = field(default_factory=dict)  # (peer, shard) -> tokens
    term: int = 0  # of the announcement or the Close that it follows
    leader: str = ""  # who asked for the averages
    done: Mapping[int, ShardDigest] = field(default_factory=dict)  # by shard
    averaging: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a swarm. ``voter.hard_state`` is what it has journaled; the rest is gone when it dies."""

    identity: NodeIdentity
    voter: Voter
    peer: PeerState
    tracking: LeaderTracking = LeaderTracking()
    plan: OpenRound | None = None  # the open round
    progress: LocalProgress = LocalProgress()
    leader_role: LeaderRole | None = None
    reducer: ReducerState = ReducerState(0)
    contributors: frozenset[str] = frozenset()  # to the newest round in its weights
    stepped_at: float = 0.0
    is_leaving: bool = False
    has_quit: bool = False

    @property
    def me(self) -> str:
        return self.identity.me

    @property
    def leader(self) -> str:
        """The leader as far as this node knows, which may be itself; "" unknown."""
        return self.me if self.leader_role is not None else self.tracking.leader

    @property
    def members(self) -> frozenset[str]:
        """Peers that take part, as far as this node leads."""
        return frozenset(self.leader_role.state.members) if self.leader_role is not None else frozenset()


Result = tuple[Node, list[Action]]


def then(result: Result, more: Callable[[Node, *Arguments], Result], *args: *Arguments) -> Result:
    """Go on from ``result`` with ``more(node, *args)``."""
    node, actions = result
    node, rest = more(node, *args)
    return node, [*actions, *rest]


def known_nodes(node: Node) -> Sequence[str]:
    """Return the other nodes that may know the leader."""
    identity = node.identity
    return sorted({*node.voter.voters, *node.tracking.nodes, identity.first, *identity.known} - {node.me})


class Activity(Enum):
    """What a peer should do next."""

    WAIT = auto()  # for an update of the leader
    FETCH_STATE = auto()
    FETCH_ROUND = auto()  # the one after ``applied``
    UPLOAD = auto()
    TRAIN = auto()
    QUIT = auto()  # the run is over and everything published has been applied


def next_activity(state: PeerState, plan: OpenRound | None) -> Activity:
    """Return what is most urgent. Applying what is published comes before sending, and sending before training.

    plan: the newest announcement. If it follows another history than this peer's, as after a coordinator lost its disk,
    the peer takes the state.
    """
    if not state.is_member:
        return Activity.WAIT
    is_next = plan is not None and plan.round == state.applied + 1
    if state.applied < 0 or state.needs_state or (plan is not None and is_next and plan.parent != state.chain):
        return Activity.FETCH_STATE
    if state.committed > state.applied:
        return Activity.FETCH_ROUND
    if plan is not None and plan.round > state.applied and state.unsent == plan.round:
        return Activity.UPLOAD
    if state.is_finished:
        return Activity.QUIT
    return Activity.TRAIN if is_next and state.trained <= state.applied else Activity.WAIT


def is_stale(state: PeerState, training_round: int) -> bool:
    """Return whether training for ``training_round`` should stop early: the round has closed without this peer.

    The steps already taken are not lost; they stay in the residual and go out with the next contribution.
    """
    return state.committed >= training_round or state.needs_state or not state.is_member


def apply_update(state: PeerState, committed: int, is_finished: bool) -> PeerState:
    """Take in what the leader says. It may be older than what is already known."""
    return replace(state, is_member=True, committed=max(state.committed, committed), is_finished=is_finished)


def apply_round(state: PeerState, record: RoundRecord) -> PeerState:
    """Note that a published round is in the consensus weights."""
    return replace(
        state,
        applied=record.round,
        chain=record.chain,
        committed=max(state.committed, record.round),
        unsent=0 if state.unsent <= record.round else state.unsent,
    )


def restore_state(state: PeerState, record: RoundRecord) -> PeerState:
    """Note that the consensus weights are a downloaded state, which may be older than what this peer knew of."""
    return replace(
        state,
        applied=record.round,
        chain=record.chain,
        needs_state=False,
        committed=record.round,
        trained=min(state.trained, record.round),
        unsent=0,
    )
