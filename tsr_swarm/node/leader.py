"""What a leader does beside deciding: it admits peers, announces what a round is, and tells people how it went."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.config.run import RunConfig
from tsr_swarm.discovery.addresses import dialable_address
from tsr_swarm.errors import RefusedError
from tsr_swarm.node.events.round_reporter import RoundReporter
from tsr_swarm.node.handshake import require_run
from tsr_swarm.node.peer_registry import Peer, Roster
from tsr_swarm.node.round_cache import ReducedShard, RoundCache
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.optim.sketch_budget import RefreshState, after_round, begin_refresh_state, within_budget
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.raft_state import RoundRecord, majority
from tsr_swarm.rounds.state import Node
from tsr_swarm.telemetry.events import Event, LeaderChanged, PeerJoined
from tsr_swarm.transport.base import Caller
from tsr_swarm.wire import checks
from tsr_swarm.wire.gate import void_blocks
from tsr_swarm.wire.messages import PublishedHeader
from tsr_swarm.wire.v1 import swarm_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """What leading asks the rest of the node for."""

    config: Callable[[], RunConfig]  # with the rules that count now
    emit: Callable[[Event], None]  # into the run's log
    clock: Callable[[], float]


class Leader:
    """One leadership: from an election to the loss of it. Its event loop owns it."""

    def __init__(
        self, manifest: Manifest, round_cache: RoundCache, base: RoundRecord, numbers: Mapping[str, int], seams: Seams
    ) -> None:
        """``numbers``: of those who took part under the leader before."""
        self.roster = Roster(numbers)
        self.chronicle = RoundReporter(manifest, self.roster, seams.emit, seams.clock, base)
        self._manifest, self._round_cache, self._seams = manifest, round_cache, seams
        self._exchange: RefreshState = begin_refresh_state(seams.config(), manifest.blocks, base.round + 1)

    # --- who takes part -----------------------------------------------------------------------------------------

    def admit(self, request: pb.JoinRequest, caller: Caller | None = None) -> pb.JoinReply:
        """Admit a node of this very run; ``caller`` None: this node itself. Raises RefusedError or PeerError."""
        checks.check_join(request)
        require_run(self._manifest, request.manifest_digest)
        allowed = self._manifest.config.optimizer.local_space
        if request.trains and allowed not in ("mixed", request.local_space):
            raise RefusedError(
                f'This run takes peers of local_space "{allowed}", not "{request.local_space}"; '
                "leave --local-space out."
            )
        address = request.address if caller is None else dialable_address(caller.address, request.address)
        peer = self._here(request, address)
        return pb.JoinReply(number=peer.number, name=peer.name)

    def _here(self, request: pb.JoinRequest, address: str) -> Peer:
        known = self.roster.get(request.peer_id)
        if known is not None and known.is_here:  # a repeated call; it may have been started anew, on another port
            known.address = address
            return known
        peer = self.roster.admit(
            request.peer_id,
            request.name,
            address,
            request.device,
            request.local_space,
            trains=request.trains,
            number=request.number,
        )
        if request.trains:
            self._seams.emit(
                PeerJoined(
                    peer=peer.peer_id,
                    name=peer.name,
                    number=peer.number,
                    address=peer.address,
                    device=peer.device,
                    local_space=peer.local_space,
                )
            )
        return peer

    def is_admitted(self, peer_id: str) -> bool:
        """Whether this leader knows that node, and has not seen it go."""
        peer = self.roster.get(peer_id)
        return peer is not None and peer.is_here

    def has_trained(self, peer_id: str) -> bool:
        """Whether that node has or had a number, and work that may be in a round that is closed by now."""
        peer = self.roster.get(peer_id)
        return peer is not None and peer.trains

    def name_of(self, peer_id: str) -> str:
        """What people call it."""
        peer = self.roster.get(peer_id)
        return peer_id[:8] if peer is None else peer.name

    @property
    def numbers(self) -> Mapping[str, int]:
        """Whose work counts, and its place in sums. Who has gone has none any more once another has its number."""
        by_number = {
            peer.number: peer.peer_id for peer in sorted(self.roster.everyone(), key=lambda peer: peer.is_here)
        }
        return {peer: number for number, peer in by_number.items() if number}

    # --- rounds -------------------------------------------------------------------------------------------------

    def open(self, order: pt.Open, parent: str, reducers: Sequence[str] = ()) -> RoundPlan:
        """Say what the round is: as an earlier leader did, if it opened this very round already.

        reducers: who else averages a shard; for people.
        """
        plan = self._round_cache.plan(order.round, parent)
        if plan is None:
            config, blocks = self._seams.config(), self._manifest.blocks
            plan = within_budget(plan_round(config, blocks, order.round, parent), config, blocks, self._exchange)
            self._round_cache.add_plan(plan)
        members = sum(peer.trains for peer in self.roster.here())
        names = [peer.name for node in dict.fromkeys(reducers) if (peer := self.roster.get(node)) is not None]
        self.chronicle.opened(plan, order.members, members, names)
        return plan

    def committed(self, header: PublishedHeader, made: Sequence[ReducedShard | None], members: int) -> None:
        """The round stands."""
        captured = {block: seen for shard in made if shard is not None for block, seen in shard.captured.items()}
        self._exchange = after_round(self._exchange, header.plan, void_blocks(header), captured)
        self.chronicle.committed(header, made, members)


SAFE_VOTERS = 3  # from here on the run survives one of them


@dataclass(frozen=True, slots=True)
class _Told:
    term: int
    voters: tuple[str, ...]
    since: int  # the round that made them voters, or that stood when this leader began
    is_safe: bool


class FailoverStatus:
    """One leadership's."""

    def __init__(self) -> None:
        self._told: _Told | None = None

    def look(self, node: Node, name: str) -> LeaderChanged | None:
        """That ``node`` leads, and whether others can take over; None if it does not, or that was told."""
        if node.leading is None or not node.council.leads:
            return None
        council, callers = node.council, node.leading.callers
        since = council.ledger.base.round
        if self._told is not None and self._told.voters == council.voters:
            since = self._told.since
        # The others go on without this leader if most voters are among them, and have the round that made them voters.
        others = [voter for voter in council.voters if voter in callers and callers[voter].applied >= since]
        is_safe = len(council.voters) >= SAFE_VOTERS and majority(set(others) - {node.me}, council.voters)
        told = _Told(council.term, council.voters, since, is_safe)
        if told == self._told:
            return None
        self._told = told
        return LeaderChanged(
            peer=node.me,
            name=name,
            term=council.term,
            voters=len(council.voters),
            is_safe=is_safe,
            voter_ids=",".join(council.voters),
        )
