"""What happened, one frozen dataclass an event; as JSON, one flat object a line.

The same lines leave a process as ``--json``, travel to monitors, and are kept as the recording of a run. They may come
from another machine, so reading one never raises and never yields a field of the wrong type.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, NotRequired, TypedDict, get_type_hints

from tsr_swarm.telemetry.typed_json import is_sane, read_as

MAX_LINE = 4 << 20  # characters; a round of ten thousand peers stays below


class Traffic(TypedDict):
    """Wire bytes by payload kind."""

    sent: dict[str, int]
    received: dict[str, int]


class PeerTraffic(Traffic):
    """One peer's share, with what the kernel counted beyond its payloads."""

    overhead: NotRequired[int]


class RawBytes(TypedDict):
    """Bytes before compression."""

    sent: int
    received: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a run, as one of the classes below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnEvent(Event):
    """Something that one peer says of itself in its own stream; it is no news of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A coordinator began or resumed a run. ``rounds`` is 0 for an endless one; ``rank`` is text such as ``d/2``."""

    run: str
    run_id: str
    address: str
    rounds: int
    min_peers: int
    parameters: int
    k_x: int
    local_space: str
    rank: str
    voters: int
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated(Event):
    """Held-out loss after ``round``, nats a token; round 0 is before training. None: not a finite number."""

    round: int
    loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerJoined(Event):
    """``peer`` is 32 hexadecimal digits; an empty ``address`` is a client-only peer."""

    peer: str
    name: str
    number: int
    address: str
    device: str
    local_space: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLeft(Event):
    peer: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderChanged(Event):
    """``peer`` leads from now on, or its voters have changed."""

    peer: str
    name: str
    term: int
    voters: int
    is_safe: bool  # the run survives the loss of a voter
    voter_ids: str = ""  # separated by commas


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderLost(Event):
    """No leader has been heard of for too long. The next LeaderChanged names another, or the same one again."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerProgress(Event):
    """How far a peer is in its local steps; at most one a second and peer."""

    peer: str
    name: str
    round: int
    step: int
    steps: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOpened(Event):
    """``steps`` local steps for ``peers`` peers; ``refresh`` is the number of blocks whose basis is due."""

    round: int
    peers: int
    steps: int
    lr: float
    refresh: int
    reducers: str = ""  # names of the nodes beside the leader that average a part of it, separated by commas


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseChanged(Event):
    """``phase``: waiting, train, exchange, commit, apply or finished. ``deadline``: seconds from the event's time."""

    round: int
    phase: str
    deadline: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerInRound(Event):
    """Something that happened to one peer's work in a round."""

    round: int
    peer: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadReceived(PeerInRound):
    """``seconds`` since the round was opened; ``local_loss`` is the peer's own mean over its steps."""

    seconds: float
    wire_bytes: int  # 0 where the leader does not reduce it, and knows only that it is with its reducers
    local_loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadLate(PeerInRound):
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadRefused(PeerInRound):
    """``reason`` is one short word, ``message`` a sentence."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestReported(PeerInRound):
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestMismatch(PeerInRound):
    """A peer's consensus weights differ from the leader's. Always an error."""

    expected: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundVoid(Event):
    round: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundClosed(Event):
    """A committed round. Bytes are summed over peers; ``dense_bytes`` is what data-parallel fp32 would have moved."""

    round: int
    peers: int
    included: int
    late: int
    loss: float | None
    local_loss: float | None
    tokens: int
    seconds: float
    wire_bytes: Traffic
    per_peer: dict[str, PeerTraffic]
    raw_bytes: RawBytes
    dense_bytes: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierRounds(Event):
    """Totals of the ``rounds`` rounds up to ``round``, whose own events are kept no more."""

    round: int
    rounds: int
    wire_bytes: Traffic
    per_peer: dict[str, PeerTraffic]
    raw_bytes: RawBytes
    dense_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataCovered(Event):
    """``done`` of the ``parts`` of the shared data were trained on in this epoch, ``share`` of it, 0 to 1."""

    epoch: int
    done: int
    parts: int
    share: float
    part: int = 0  # from 1, if its lease passed from the peer ``was``, which was lost, to ``now``
    was: str = ""
    now: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved(Event):
    round: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned(Event):
    """Something to know that stops nothing; called ``warning`` in JSON."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtFound(Event):
    """The number of signed records of this run that the DHT holds now, and the names in them."""

    records: int
    names: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LabReady(Event):
    """A local swarm's network is shaped: ``mode`` is namespaces or proxy, ``reason`` a sentence on why that one."""

    mode: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlaced(Event):
    """A local swarm's ``fault``, as it is written on the command line, begins; or ``is_over``, if it ends by itself."""

    fault: str
    is_over: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished(Event):
    """The end of a run. Bytes are totals, both directions, summed over peers."""

    rounds: int
    first_loss: float | None
    last_loss: float | None
    wire_bytes: int
    dense_bytes: int
    digest: str
    reason: str
    is_stopped: bool = False  # before its last round: it can be resumed, and others may go on with it
    by_kind: dict[str, int] = field(default_factory=dict)  # wire_bytes by payload kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined(OwnEvent):
    """A peer's own stream: admitted as ``name``, starting from the state after ``round``."""

    run: str
    name: str
    number: int
    address: str
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateReceived(OwnEvent):
    """A peer's own stream: the consensus state was downloaded, but for what an earlier try had left on disk."""

    round: int
    bytes: int
    seconds: float
    donors: int = 1  # that sent parts of it
    found_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CatchingUp(OwnEvent):
    """A peer's own stream: it missed rounds, and takes the state or replays them; ``reason`` compares the bytes."""

    missed: int
    takes_state: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundApplied(OwnEvent):
    """A peer's own stream: a committed round was applied; ``included`` says whether this peer's work was in it."""

    round: int
    included: bool
    local_loss: float | None
    tokens: int
    seconds: float
    digest: str
    wire_bytes: Traffic
    overhead: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Left(OwnEvent):
    """A peer's own stream: this peer is done after ``rounds`` rounds."""

    reason: str
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamped:
    """An event and when it happened, unix seconds."""

    time: float
    event: Event


