"""What all parts of a node share: who it is, what it may ask of the program around it, and what its decisions know."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.run import RunConfig
from tsr_swarm.discovery.addresses import address_for
from tsr_swarm.discovery.records import PeerRole, Presence
from tsr_swarm.errors import RefusedError
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.driver import Driver
from tsr_swarm.node.events.run_log import RunLog
from tsr_swarm.node.round_cache import RoundCache
from tsr_swarm.node.weights import AppliedRound
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.outer_step import OuterState
from tsr_swarm.process.tasks import Background
from tsr_swarm.rounds.protocol import Event as DecisionEvent
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.rounds.round_phases import RoundPolicy
from tsr_swarm.rounds.state import Node, known_nodes
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.events import Event
from tsr_swarm.transport.base import Caller
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.wire.messages import PublishedHeader, with_rules
from tsr_swarm.wire.v1 import swarm_pb2 as pb

if TYPE_CHECKING:
    from tsr_swarm.node.leader import Leader


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """What a node says of itself."""

    peer_id: str
    name: str
    address: str  # host:port where it can be dialled; empty: client-only
    local_space: str
    device: str
    trains: bool = True


class Host(Protocol):
    """What a node asks of the program that runs it: PeerProcess in peer.py, CoordinatorProcess in coordinator.py."""

    def emit(self, event: Event) -> None:
        """Tell this process's own people of this node."""

    async def applied(self, header: PublishedHeader, applied: AppliedRound, outer: OuterState, seconds: float) -> None:
        """A round is in the weights, ``seconds`` after its fetch began. Rounds come in order."""

    async def restored(self, record: RoundRecord, consensus: Consensus) -> None:
        """A state was downloaded: keep it, before its round is known to stand here."""

    async def score(self, round: int, consensus: Consensus) -> float | None:
        """The held-out loss after ``round``, nats a token; None where it cannot be had."""


@dataclass(slots=True, kw_only=True, eq=False)
class NodeContext:
    """Identity, connections and state of one node, which its parts share. Used on one event loop."""

    info: NodeInfo
    manifest: Manifest
    config: RunConfig  # the manifest's, with the rules as they were told last
    first: str  # peer_id of the coordinator
    host: Host
    book: AddressBook
    clients: ClientPool
    run_log: RunLog
    round_cache: RoundCache = field(default_factory=RoundCache)
    driver: Driver = field(init=False)  # set by node.py
    leader: "Leader | None" = None  # while this node leads
    name: str = field(init=False)  # as a leader calls it
    number: int = 0  # this peer's place in sums; 0: none yet
    background: Background = field(default_factory=Background)
    done: asyncio.Event = field(default_factory=asyncio.Event)  # this node has quit, or failed
    reason: str = ""  # why it has quit
    failure: Exception | None = None
    reached_at: float = field(default_factory=time.monotonic)  # when another node answered last
    last_leader: str = ""  # the newest that was known: it waits for reports of its last round as it goes
    admitted_by: SwarmClient | None = None  # the newest leader that admitted this node
    _newest: RoundRecord | None = None  # as others say

    def __post_init__(self) -> None:
        self.name = self.info.name

    @property
    def me(self) -> str:
        return self.info.peer_id

    @property
    def state(self) -> Node:
        """All that the decisions know."""
        return self.driver.node

    @property
    def base(self) -> RoundRecord:
        """The newest round that stands as far as this node's journal knows."""
        return self.state.voter.hard_state.base

    @property
    def voters(self) -> tuple[str, ...]:
        """Who votes after that round."""
        return self.state.voter.voters

    @property
    def newest(self) -> RoundRecord:
        """The newest round that anybody said to stand."""
        told = self._newest
        return self.base if told is None or told.round < self.base.round else told

    @property
    def presence(self) -> Presence:
        """What this node says in the DHT, in which others look for the run and for it."""
        info, manifest = self.info, self.manifest
        return Presence(
            run_id=manifest.run_id,
            run=self.config.run.name,
            parameters=manifest.parameters,
            round=self.newest.round,
            name=info.name,
            address=info.address,
            role=PeerRole.PEER if info.trains else PeerRole.COORDINATOR,
        )

    @property
    def term(self) -> int:
        """The newest term that a leader or a candidate told of."""
        return max(self.state.tracking.term, self.state.voter.term)

    @property
    def known_leader(self) -> str:
        """Whom this node follows; "": nobody, or itself."""
        return self.state.tracking.leader

    @property
    def contacts(self) -> list[str]:
        """peer_ids of nodes that may know the leader, or lead."""
        return list(dict.fromkeys([self.known_leader or self.me, *known_nodes(self.state), self.me]))

    @property
    def is_over(self) -> bool:
        """Whether the run has had its last round, as far as this node knows."""
        return self.state.peer.is_finished

    @property
    def is_stopping(self) -> bool:
        """Whether this node goes after this round, or has gone."""
        return self.state.is_leaving or self.done.is_set()

    def put(self, event: DecisionEvent) -> None:
        self.driver.put(event)

    def note_committed(self, record: RoundRecord, is_set_back: bool = False) -> None:
        """This round stands, as another node says. ``is_set_back``: the run goes on after an older round than told."""
        if self._newest is None or record.round > self._newest.round or is_set_back:
            self._newest = record

    def update_rules(self, leader: str, rules: pb.Rules) -> None:
        """Take over the rules that ``leader`` tells. Only the coordinator may set them, as long as it is another."""
        if leader != self.first or self.me == self.first:
            return
        config = with_rules(self.config, rules)
        if config != self.config:
            self.config = config
            policy = policy_of(config)
            self.driver.change(lambda node: replace(node, identity=replace(node.identity, policy=policy)))

    def emit(self, event: Event) -> None:
        self.host.emit(event)

    def warn(self, message: str) -> None:
        """Tell people, of the run while this node leads."""
        event = events.Warned(message=message)
        (self.host.emit if self.leader is None else self.run_log.emit)(event)

    def quit(self, reason: str) -> None:
        self.reason = reason
        self.done.set()

    def fail(self, error: Exception) -> None:
        self.failure = self.failure or error
        self.done.set()

    def require_run(self, digest: bytes) -> None:
        """Refuse a caller that was set up for another manifest. Raises RefusedError that says what to do about it."""
        if digest.hex() != self.manifest.digest:
            raise RefusedError(
                f"You are set up for another run ({digest.hex()[:12]}) than '{self.manifest.config.run.name}' "
                f"({self.manifest.digest[:12]}); join in a new folder, without --resume."
            )

    def seen_by(self, caller: Caller, peer_ids: Iterable[str]) -> dict[str, str]:
        """Where a caller can dial those of ``peer_ids`` that it can dial, and this node."""
        seen = self.book.seen_by(caller.address, peer_ids)
        mine = address_for(caller.address, self.info.address) if self.info.address else ""
        return {**seen, self.me: mine} if mine else seen


def policy_of(config: RunConfig) -> RoundPolicy:
    limits = config.round
    return RoundPolicy(
        quorum=limits.quorum,
        floor_seconds=limits.floor_seconds,
        ceiling_seconds=limits.ceiling_seconds,
        min_peers=config.run.min_peers,
        last_round=config.run.rounds,
    )
