"""The state of a run as a screen shows it. ``telemetry/fold.py`` makes it of events."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tsr_swarm.telemetry.text import plural

LEFT = "left"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerView:
    """One peer. ``state`` is a word; ``round`` the one it works at; ``up`` and ``down`` are wire bytes so far."""

    peer: str
    name: str
    number: int = 0
    device: str = ""
    local_space: str = ""
    is_client_only: bool = False
    state: str = "joining"
    reason: str = ""
    round: int = 0
    step: int = 0
    steps: int = 0
    tokens_per_second: float = 0.0
    local_loss: float | None = None
    up: int = 0
    down: int = 0
    overhead: int = 0

    @property
    def is_alive(self) -> bool:
        return self.state != LEFT


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPoint:
    """A round in the history of losses; round 0 is before training."""

    round: int
    loss: float | None = None
    local_loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    time: float
    text: str
    is_alert: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmSnapshot:
    """Everything a screen needs. ``started``, ``time``, ``deadline``: unix seconds by the run's clock."""

    started: float | None = None
    time: float = 0.0
    run: str = ""
    run_id: str = ""
    address: str = ""
    rounds: int = 0
    min_peers: int = 0
    voters: int = 0
    version: str = ""
    leader: str = ""  # its name; empty: not known
    is_safe: bool = False  # whether the run survives the loss of its leader
    is_leaderless: bool = False
    round: int = 0
    phase: str = ""
    phase_reason: str = ""
    deadline: float | None = None
    peers: Mapping[str, PeerView] = field(default_factory=dict)
    history: tuple[RoundPoint, ...] = ()
    sent: Mapping[str, int] = field(default_factory=dict)
    received: Mapping[str, int] = field(default_factory=dict)
    raw_bytes: int = 0
    dense_bytes: int = 0
    overhead: int = 0
    rounds_counted: int = 0
    closed_round: int = 0  # the newest one reported as closed
    rounds_included: int | None = None
    epoch: int = 0  # of the shared data; 0: not known
    share: float = 0.0  # of it that was trained on in this epoch
    last_seconds: float | None = None
    digest: str = ""
    own_name: str = ""
    own_state: str = ""  # of the peer whose screen this is: trains, catches up, or waits for a leader
    own_end: str | None = None  # why that peer has left
    lab: str = ""  # what shapes the network of a local swarm, if anything does
    finished: str | None = None  # why the run has ended
    is_stopped: bool = False  # before its last round
    log: tuple[LogLine, ...] = ()

    @property
    def alive(self) -> tuple[PeerView, ...]:
        return tuple(peer for peer in self.peers.values() if peer.is_alive)

    def leads(self, peer: PeerView) -> bool:
        """Whether ``peer`` leads the run now."""
        return peer.is_alive and bool(self.leader) and peer.name == self.leader and not self.is_leaderless

    @property
    def table(self) -> tuple[PeerView, ...]:
        """Peers that are here by number, then those that left."""
        return tuple(sorted(self.peers.values(), key=lambda p: (not p.is_alive, p.number, p.name)))

    @property
    def tokens_per_second(self) -> float:
        """The speed of the whole swarm: the sum of its peers' newest reports."""
        return sum(self.speed(peer) for peer in self.alive)

    @property
    def wire_bytes(self) -> int:
        """Both directions, summed over peers, of the rounds counted."""
        return sum(self.by_kind.values())

    @property
    def by_kind(self) -> dict[str, int]:
        """``wire_bytes`` by payload kind."""
        return {kind: self.sent.get(kind, 0) + self.received.get(kind, 0) for kind in {**self.sent, **self.received}}

    @property
    def first_loss(self) -> float | None:
        return next((point.loss for point in self.history if point.loss is not None), None)

    @property
    def loss(self) -> float | None:
        return next((point.loss for point in reversed(self.history) if point.loss is not None), None)

    @property
    def local_loss(self) -> float | None:
        return next((point.local_loss for point in reversed(self.history) if point.local_loss is not None), None)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen: the run has finished, or the peer whose screen this is has left it."""
        return self.finished is not None or self.own_end is not None

    @property
    def missing_peers(self) -> int:
        """How many peers have to join before the run can go on; a finished one needs none."""
        return 0 if self.is_over or self.phase == "finished" else max(0, self.min_peers - len(self.alive))

    @property
    def state(self) -> str:
        """What the run is doing, in words."""
        alive = len(self.alive)
        match self.phase:
            case _ if self.finished is not None:
                word = "stopped" if self.is_stopped else "finished"
                return f"{word}: {self.finished}" if self.finished else word
            case _ if self.own_end is not None:
                return f"this peer has left: {self.own_end}"
            case _ if self.is_leaderless:
                outcome = "another is elected" if self.is_safe else "the run waits for it"
                return f"{self.leader or 'the leader'} is lost: {outcome}"
            case "waiting" if self.missing_peers:
                return f"waiting for {plural(self.missing_peers, 'more peer')}"
            case "waiting":
                return self.phase_reason or "waiting"
            case "train" | "exchange" if self.round and not alive:
                return f"round {self.round}: no peer is here"
            case "train" if self.round:
                return f"round {self.round}: {plural(alive, 'peer')} training"
            case "exchange":
                sent = sum(peer.state == "sent" and peer.round == self.round for peer in self.alive)
                return f"round {self.round}: {sent} of {alive} payloads arrived"
            case "commit":
                return f"round {self.round}: waiting for the votes of {plural(self.voters, 'voter')}"
            case "apply":
                applied = sum(peer.state == "applied" and peer.round > self.round for peer in self.alive)
                return f"round {self.round}: {applied} of {plural(alive, 'peer')} applied it"
            case "finished":
                return self.phase_reason or "the run is about to finish"
        if self.own_name and self.rounds_included is not None:
            share = f"{self.rounds_included} of {plural(self.rounds_counted, 'round')}"
            return f"{self.own_name}: after round {self.round}, its work was in {share}"
        if self.own_name:
            return f"{self.own_name}: after round {self.round}"
        if self.started is None:
            return "waiting for the first event"
        return f"round {self.round}" if self.round else "waiting for the first round"

    @property
    def own_text(self) -> str:
        """What the peer whose screen this is does, in words; empty if there is none or it is not known."""
        if not self.own_state.startswith("waits"):
            return f"this peer {self.own_state}" if self.own_state else ""
        awaited = "until another leads" if self.is_safe else f"for {self.leader or 'the leader'}"
        return f"this peer waits {awaited}"

    def speed(self, peer: PeerView) -> float:
        """Tokens a second that ``peer`` trains; 0 while there is no leader, because the peers wait then."""
        return 0.0 if self.is_leaderless else peer.tokens_per_second

    def lag(self, peer: PeerView) -> int:
        """Rounds that ``peer`` is behind the open one."""
        return max(0, self.round - peer.round) if peer.is_alive else 0
