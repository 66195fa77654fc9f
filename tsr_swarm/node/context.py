"""What a node begins with, and what it asks whoever runs it for."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.run import RunConfig
from tsr_swarm.node.driver import awake_clock
from tsr_swarm.node.messenger import NodeInfo
from tsr_swarm.node.weights import AppliedRound, Weights
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.outer_step import OuterState
from tsr_swarm.rounds.leases import NOTHING_DONE, Coverage
from tsr_swarm.rounds.peer import PeerState
from tsr_swarm.rounds.raft_state import HardState, RoundRecord
from tsr_swarm.rounds.round_phases import RoundPolicy
from tsr_swarm.rounds.state import Node, NodeIdentity
from tsr_swarm.rounds.step import begin
from tsr_swarm.storage.journal import Journal
from tsr_swarm.storage.state_store import StateStore
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.events import Event
from tsr_swarm.train.trainer import Trainer
from tsr_swarm.wire.messages import PublishedHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a node begins with."""

    who: NodeInfo
    manifest: Manifest
    config: RunConfig  # the manifest's, with the rules as they were told
    first: str  # peer_id of the coordinator
    known: tuple[str, ...]  # peer_ids of others that may know the leader
    ledger: HardState
    journal: Journal | None  # None: nobody can dial this node, so it promises nothing
    record: RoundRecord | None  # of the state in ``weights``; None: there is none yet
    weights: Weights
    outer: OuterState
    donor: StateStore | None  # None: it gives nothing
    coverage: Coverage = NOTHING_DONE  # of the shared data, as it was then
    lost: str = ""  # chain hash of the proposal in the journal, if its bytes are on no disk here


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """What a node asks whoever runs it for."""

    emit: Callable[[Event], None]  # of this node, for its own people
    emit_run: Callable[[Event], None]  # of the run, while this node leads
    trainer: Callable[[], Trainer]
    take_number: Callable[[int], None]  # on the worker thread
    read_part: Callable[[int], int] | None  # likewise, of the shared data; None: it trains on none of that
    applied: Callable[[PublishedHeader, AppliedRound, OuterState, float], Awaitable[None]]  # rounds in order
    restored: Callable[
        [RoundRecord, Consensus], Awaitable[None]
    ]  # a state was taken: keep it, before it is known to stand
    score: Callable[[int, Consensus], Awaitable[float | None]]  # held-out loss after a round, where it can be known
    told: Callable[[], int]  # the newest round that people were told of
    peers: Callable[[], Mapping[str, events.PeerJoined]]  # who takes part, as people were told
    sample: Callable[[], None]  # look at the kernel's byte counts
    votes: Callable[[bool], None]  # whether this node is a voter from now on
    ask: Callable[[Sequence[str], int], Awaitable[None]]  # these nodes, which rounds up to this one were told
    follow: Callable[[str], None]  # this leader's account of the run from now on; "": nobody's, or this node leads
    ends: Callable[[], None]  # the run is over, and a leader says so


def first_node(start: Start) -> Node:
    """What the decisions know as it starts."""
    identity = NodeIdentity(
        me=start.who.peer_id,
        incarnation=time.time_ns() // 1_000_000,
        trains=start.who.trains,
        is_dialable=bool(start.who.address),
        first=start.first,
        known=start.known,
        sizes=start.manifest.shard_bytes,
        policy=policy_of(start.config),
    )
    record = start.record
    state = PeerState() if record is None else PeerState(applied=record.round, chain=record.chain)
    return begin(identity, start.ledger, state, awake_clock(), start.lost)


def policy_of(config: RunConfig) -> RoundPolicy:
    """What the configuration says about rounds."""
    limits = config.round
    return RoundPolicy(
        quorum=limits.quorum,
        floor_seconds=limits.floor_seconds,
        ceiling_seconds=limits.ceiling_seconds,
        min_peers=config.run.min_peers,
        last_round=config.run.rounds,
    )