def event_name(event: Event) -> str:
    """The value of ``"event"``: the class name in snake case."""
    return _NAMES[type(event)]


def to_dict(event: Event, time: float) -> dict[str, Any]:
    """``event`` as the flat object that is written: its name, the unix time, its fields. Shares nested dicts."""
    values = {f.name: getattr(event, f.name) for f in fields(event)}
    finite = {name: None if isinstance(v, float) and not is_sane(v) else v for name, v in values.items()}
    return {"event": event_name(event), "time": round(time, 3), **finite}


def encode(event: Event, time: float) -> str:
    """One line of JSON without its newline. A float that is not finite, or absurdly large, is written as null."""
    return json.dumps(to_dict(event, time), separators=(", ", ": "), ensure_ascii=True, allow_nan=False)


def decode(line: str) -> Event | None:
    """Read one line; None for an unknown event, a missing field, a wrong type or anything that is not JSON."""
    stamped = decode_stamped(line)
    return None if stamped is None else stamped.event


def decode_stamped(line: str) -> Stamped | None:
    """Like ``decode``, with the event's time."""
    if len(line) > MAX_LINE:
        return None
    try:
        return _from_dict(json.loads(line))
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
        return None


def _from_dict(document: Any) -> Stamped:
    cls = EVENT_TYPES[document["event"]]
    optional = {f.name for f in fields(cls) if (f.default, f.default_factory) != (MISSING, MISSING)}
    values = {
        name: read_as(hint, document.get(name))
        for name, hint in _HINTS[cls].items()
        if name in document or name not in optional
    }
    return Stamped(time=read_as(float, document.get("time")), event=cls(**values))


_ALL = [value for value in list(globals().values()) if isinstance(value, type) and issubclass(value, Event)]
_CLASSES = [cls for cls in _ALL if not cls.__subclasses__()]
_NAMES = {cls: "warning" if cls is Warned else re.sub(r"\B(?=[A-Z])", "_", cls.__name__).lower() for cls in _CLASSES}
_HINTS = {cls: get_type_hints(cls) for cls in _CLASSES}
EVENT_TYPES: Mapping[str, type[Any]] = {name: cls for cls, name in _NAMES.items()}
