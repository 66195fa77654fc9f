"""What a leader does beside deciding: it admits peers, announces rounds, collects shards, and informs people."""

import asyncio
from collections.abc import Mapping, Sequence

from tsr_swarm.config.layout import published_slots
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.discovery.addresses import dialable_address
from tsr_swarm.errors import ConfigError, PeerError, RefusedError, UnreachableError
from tsr_swarm.node.context import NodeContext
from tsr_swarm.node.driver import awake_clock
from tsr_swarm.node.events.round_reporter import RoundReporter
from tsr_swarm.node.peer_registry import Roster
from tsr_swarm.node.round_cache import ReducedShard
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.optim.sketch_budget import RefreshState, after_round, begin_refresh_state, within_budget
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.protocol import ShardDigest
from tsr_swarm.rounds.raft_state import RoundRecord, Voter, is_majority
from tsr_swarm.rounds.state import MemberContact, Node
from tsr_swarm.telemetry.events import LeaderChanged, PeerJoined
from tsr_swarm.transport.base import Caller
from tsr_swarm.wire import checks
from tsr_swarm.wire.codec import check_sections, decode
from tsr_swarm.wire.gate import shard_slots, void_blocks
from tsr_swarm.wire.messages import PublishedHeader, sections_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

SAFE_VOTERS = 3  # from here on the run survives one of them
FETCH_SECONDS = 30.0  # longer than a round waits for a reducer


class Leader:
    """One leadership of this node: from its election to the loss of it."""

    def __init__(self, context: NodeContext, base: RoundRecord, numbers: Mapping[str, int]) -> None:
        """``base`` stands as it begins; ``numbers``: of those who took part under the leader before."""
        self._context = context
        self.roster = Roster(numbers)
        emit = context.run_log.emit
        self.round_reporter = RoundReporter(context.manifest, self.roster, emit, awake_clock, base.round)
        self._refreshes: RefreshState = begin_refresh_state(context.config, context.manifest.blocks, base.round + 1)
        self._told: LeaderChanged | None = None  # the newest
        self._voters: tuple[str, ...] = ()
        self._since = 0  # the round that made them voters, or that stood when this leader began

    def admit(self, request: pb.JoinRequest, caller: Caller | None = None) -> pb.JoinReply:
        """Admit a node of this very run; ``caller`` None: this node itself. Raises RefusedError or PeerError."""
        checks.check(request)
        self._context.require_run(request.manifest_digest)
        allowed = self._context.manifest.config.optimizer.local_space
        if request.trains and allowed not in ("mixed", request.local_space):
            raise RefusedError(
                f'This run takes peers of local_space "{allowed}", not "{request.local_space}"; '
                "leave --local-space out."
            )
        address = request.address if caller is None else dialable_address(caller.address, request.address)
        known = self.roster.get(request.peer_id)
        if known is not None and known.is_here:  # a repeated call, or it was started anew before it was missed
            return pb.JoinReply(number=known.number, name=known.name)
        peer = self.roster.admit(request.peer_id, request.name, trains=request.trains, number=request.number)
        if request.trains:
            self._context.run_log.emit(
                PeerJoined(
                    peer=peer.peer_id,
                    name=peer.name,
                    number=peer.number,
                    address=address,
                    device=request.device,
                    local_space=request.local_space,
                )
            )
        return pb.JoinReply(number=peer.number, name=peer.name)

    def is_admitted(self, peer_id: str) -> bool:
        """Whether this leader knows that node, and has not seen it go."""
        peer = self.roster.get(peer_id)
        return peer is not None and peer.is_here

    def has_trained(self, peer_id: str) -> bool:
        """Whether that node has or had a number, and work that may be in a round that is closed by now."""
        peer = self.roster.get(peer_id)
        return peer is not None and peer.trains

    def name_of(self, peer_id: str) -> str:
        peer = self.roster.get(peer_id)
        return peer_id[:8] if peer is None else peer.name

    @property
    def numbers(self) -> Mapping[str, int]:
        """Whose work counts, and its place in sums. Who has gone has none any more once another has its number."""
        by_number = {
            peer.number: peer.peer_id for peer in sorted(self.roster.everyone(), key=lambda peer: peer.is_here)
        }
        return {peer: number for number, peer in by_number.items() if number}

    @property
    def members(self) -> Mapping[str, int]:
        """Numbers of those whom it would admit if it closed the round now."""
        role = self._context.state.leader_role
        contacts = role.contacts if role is not None else {}
        return {peer: number for peer, number in self.numbers.items() if peer in contacts}

    def open(self, order: pt.Open) -> RoundPlan:
        """Say what the round is: as an earlier leader did, if it opened this very round already."""
        context, role = self._context, self._context.state.leader_role
        assert role is not None, "who opens a round leads"
        parent, blocks = context.base.chain, context.manifest.blocks
        plan = self._context.round_cache.plan(order.round, parent)
        if plan is None:
            planned = plan_round(context.config, blocks, order.round, parent)
            plan = within_budget(planned, context.config, blocks, self._refreshes)
            self._context.round_cache.add_plan(plan)
        reducers = role.plan.nodes if role.plan is not None else ()
        others = (self.roster.get(node) for node in dict.fromkeys(reducers) if node != context.me)
        names = [peer.name for peer in others if peer is not None]
        self.round_reporter.opened(plan, order.members, sum(peer.trains for peer in self.roster.here()), names)
        return plan

    def committed(self, header: PublishedHeader, reduced: Sequence[ReducedShard | None], members: int) -> None:
        captured = {block: seen for shard in reduced if shard is not None for block, seen in shard.captured.items()}
        self._refreshes = after_round(self._refreshes, header.plan, void_blocks(header), captured)
        self.round_reporter.committed(header, reduced, members)

    def parent_asked(self, reducer: str, done: pt.ShardDone) -> str | None:
        """The chain hash that the round starts from, if this leader asked ``reducer`` for that shard; else None."""
        role = self._context.state.leader_role
        if role is None or role.plan is None or role.gather is None:
            return None
        if done.term != self._context.state.voter.term:
            return None
        is_asked = done.round == role.gather.round and done.shard not in role.gather.answers
        is_its = role.gather.reducers[done.shard] == reducer
        are_members = all(self.has_trained(peer) for peer in done.result.included)
        return role.plan.parent if is_asked and is_its and are_members else None

    def on_step(self, before: Node, after: Node) -> None:
        """Tell people whether others can take over, and whose contributions have arrived."""
        if after.leader_role is None:
            return
        if after.voter.leads:
            self._show_failover(after.voter, after.leader_role.contacts)
        known = before.leader_role.state.arrivals if before.leader_role is not None else {}
        state = after.leader_role.state
        for peer, seconds in state.arrivals.items():
            if peer not in known:
                self.round_reporter.arrived(state.round, peer, seconds)

    def _show_failover(self, voter: Voter, contacts: Mapping[str, MemberContact]) -> None:
        if voter.voters != self._voters:
            self._voters, self._since = voter.voters, voter.hard_state.base.round
        # The others go on without this leader if most voters are among them, and have the round that made them voters.
        others = {peer for peer in voter.voters if peer in contacts and contacts[peer].applied >= self._since}
        changed = LeaderChanged(
            peer=self._context.me,
            name=self._context.name,
            term=voter.term,
            voters=len(voter.voters),
            is_safe=len(voter.voters) >= SAFE_VOTERS and is_majority(others - {self._context.me}, voter.voters),
            voter_ids=",".join(voter.voters),
        )
        if changed != self._told:
            self._told = changed
            self._context.run_log.emit(changed)


