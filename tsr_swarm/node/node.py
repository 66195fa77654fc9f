"""One node at work: carries out what rounds/step.py decides, by its parts, and begins and ends to lead."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tsr_swarm.errors import PeerError, UnreachableError
from tsr_swarm.node.calls import LeaderClient
from tsr_swarm.node.context import NodeContext, policy_of
from tsr_swarm.node.contribution_store import ContributionStore
from tsr_swarm.node.data_leases import DataLeases
from tsr_swarm.node.driver import Driver, awake_clock
from tsr_swarm.node.events.commit_reporter import CommitReporter
from tsr_swarm.node.follower import Follower
from tsr_swarm.node.leader import Leader, ShardCollector
from tsr_swarm.node.messenger import Messenger
from tsr_swarm.node.poll_replies import PollReplies
from tsr_swarm.node.reducer import Reducer
from tsr_swarm.node.roster_cache import RosterCache
from tsr_swarm.node.round_cache import Headers
from tsr_swarm.node.service import InitialPeers, NodeService, StartingService
from tsr_swarm.node.sync.donors import Donors
from tsr_swarm.node.sync.downloader import Downloader
from tsr_swarm.node.trainer_task import TrainerTask
from tsr_swarm.node.weights import Weights, WeightsThread
from tsr_swarm.node.workspace import Workspace
from tsr_swarm.optim.outer_step import OuterState
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.leases import NOTHING_DONE, Coverage
from tsr_swarm.rounds.raft_state import HardState, RoundRecord
from tsr_swarm.rounds.state import Node, NodeIdentity, PeerState, known_nodes
from tsr_swarm.rounds.step import begin
from tsr_swarm.storage.journal import Journal
from tsr_swarm.storage.state_store import StateStore
from tsr_swarm.telemetry import events

GIVE_UP_SECONDS = 1800.0  # without an answer from anybody
FORGET_SECONDS = 30.0  # a peer that has not come to a new leader by then is gone
LOOK_SECONDS = 2.0  # how often that is looked at, and a leader's own progress shown


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


class SwarmNode:
    """The parts of one node, each with references to the parts below it. Implements driver.ActionHandler."""

    def __init__(self, context: NodeContext, saved: SavedState) -> None:
        context.driver = Driver(_first_state(context, saved), saved.journal, context.warn)
        context.driver.handler = self
        record, workspace = saved.record, saved.workspace
        self.context = context
        self.log = None if saved.store is None else saved.store.round_log  # None: it keeps no rounds for others
        self.headers, self.roster_cache = Headers(), RosterCache(context)
        self.weights = WeightsThread(saved.weights, context.me, record)
        self.contributions = ContributionStore(context.manifest, saved.outer, "" if record is None else record.chain)
        self.data_leases = DataLeases(context, saved.coverage, workspace)
        self.reducer = Reducer(context, self.roster_cache, self.weights, self.contributions, self.log)
        self.trainer_task = TrainerTask(context, self.weights, workspace, self.data_leases, self.reducer)
        began = 0 if record is None else record.round
        self.commit_reporter = CommitReporter(context, self.contributions, self.log, began)
        downloader = Downloader(
            donors=Donors(context.clients, context.emit),
            manifest=context.manifest,
            me=context.me,
            first=context.first,
            folder=saved.folder,
            log=self.log,
            own=self.contributions.frames,
            headers=self.headers,
        )
        self.follower = Follower(
            context, downloader, self.weights, self.contributions, self.trainer_task, self.commit_reporter, saved.store
        )
        self.leader_client = LeaderClient(context, self.data_leases, self.trainer_task)
        self.poll_replies = PollReplies(context, self.data_leases)
        collector = ShardCollector(context)
        self.messenger = Messenger(context, self.roster_cache, collector, self.leader_client, self.poll_replies)
        self._left = ""  # the leader that is told goodbye in the end

    async def run(self, stop_gently: asyncio.Event) -> str:
        """Take part until the run ends or ``stop_gently`` is set and its round is over. Returns the reason.

        Raises RefusedError when a leader turns this node away, UnreachableError when nobody answers for half an hour.
        """
        context = self.context
        context.run_log.subscribers.set_voter(context.me in context.voters)
        context.background.start(self._stop_when(stop_gently))
        context.background.start(self._watchdog())
        context.put(pt.Tick())
        try:
            await context.background.until(context.done)
            if context.failure is not None:
                raise context.failure
        except Exception:
            await self._withdraw()
            raise
        await self.commit_reporter.finish()
        if self._left:
            await self.leader_client.say_goodbye(self._left)
        return context.reason

    async def close(self) -> None:
        self.context.done.set()  # a training thread ends at its next step
        self.poll_replies.hang_up()
        self.context.driver.close()
        await self.context.background.close()
        self.weights.close()

    async def _withdraw(self) -> None:
        """This node has failed: it is not to be seen until it is missed."""
        self.context.driver.close()
        await self.context.background.close()  # a poll that comes after the goodbye would have it admitted again
        if self.context.admitted_by is not None:
            await self.leader_client.leave(self.context.admitted_by, "it failed")

    async def _stop_when(self, stop_gently: asyncio.Event) -> None:
        await stop_gently.wait()
        self.context.put(pt.Stop())

    async def _watchdog(self) -> None:
        context = self.context
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if context.leader is not None:
                context.leader.round_reporter.progressed(context.me, self.trainer_task.progress)
            if context.state.voter.leads:
                context.reached_at = time.monotonic()
            elif time.monotonic() - context.reached_at > GIVE_UP_SECONDS:
                context.fail(UnreachableError("Nobody of this run has answered for half an hour; join again later."))

    def on_step(self, before: Node, after: Node) -> None:
        context, base = self.context, after.voter.hard_state.base
        if base != before.voter.hard_state.base:
            context.note_committed(base, is_set_back=base.round < before.voter.hard_state.base.round)
            context.run_log.subscribers.set_voter(context.me in base.voters)
            if self.log is not None:
                self.log.commit(base.round, bytes.fromhex(base.chain))
                if context.info.trains:  # it can always fetch the state, so any round may go
                    self.log.checkpointed(base.round)
        if after.plan is not None and after.plan != before.plan:
            self._open_round(after.plan)
        self.trainer_task.cancel_uploads(after.peer.committed, after.plan)
        self._notice_leader(before, after)

    def carry_out(self, action: pt.Action) -> None:
        start = self.context.background.start
        match action:
            case pt.Send(to, pt.Goodbye()):
                self._left = to
            case pt.Send(to, message):
                self.messenger.send(to, message)
            case pt.Train(plan):
                announced = self.context.round_cache.plan(plan.round, plan.parent)
                assert announced is not None, "it came with the news"
                start(self.trainer_task.train(announced))
            case pt.Upload():
                self.trainer_task.upload(action)
            case pt.Reply():
                self.reducer.reply(action)
            case pt.Average():
                self.reducer.average(action)
            case pt.Seal():
                self.reducer.seal(action)
            case pt.Store():
                start(self.follower.store(action))
            case pt.FetchRound():
                start(self.follower.fetch_round(action))
            case pt.FetchState():
                start(self.follower.fetch_state(action))
            case pt.Quit(reason):
                self.context.quit(reason)
                self.poll_replies.hang_up()
            case pt.Notify(text):
                self.context.warn(text)
            case pt.Propose():
                raise AssertionError("the decisions keep it to themselves")
            case pt.Open() | pt.Commit() | pt.Explain() | pt.Drop():
                if self.context.leader is not None:
                    self._lead(self.context.leader, action)

    def _lead(self, leader: Leader, action: pt.Open | pt.Commit | pt.Explain | pt.Drop) -> None:
        match action:
            case pt.Open():
                self.data_leases.open(leader.numbers)
                self.contributions.open_round(leader.open(action))
            case pt.Commit(record):
                self.data_leases.commit()
                self.commit_reporter.commit(record)
            case pt.Explain():
                leader.round_reporter.explained(action)
            case pt.Drop(peer):
                if self.data_leases.issuer is not None:
                    self.data_leases.issuer.gone(peer)
                self.poll_replies.forget(peer)
                leader.round_reporter.dropped(action)

    def _open_round(self, plan: pt.OpenRound) -> None:
        announced = self.context.round_cache.plan(plan.round, plan.parent)
        if announced is None:
            return  # this node leads, and says in a moment what the round is
        self.contributions.open_round(announced)
        if self.context.leader is None and self.context.me in plan.nodes:
            self.roster_cache.ask()

    def on_leave(self, peer_id: str, reason: str) -> None:
        """A peer says that it goes. Raises PeerError where it names this node itself."""
        if peer_id == self.context.me:
            raise PeerError("peer_id", "Only this node itself says when it leaves.")
        if self.context.leader is not None:
            self.context.leader.round_reporter.leaving(peer_id, reason)
            self.poll_replies.forget(peer_id)
        self.context.put(pt.Received(peer_id, pt.Goodbye(peer_id)))

    def _notice_leader(self, before: Node, after: Node) -> None:
        context, run_log = self.context, self.context.run_log
        if after.leader_role is not None and context.leader is None:
            self._begin_to_lead(after)
        elif after.leader_role is None and context.leader is not None:
            context.leader = None
            self.data_leases.follow()
        if context.leader is not None:
            context.leader.on_step(before, after)
        leader_before, leader = (node.leader for node in (before, after))
        if after.peer.is_finished and not before.peer.is_finished:
            run_log.ends()
        context.last_leader = leader or context.last_leader
        if leader != leader_before and (leader or not after.peer.is_finished):  # at the end, its last words are due
            run_log.follow(leader if leader != context.me else "", context.clients)
            if not leader and not after.has_quit:
                run_log.emit(events.LeaderLost(reason="it does not answer"))
        context.book.keep(known_nodes(after))

    def _begin_to_lead(self, node: Node) -> None:
        context, base = self.context, node.voter.hard_state.base
        members = dict(context.run_log.peers)
        numbers = {peer: joined.number for peer, joined in members.items()}
        leader = context.leader = Leader(context, base, numbers)
        self.data_leases.lead(leader)
        if context.info.trains:
            self.trainer_task.take_number(leader.admit(self.leader_client.join_request()).number)
        self.commit_reporter.begin_to_lead(leader, base)
        context.background.start(self._drop_missing_members(leader, members))

    async def _drop_missing_members(self, leader: Leader, members: Mapping[str, events.PeerJoined]) -> None:
        """Tell people that ``members`` under the leader before are gone, if they do not come to this one."""
        await asyncio.sleep(FORGET_SECONDS)
        if self.context.leader is not leader:
            return
        leader.roster.give_up()
        run_log = self.context.run_log
        for peer, joined in members.items():
            if not leader.is_admitted(peer) and peer in run_log.peers:
                reason = "it did not come to the new leader"
                run_log.emit(events.PeerLeft(peer=peer, name=joined.name, reason=reason))


@asynccontextmanager
async def open_node(
    context: NodeContext,
    saved: SavedState,
    service: StartingService | None = None,
    initial_peers: InitialPeers = lambda caller: [],
) -> AsyncIterator[SwarmNode]:
    """Make a node, and end on the way out what it has begun. ``service``: None for a node that nobody can dial."""
    node = SwarmNode(context, saved)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(node.close)
        stack.callback(context.run_log.follow, "", context.clients)
        if service is not None and saved.store is not None:
            service.node_service = NodeService(node, saved.store, initial_peers)
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
