"""What nodes of a swarm tell each other, what happens to one, and what it asks its shell to do.

Messages may be lost, late, doubled and in any order. The voter's own are in rounds/raft_state.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tsr_swarm.rounds import raft_state as cl
from tsr_swarm.rounds.gather import ShardDigest
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.rounds.reducer import Verdict

# --- messages, beside the voter's -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReducerSlot:
    """Where a shard is reduced: by a node in one of its lives. Started anew, it has lost what it was sent."""

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
        """What tells it from other plans."""
        return self.round, self.term, self.version

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the reducers, by shard."""
        return tuple(slot.node for slot in self.reducers)


@dataclass(frozen=True, slots=True)
class Poll:
    """A peer's regular call to its leader; the first one joins. ``sent``: the plan by which it has sent everything."""

    peer: str
    incarnation: int
    applied: int
    trains: bool
    is_dialable: bool
    sent: tuple[int, int, int]
    known: int  # version of the news it has
    number: int = 0  # of this call


@dataclass(frozen=True, slots=True)
class RoundUpdate:
    """The leader's answer. ``base`` stands, ``sources`` made its shards.

    ``nodes`` can be dialled, and may know the next leader when this one is gone.
    """

    term: int
    leader: str
    version: int
    base: RoundRecord
    sources: tuple[str, ...]
    plan: OpenRound | None
    nodes: tuple[str, ...]
    is_finished: bool
    number: int = 0  # of the call that this answers


@dataclass(frozen=True, slots=True)
class Redirect:
    """The answer of who does not lead. ``base`` stands: whoever is to vote next learns so without a leader too."""

    term: int
    leader: str  # "" unknown
    base: RoundRecord


@dataclass(frozen=True, slots=True)
class Close:
    """To a reducer: close these shards, average what came from ``admitted``, answer with each result."""

    term: int
    round: int
    parent: str
    shards: tuple[int, ...]
    admitted: frozenset[str]


@dataclass(frozen=True, slots=True)
class ShardDone:
    """A reducer's answer, which carries the published bytes."""

    term: int
    round: int
    shard: int
    result: ShardDigest


@dataclass(frozen=True, slots=True)
class Goodbye:
    """A peer leaves."""

    peer: str


Message = cl.Message | Poll | RoundUpdate | Redirect | Close | ShardDone | Goodbye

# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    sender: str
    message: Message


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A message could not be delivered, or its call broke."""

    to: str
    message: Message


@dataclass(frozen=True, slots=True)
class PollBroken:
    """A peer's poll broke while it was held: the peer died, or its line did."""

    peer: str


@dataclass(frozen=True, slots=True)
class Offered:
    """A contribution has arrived whole and passed the gate. ``term``: of the plan that it follows."""

    peer: str
    term: int
    round: int
    parent: str
    shard: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Averaged:
    """The bytes of this shard of this round are made, for the leader of this term."""

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
    """Training has ended, and this node's contribution to the round is ready unless it ended early."""

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
    """It is not there, and may be sent again."""

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
    """The consensus weights are a downloaded state."""

    record: RoundRecord


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """A round or a state could not be had from any donor."""

    is_gone: bool  # nobody keeps that round any more; else nobody could be reached


@dataclass(frozen=True, slots=True)
class Resumed:
    """The machine slept: what is held, planned and under way may be old."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave after the open round. Others go on, if a majority of the voters is left to."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Received
    | Unreachable
    | PollBroken
    | Offered
    | Averaged
    | Sealed
    | Stored
    | Trained
    | Uploaded
    | UploadFailed
    | Applied
    | Restored
    | FetchFailed
    | Resumed
    | Stop
    | Tick
)

# --- actions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    to: str
    message: Message


@dataclass(frozen=True, slots=True)
class Train:
    """Take the local steps of this round, and answer with Trained; end early when rounds/peer.py calls it stale."""

    plan: OpenRound


@dataclass(frozen=True, slots=True)
class Upload:
    """Send a shard of the contribution, and answer with Uploaded or UploadFailed."""

    term: int  # of the plan
    round: int
    shard: int
    reducer: ReducerSlot


@dataclass(frozen=True, slots=True)
class Reply:
    """Tell who offered a contribution what became of it."""

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
    sources: tuple[str, ...]  # by shard, who makes it, as far as this node was told
    donors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FetchRound:
    """Apply the round that stands, from disk or a donor; answer with Applied or FetchFailed."""

    round: int
    sources: tuple[str, ...]  # by shard, who made it
    donors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FetchState:
    """Download a recent state; answer with Restored or FetchFailed."""

    donors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Propose:
    """Put this to the voter. Never reaches the shell: rounds/step.py does it."""

    record: RoundRecord


@dataclass(frozen=True, slots=True)
class Open:
    """This leader opens a round, and announces it with the next news."""

    round: int
    members: frozenset[str]  # who takes part, whether it waits for them or not


@dataclass(frozen=True, slots=True)
class Commit:
    """A round of this leader's stands."""

    record: RoundRecord


@dataclass(frozen=True, slots=True)
class Explain:
    """For people: this leader's phase, the seconds until its deadline if it has one, and why."""

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
    """For people."""

    text: str


@dataclass(frozen=True, slots=True)
class Quit:
    """This node's part is over."""

    reason: str


Action = (
    Send
    | Train
    | Upload
    | Reply
    | Average
    | Seal
    | Store
    | FetchRound
    | FetchState
    | Propose
    | Open
    | Commit
    | Explain
    | Drop
    | Notify
    | Quit
)