class ShardCollector:
    """A leader's copy of reduced shards: the bytes of each are fetched and checked before the shard counts as done.

    What everybody is to apply must be what everybody can open: a reducer that gives anything else has made nothing.
    """

    def __init__(self, context: NodeContext) -> None:
        self._context = context
        self._under_way: set[tuple[int, int, int]] = set()  # term, round, shard: one is fetched at a time

    async def fetch(self, reducer: str, done: pt.ShardDone, reduced: ReducedShard) -> ShardDigest | None:
        """Have the bytes of ``reduced``, as ``reducer`` told of it.

        Returns what it counts as: void if the bytes are wrong; None if they are not to be had now.
        """
        leader, key = self._context.leader, (done.term, done.round, done.shard)
        parent = None if leader is None else leader.parent_asked(reducer, done)
        plan = None if parent is None else self._context.round_cache.plan(done.round, parent)
        if plan is None or key in self._under_way:
            return None
        if self._context.round_cache.reduced_shard(done.round, done.shard, done.result) is not None:
            return done.result
        self._under_way.add(key)
        manifest, sections = self._context.manifest, reduced.result.sections
        published = published_slots(manifest.blocks, plan.due, manifest.config.wire)
        slots = shard_slots(published, manifest.shard_blocks[done.shard])
        hashes = [section.hash for section in sections]
        try:
            client = await self._context.clients.to(reducer)
            check_sections(slots, sections)
            request = pb.FetchShardRequest(round=done.round, shard=done.shard, hashes=hashes)
            data = await client.fetch_shard(request, sections_to_proto(sections), FETCH_SECONDS)
            await asyncio.to_thread(decode, slots, sections, data)
        except (UnreachableError, RefusedError, ConfigError):
            return None
        except PeerError as error:
            self._context.warn(f"Shard {done.shard} of round {done.round} by {reducer[:8]} counts for nothing: {error}")
            return ShardDigest()
        finally:
            self._under_way.discard(key)
        self._context.round_cache.add_reduced_shard(done.round, done.shard, reduced, data)
        return done.result
