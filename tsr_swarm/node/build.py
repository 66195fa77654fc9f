"""Puts a node together, here alone: each part is given the parts below it, and all are ended on the way out."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tsr_swarm.node.calls import LeaderClient
from tsr_swarm.node.context import NodeContext, policy_of
from tsr_swarm.node.contribution_store import ContributionStore
from tsr_swarm.node.data_leases import DataLeases
from tsr_swarm.node.driver import Driver, awake_clock
from tsr_swarm.node.events.commit_reporter import CommitReporter
from tsr_swarm.node.follower import Follower
from tsr_swarm.node.leader import ShardCollector
from tsr_swarm.node.messenger import Messenger
from tsr_swarm.node.node import SwarmNode
from tsr_swarm.node.poll_replies import PollReplies
from tsr_swarm.node.reducer import Reducer
from tsr_swarm.node.roster_cache import RosterCache
from tsr_swarm.node.round_cache import Headers, RoundCache
from tsr_swarm.node.service import InitialPeers, NodeService, StartingService
from tsr_swarm.node.sync.donors import Donors
from tsr_swarm.node.sync.downloader import Downloader
from tsr_swarm.node.sync.rounds import RoundDownload
from tsr_swarm.node.sync.state import StateDownload
from tsr_swarm.node.trainer_task import TrainerTask
from tsr_swarm.node.weights import Weights, WeightsThread
from tsr_swarm.node.workspace import Workspace
from tsr_swarm.optim.outer_step import OuterState
from tsr_swarm.rounds.leases import NOTHING_DONE, Coverage
from tsr_swarm.rounds.raft_state import HardState, RoundRecord
from tsr_swarm.rounds.state import Node, NodeIdentity, PeerState
from tsr_swarm.rounds.step import begin
from tsr_swarm.storage.journal import Journal
from tsr_swarm.storage.state_store import StateStore


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """What a node begins with: what its disk has, and whom it knows."""

    hard_state: HardState  # what it has promised
    weights: Weights
    record: RoundRecord | None  # of the round that ``weights`` are at; None: there is no state yet
    folder: Path  # where states are downloaded to
    journal: Journal | None = None  # None: nobody can dial this node, so it promises nothing
    store: StateStore | None = None  # None: it gives nothing to others
    workspace: Workspace | None = None  # None: it does not train
    outer: OuterState = field(default_factory=dict)  # what it keeps as a reducer between rounds
    coverage: Coverage = NOTHING_DONE  # of the shared data, as it was then
    known: tuple[str, ...] = ()  # peer_ids of others that may know the leader
    lost: str = ""  # chain hash of the proposal in the journal, if its bytes are on no disk here


@asynccontextmanager
async def build(
    context: NodeContext,
    saved: SavedState,
    service: StartingService | None = None,
    initial_peers: InitialPeers = lambda caller: [],
) -> AsyncIterator[SwarmNode]:
    """Make a node, and end on the way out what it has begun. ``service``: None for a node that nobody can dial."""
    context.driver = Driver(_first_state(context, saved), saved.journal, context.warn)
    log = saved.store.round_log if saved.store is not None else None
    workspace = saved.workspace
    headers, round_cache, roster_cache = Headers(), RoundCache(), RosterCache(context)
    weights = WeightsThread(saved.weights, context.me, saved.record)
    contributions = ContributionStore(context.manifest, saved.outer, saved.record.chain if saved.record else "")
    reads_shared_data = workspace is not None and workspace.is_on_shared_data
    data_leases = DataLeases(context, saved.coverage, workspace if reads_shared_data else None)
    reducer = Reducer(context, round_cache, roster_cache, weights, contributions, log)
    trainer_task = TrainerTask(context, round_cache, weights, workspace, data_leases, reducer)
    began = 0 if saved.record is None else saved.record.round
    commit_reporter = CommitReporter(context, round_cache, contributions, log, began)
    donors = Donors(context.clients, context.emit)
    downloader = Downloader(
        first=context.first,
        donors=donors,
        rounds=RoundDownload(donors, context.manifest, context.me),
        states=StateDownload(donors, context.manifest, saved.folder),
        log=log,
        own=contributions.frames,
        headers=headers,
    )
    follower = Follower(context, downloader, weights, contributions, trainer_task, commit_reporter, saved.store)
    leader_client = LeaderClient(context, round_cache, data_leases, trainer_task)
    poll_replies = PollReplies(context, round_cache, data_leases)
    shard_collector = ShardCollector(context, round_cache)
    messenger = Messenger(context, round_cache, roster_cache, shard_collector, leader_client, poll_replies)
    node = context.driver.handler = SwarmNode(
        context=context,
        round_cache=round_cache,
        roster_cache=roster_cache,
        weights=weights,
        contributions=contributions,
        data_leases=data_leases,
        reducer=reducer,
        trainer_task=trainer_task,
        commit_reporter=commit_reporter,
        follower=follower,
        leader_client=leader_client,
        poll_replies=poll_replies,
        messenger=messenger,
        log=log,
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(node.close)
        stack.callback(context.run_log.follow, "", context.clients)
        if service is not None and saved.store is not None:
            service.node_service = NodeService(node, saved.store, headers, initial_peers)
            stack.callback(service.node_service.close)
        yield node


def _first_state(context: NodeContext, saved: SavedState) -> Node:
    """What the decisions know as the node starts."""
    identity = NodeIdentity(
        me=context.me,
        incarnation=time.time_ns() // 1_000_000,
        trains=context.info.trains,
        is_dialable=bool(context.info.address),
        first=context.first,
        known=saved.known,
        sizes=context.manifest.shard_bytes,
        policy=policy_of(context.config),
    )
    record = saved.record
    state = PeerState() if record is None else PeerState(applied=record.round, chain=record.chain)
    return begin(identity, saved.hard_state, state, awake_clock(), saved.lost)
