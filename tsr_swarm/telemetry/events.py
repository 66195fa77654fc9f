"""What happened, one frozen dataclass an event; as JSON, one flat object a line.

The same lines leave a process as ``--json``, travel to monitors, and are kept as the recording of a run. They may come
from another machine, so reading one never raises and never yields a field of the wrong type.
"""

import json
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, NotRequired, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

MAX_LINE = 4 << 20  # characters; a round of ten thousand peers stays below
MAX_COUNT = 2**63 - 1
MAX_NUMBER = 1e15  # of a float; no time, rate or loss is larger, and sums of such stay finite


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
class RunStarted:
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
class Evaluated:
    """Held-out loss after ``round``, nats a token; round 0 is before training. None: not a finite number."""

    round: int
    loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerJoined:
    """``peer`` is 32 hexadecimal digits; an empty ``address`` is a client-only peer."""

    peer: str
    name: str
    number: int
    address: str
    device: str
    local_space: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLeft:
    peer: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderChanged:
    """``peer`` leads from now on, or the voters behind it are others. ``is_safe``: the run survives one of them.

    ``voter_ids`` are the voters themselves, separated by commas.
    """

    peer: str
    name: str
    term: int
    voters: int
    is_safe: bool
    voter_ids: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderLost:
    """Nobody has heard who leads for too long. The next LeaderChanged names another, or the same one again."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerProgress:
    """How far a peer is in its local steps; at most one a second and peer."""

    peer: str
    name: str
    round: int
    step: int
    steps: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOpened:
    """``steps`` local steps for ``peers`` peers; ``refresh`` is the number of blocks whose basis is due.

    ``reducers`` are the names of those beside the leader that average a part of it, separated by commas.
    """

    round: int
    peers: int
    steps: int
    lr: float
    refresh: int
    reducers: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseChanged:
    """``phase``: waiting, train, exchange, commit, apply or finished. ``deadline``: seconds from the event's time."""

    round: int
    phase: str
    deadline: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadReceived:
    """``seconds`` since the round was opened; ``local_loss`` is the peer's own mean over its steps.

    A leader that does not reduce it knows of the payload only that it is with its reducers: ``wire_bytes`` is 0 then.
    """

    round: int
    peer: str
    name: str
    seconds: float
    wire_bytes: int
    local_loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadLate:
    round: int
    peer: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadRefused:
    """``reason`` is one short word, ``message`` a sentence."""

    round: int
    peer: str
    name: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestReported:
    round: int
    peer: str
    name: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestMismatch:
    """A peer's consensus weights differ from the leader's. Always an error."""

    round: int
    peer: str
    name: str
    expected: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundVoid:
    round: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundClosed:
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
class EarlierRounds:
    """Totals of the ``rounds`` rounds up to ``round``, whose own events are kept no more."""

    round: int
    rounds: int
    wire_bytes: Traffic
    per_peer: dict[str, PeerTraffic]
    raw_bytes: RawBytes
    dense_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataCovered:
    """``done`` of the ``parts`` of the shared data were trained on in this epoch, ``share`` of it, 0 to 1.

    ``part``, from 1, if the lease of one passed from a peer that was lost, ``was``, to another, ``now``; else 0.
    """

    epoch: int
    done: int
    parts: int
    share: float
    part: int = 0
    was: str = ""
    now: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved:
    round: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """Something to know that stops nothing; ``warning`` on the wire."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtFound:
    """How many signed records of this run the DHT holds now, and the names in them."""

    records: int
    names: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LabReady:
    """A local swarm's lines are shaped: ``mode`` is namespaces or proxy, ``reason`` a sentence on why that one."""

    mode: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlaced:
    """A local swarm's ``fault``, as it is written on the command line, begins; or ``is_over``, if it ends by itself."""

    fault: str
    is_over: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """Bytes are totals of the run, both directions, summed over peers.

    ``is_stopped``: its account ends here, before its last round; it can be resumed, and others may go on with it.
    """

    rounds: int
    first_loss: float | None
    last_loss: float | None
    wire_bytes: int
    dense_bytes: int
    digest: str
    reason: str
    is_stopped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A peer's own stream: admitted as ``name``, starting from the state after ``round``."""

    run: str
    name: str
    number: int
    address: str
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateReceived:
    """A peer's own stream: the consensus state was downloaded, but for what an earlier try had left on disk."""

    round: int
    bytes: int
    seconds: float
    donors: int = 1  # that gave of it
    found_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CatchingUp:
    """A peer's own stream: it missed rounds, and takes the state or replays them; ``reason`` compares the bytes."""

    missed: int
    takes_state: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundApplied:
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
class Left:
    """A peer's own stream: this peer is done after ``rounds`` rounds."""

    reason: str
    rounds: int


Event = (
    RunStarted
    | Evaluated
    | PeerJoined
    | PeerLeft
    | LeaderChanged
    | LeaderLost
    | PeerProgress
    | RoundOpened
    | PhaseChanged
    | PayloadReceived
    | PayloadLate
    | PayloadRefused
    | DigestReported
    | DigestMismatch
    | RoundVoid
    | RoundClosed
    | EarlierRounds
    | DataCovered
    | CheckpointSaved
    | Warned
    | DhtFound
    | LabReady
    | FaultPlaced
    | RunFinished
    | Joined
    | StateReceived
    | CatchingUp
    | RoundApplied
    | Left
)

OwnEvent = Joined | StateReceived | CatchingUp | RoundApplied | Left  # of one peer, and no news of the run


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
    values = {f.name: _sane(getattr(event, f.name)) for f in fields(event)}
    return {"event": event_name(event), "time": round(time, 3), **values}


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
        document = json.loads(line)
        return _from_dict(document)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None


def _from_dict(document: Any) -> Stamped:
    cls = _CLASSES.get(document["event"]) if isinstance(document, dict) and "event" in document else None
    if cls is None:
        raise ValueError("not an event")
    time = _read(document.get("time"), float)
    optional = {f.name for f in fields(cls) if f.default is not MISSING}
    values = {
        name: _read(document.get(name), hint)
        for name, hint in _HINTS[cls].items()
        if name in document or name not in optional
    }
    return Stamped(time=time, event=cls(**values))


def _read(value: Any, hint: Any) -> Any:
    """``value`` as ``hint``; raises ValueError. A whole number is a count, so it is neither negative nor huge."""
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool) and _is_sane(value):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT:
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    if get_origin(hint) in (Union, types.UnionType):
        inner, _ = get_args(hint)  # only ``X | None`` is used
        return None if value is None else _read(value, inner)
    if is_typeddict(hint) and isinstance(value, dict):
        return _read_typed_dict(value, hint)
    if get_origin(hint) is dict and isinstance(value, dict):
        return {key: _read(item, get_args(hint)[1]) for key, item in value.items()}
    raise ValueError("wrong type")


def _read_typed_dict(value: dict[str, Any], hint: Any) -> dict[str, Any]:
    hints = get_type_hints(hint)
    if not hint.__required_keys__ <= value.keys():
        raise ValueError("missing key")
    return {key: _read(value[key], item) for key, item in hints.items() if key in value}


def _sane(value: Any) -> Any:
    return None if isinstance(value, float) and not _is_sane(value) else value


def _is_sane(number: float) -> bool:
    return abs(number) <= MAX_NUMBER  # false for nan


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


_CLASSES: Mapping[str, type[Any]] = {"warning" if c is Warned else _snake(c.__name__): c for c in get_args(Event)}
_NAMES = {cls: name for name, cls in _CLASSES.items()}
_HINTS = {cls: get_type_hints(cls) for cls in _NAMES}
