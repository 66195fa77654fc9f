"""Leases of the shared data at a node: what it lends while it leads, what it holds while it trains.

Leases change hands between rounds only: what is done is seen when a round stands, and what is free is lent when the
next one opens, in the order of numbers. So a run without faults is the same each time, whatever the order of polls.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tsr_swarm.node import message_codec
from tsr_swarm.node.context import NodeContext
from tsr_swarm.node.driver import awake_clock
from tsr_swarm.node.leader import Leader
from tsr_swarm.node.workspace import Workspace
from tsr_swarm.rounds import leases as ls
from tsr_swarm.rounds.leases import MAX_PARTS, Coverage, Lease, LeaseRequest, Leases, merged
from tsr_swarm.telemetry.events import DataCovered, Event
from tsr_swarm.wire.v1 import swarm_pb2 as pb


@dataclass(frozen=True, slots=True)
class Claim:
    """What a peer says of its lease: how many ``tokens`` of it are in rounds that counted its work, of ``size``."""

    lease: Lease | None
    tokens: int = 0
    size: int = 0  # 0: its holder has not begun

    @property
    def is_full(self) -> bool:
        """Batches are random windows: a part is done when as many tokens as it has were trained on."""
        return 0 < self.size <= self.tokens


class LeaseIssuer:
    """What one leader lends to whom, and what is done of the shared data."""

    def __init__(self, leader: Leader, parts: int, coverage: Coverage, emit: Callable[[Event], None]) -> None:
        self._leader, self._emit = leader, emit
        self._leases = Leases(parts, coverage)
        self._claims: dict[str, tuple[Claim, float]] = {}  # by peer, and when it came
        self._asked: frozenset[str] = frozenset()  # peers that have had their turn
        self._told: dict[str, Coverage] = {}  # by peer
        self._lost: dict[Lease, str] = {}  # what nobody took over yet, and whose it was
        self._shown = (coverage.epoch, self._percent)

    @property
    def coverage(self) -> Coverage:
        return self._leases.coverage

    def take_claim(self, request: pb.PollRequest) -> None:
        """A peer polls, and says what it trains on. Raises PeerError."""
        claim = None
        if request.HasField("lease"):
            lease = message_codec.lease_from_proto(request.lease, self._leases.parts)
            claim = Claim(lease, request.lease.tokens, request.lease.size)
        self.update(request.peer_id, claim)

    def update(self, peer: str, claim: Claim | None) -> None:
        """``peer`` trains on what it borrowed; None: on data of its own."""
        if claim is None:
            self._claims.pop(peer, None)
        else:
            self._claims[peer] = claim, awake_clock()

    def commit(self) -> None:
        """A round stands: who has contributed as many tokens as its part has is done with it."""
        self._complete([peer for peer in self._leases.held if self._is_done(peer)])

    def open(self, numbers: Mapping[str, int]) -> None:
        """A round opens: lend what is free to those that have nothing."""
        now, before = awake_clock(), self._leases.held
        leases = ls.renew(self._leases, {peer: (claim.lease, at) for peer, (claim, at) in self._claims.items()})
        self._leases = ls.expire(leases, now)
        self._lost |= {held.lease: peer for peer, held in before.items() if peer not in self._leases.held}
        here = sorted((number, peer) for peer, number in numbers.items() if number and peer in self._claims)
        parts = self._leases.parts
        requests = [LeaseRequest(peer, (number - 1) % parts, self._claims[peer][0].lease) for number, peer in here]
        self._leases = ls.grant(self._leases, requests, now)
        self._asked = frozenset(peer for _, peer in here)
        for peer, held in self._leases.held.items():
            if (was := self._lost.pop(held.lease, peer)) != peer:
                self._tell(part=held.lease.part + 1, was=self._leader.name_of(was), now=self._leader.name_of(peer))

    def gone(self, peer: str) -> None:
        """A peer is dropped or has left: its part passes on, unless it was done."""
        if self._is_done(peer):
            self._complete([peer])
        held = self._leases.held.get(peer)
        if held is not None:
            self._lost[held.lease] = peer
        self._leases = ls.release(self._leases, peer)
        self._claims.pop(peer, None)
        self._told.pop(peer, None)

    def answer(self, request: pb.PollRequest, reply: pb.PollReply) -> None:
        """Fill in what a peer is told with the news: its lease, and what is done unless it was told that already."""
        peer = request.peer_id
        if self.has_answer(peer):
            reply.lease.CopyFrom(message_codec.lease_to_proto(self.lease(peer)))
        if not request.known or self._told.get(peer) != self.coverage:
            self._told[peer] = self.coverage
            reply.coverage.CopyFrom(message_codec.coverage_to_proto(self.coverage))

    def has_answer(self, peer: str) -> bool:
        """Whether this peer has a lease, or has had its turn and got none."""
        return peer in self._leases.held or peer in self._asked

    def lease(self, peer: str) -> Lease | None:
        held = self._leases.held.get(peer)
        return None if held is None else held.lease

    def _is_done(self, peer: str) -> bool:
        held, (claim, _) = self._leases.held.get(peer), self._claims.get(peer, (Claim(None), 0.0))
        return held is not None and claim.lease == held.lease and claim.is_full

    def _complete(self, peers: list[str]) -> None:
        before = self.coverage.epoch
        self._leases = ls.complete(self._leases, peers)
        self._asked -= frozenset(peers)
        for epoch in range(before, self.coverage.epoch):
            self._shown = self.coverage.epoch, 0
            self._emit(DataCovered(epoch=epoch, done=self._leases.parts, parts=self._leases.parts, share=1.0))
        if (self.coverage.epoch, self._percent) != self._shown:  # of thousands of parts, not each is worth a line
            self._tell()

    @property
    def _percent(self) -> int:
        return 100 * len(self.coverage.done) // self._leases.parts

    def _tell(self, part: int = 0, was: str = "", now: str = "") -> None:
        self._shown = self.coverage.epoch, self._percent
        done, parts = len(self.coverage.done), self._leases.parts
        self._emit(
            DataCovered(
                epoch=self.coverage.epoch, done=done, parts=parts, share=done / parts, part=part, was=was, now=now
            )
        )


class DataLeases:
    """A node's account of the shared data: its ``issuer`` lends parts while it leads, and it borrows one as it trains.

    ``begin`` is called on the training's thread, everything else on the event loop.
    """

    def __init__(self, context: NodeContext, coverage: Coverage, workspace: Workspace | None) -> None:
        """``workspace``: None for a node that does not train."""
        self._context, self._coverage, self._parts = context, coverage, context.manifest.config.data.parts
        self._keeps_account = self._parts <= MAX_PARTS
        is_on_shared_data = workspace is not None and workspace.is_on_shared_data
        self._workspace = workspace if self._keeps_account and is_on_shared_data else None
        self._lease: Lease | None = None  # as the leader said last
        self._reading = Claim(None)  # as training began last
        self.issuer: LeaseIssuer | None = None

    @property
    def coverage(self) -> Coverage:
        """What is done, as far as this node knows."""
        return self._coverage if self.issuer is None else self.issuer.coverage

    def lead(self, leader: Leader) -> None:
        """This node was elected. Peers that have borrowed something say so."""
        if self._keeps_account:
            self.issuer = LeaseIssuer(leader, self._parts, self._coverage, self._context.run_log.emit)

    def follow(self) -> None:
        self._coverage, self.issuer = self.coverage, None

    def commit(self) -> None:
        if self.issuer is not None:
            self.issuer.update(self._context.me, self._claim)
            self.issuer.commit()

    def open(self, numbers: Mapping[str, int]) -> None:
        """This leader opens a round; numbers: of everybody that takes part."""
        if self.issuer is not None:
            self.issuer.update(self._context.me, self._claim)
            self.issuer.open(numbers)
            if self.issuer.has_answer(self._context.me):
                self._lease = self.issuer.lease(self._context.me)

    @property
    def _claim(self) -> Claim | None:
        """What a leader is told; None: this node borrows nothing."""
        if self._workspace is None:
            return None
        return self._reading if self._reading.lease == self._lease else Claim(self._lease)

    def ask(self, request: pb.PollRequest) -> None:
        """Fill in what a leader is told."""
        if (claim := self._claim) is not None:
            request.lease.CopyFrom(message_codec.lease_to_proto(claim.lease, claim.tokens, claim.size))

    def update(self, reply: pb.PollReply) -> None:
        """Take in a leader's answer. Raises PeerError."""
        if self._keeps_account and reply.HasField("coverage"):
            told = message_codec.coverage_from_proto(reply.coverage, self._parts)
            self._coverage = merged(self._coverage, told, self._parts)
        if self._workspace is not None and reply.HasField("lease"):
            self._lease = message_codec.lease_from_proto(reply.lease, self._parts)

    def begin(self, number: int) -> None:
        """A round's training begins: on the part that was borrowed, or on the home part of this peer's number.

        Raises ConfigError if the part is not there to be read.
        """
        if self._workspace is not None:
            lease = self._lease
            size = self._workspace.take_part((number - 1) % self._parts if lease is None else lease.part)
            if lease != self._reading.lease:
                self._reading = Claim(lease, 0, size)

    def count(self, tokens: int) -> None:
        """So many of this peer's tokens are in a round that stands; called between two trainings."""
        self._reading = replace(self._reading, tokens=self._reading.tokens + tokens)

    def give_up(self) -> None:
        """A part could not be read: train on what there is, and borrow nothing more."""
        self._workspace = None
