"""The messages that nodes send each other, the events that happen to a node, and the actions that it decides on.

Messages may be lost, late, doubled and in any order. Those between voters are in rounds/raft_state.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tsr_swarm.rounds.raft_state import RaftMessage, RoundRecord


@dataclass(frozen=True, slots=True)
class ReducerSlot:
    """The reducer of a shard: a node since its last start. After another start it has lost what was sent to it."""

    node: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class OpenRound:
    """The open round, as its leader announces it. All that training depends on follows from round and parent."""

    round: int
    parent: str
    term: int
    version: int  # of ``reducers``
    reducers: tuple[ReducerSlot, ...]  # by shard

    @property
    def key(self) -> tuple[int, int, int]:
        """What tells it from other announcements."""
        return self.round, self.term, self.version

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the reducers, by shard."""
        return tuple(slot.node for slot in self.reducers)


@dataclass(frozen=True, slots=True)
class Poll:
    """A peer's regular call to its leader, which answers when it has an update. The first call joins."""

    peer: str
    incarnation: int
    applied: int  # the newest round in its weights
    trains: bool
    is_dialable: bool
    sent: tuple[int, int, int]  # key of the open round that it has sent all its shards of
    known: int  # version of the newest update that it has
    number: int = 0  # of this call


@dataclass(frozen=True, slots=True)
class RoundUpdate:
    """The leader's answer to a Poll: what is committed, and which round is open."""

    term: int
    leader: str
    version: int
    base: RoundRecord  # the newest committed round
    sources: tuple[str, ...]  # by shard, who reduced it in that round
    plan: OpenRound | None
    nodes: tuple[str, ...]  # that can be dialled, and may know the next leader when this one is gone
    is_finished: bool
    number: int = 0  # of the call that this answers


@dataclass(frozen=True, slots=True)
class Redirect:
    """The answer to a Poll of a node that does not lead."""

    term: int
    leader: str  # who does, as far as known; "" unknown
    base: RoundRecord  # which tells its voters that they are, also without a leader


@dataclass(frozen=True, slots=True)
class ShardDigest:
    """What is published of a shard: whose contributions are in it, and the hash of its bytes. Void: nothing."""

    included: frozenset[str] = frozenset()
    digest: str = ""

    @property
    def is_void(self) -> bool:
        return not self.included


@dataclass(frozen=True, slots=True)
class Close:
    """To a reducer: close these shards, average what came from ``admitted``, and answer with each result."""

    term: int
    round: int
    parent: str
    shards: tuple[int, ...]
    admitted: frozenset[str]


@dataclass(frozen=True, slots=True)
class ShardDone:
    """A reducer's answer to Close, which carries the published bytes."""

    term: int
    round: int
    shard: int
    result: ShardDigest


@dataclass(frozen=True, slots=True)
class Goodbye:
    """To the leader: this peer leaves."""

    peer: str


Message = RaftMessage | Poll | RoundUpdate | Redirect | Close | ShardDone | Goodbye


@dataclass(frozen=True, slots=True)
class Received:
    """A message has arrived."""

    sender: str
    message: Message


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A message could not be delivered, or its call broke."""

    to: str
    message: Message


@dataclass(frozen=True, slots=True)
class PollBroken:
    """A poll broke while it was held: the peer died, or its connection did."""

    peer: str


@dataclass(frozen=True, slots=True)
class Offered:
    """A shard of a contribution has arrived whole and passed the gate."""

    peer: str
    term: int  # of the announcement that it follows
    round: int
    parent: str
    shard: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Averaged:
    """The published bytes of this shard are ready, for the leader of this term."""

    term: int
    round: int
    shard: int
    result: ShardDigest


@dataclass(frozen=True, slots=True)
class Sealed:
    """The round's chain hash is known and its bytes are on this node's disk."""

    record: RoundRecord


@dataclass(frozen=True, slots=True)
class Stored:
    """The bytes of this record are on this node's disk."""

    record: RoundRecord


@dataclass(frozen=True, slots=True)
class Trained:
    """Training has ended. This node's contribution to the round is ready unless it ended early."""

    round: int
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A contribution's shard is with its reducer, in time or not."""

    term: int
    round: int
    shard: int
    reducer: ReducerSlot
    counted: bool


@dataclass(frozen=True, slots=True)
class UploadFailed:
    """A contribution's shard is not with its reducer, and may be sent again."""

    round: int
    shard: int
    reducer: ReducerSlot


@dataclass(frozen=True, slots=True)
class Applied:
    """This record is in the consensus weights. ``contributors``: whose work is in it."""

    record: RoundRecord
    contributors: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Restored:
    """The consensus weights are a downloaded state, after this record."""

    record: RoundRecord


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """No donor gave the round or the state."""

    is_gone: bool  # nobody keeps that round any more; else nobody could be reached


@dataclass(frozen=True, slots=True)
class Resumed:
    """The machine slept: what is known and under way may be out of date."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave after the open round. The others go on, if enough voters are left for a majority."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


WorkEvent = Offered | Averaged | Sealed | Stored | Trained | Uploaded | UploadFailed | Applied | Restored | FetchFailed
Event = Received | Unreachable | PollBroken | WorkEvent | Resumed | Stop | Tick


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message."""

    to: str
    message: Message


@dataclass(frozen=True, slots=True)
class Train:
    """Take the local steps of this round, and answer with Trained; end early when rounds/state.py calls it stale."""

    plan: OpenRound


@dataclass(frozen=True, slots=True)
class Upload:
    """Send a shard of the contribution, and answer with Uploaded or UploadFailed."""

    term: int  # of the announcement
    round: int
    shard: int
    reducer: ReducerSlot


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a contribution."""

    counted: bool  # it may be in the average
    is_new: bool  # its bytes must be kept; a repetition changes nothing
    reason: str


@dataclass(frozen=True, slots=True)
class Reply:
    """Tell the sender of a contribution what became of it."""

    peer: str
    round: int
    shard: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Average:
    """Average these shards over these peers, and answer each with Averaged."""

    term: int
    round: int
    included: Mapping[int, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Seal:
    """Put the published bytes on disk, compute the chain hash, and answer with Sealed."""

    round: int
    parent: str
    results: tuple[ShardDigest, ...]
    voters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Store:
    """Put the bytes of this record on disk, and answer with Stored."""

    record: RoundRecord
    sources: tuple[str, ...]  # by shard, who reduces it; empty if this node was not told
    donors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FetchRound:
    """Apply this committed round, from disk or a donor; answer with Applied or FetchFailed."""

    round: int
    sources: tuple[str, ...]  # by shard, who reduced it; empty if this node was not told
    donors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FetchState:
    """Download a recent state; answer with Restored or FetchFailed."""

    donors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Propose:
    """Put this record to the voters. rounds/step.py carries it out itself."""

    record: RoundRecord


@dataclass(frozen=True, slots=True)
class Open:
    """This leader opens a round, and announces it with its next update."""

    round: int
    members: frozenset[str]  # all that take part, whether the round waits for them or not


@dataclass(frozen=True, slots=True)
class Commit:
    """A round of this leader is committed."""

    record: RoundRecord


@dataclass(frozen=True, slots=True)
class Explain:
    """For people: this leader's phase, the seconds until its deadline if it has one, and the reason."""

    round: int
    phase: str
    deadline: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Drop:
    """For people: this peer is no member any more."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Notify:
    """For people: a message."""

    text: str


@dataclass(frozen=True, slots=True)
class Quit:
    """This node's part is over."""

    reason: str


WorkAction = Train | Upload | Reply | Average | Seal | Store | FetchRound | FetchState
Action = Send | Propose | WorkAction | Open | Commit | Explain | Drop | Notify | Quit
