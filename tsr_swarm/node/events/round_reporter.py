"""A leader's events about its rounds, made of its decisions and of what its peers report."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.errors import PeerError
from tsr_swarm.node.peer_registry import Peer, Roster
from tsr_swarm.node.round_cache import ReducedShard
from tsr_swarm.process.tasks import Signal
from tsr_swarm.rounds import protocol
from tsr_swarm.rounds.round_phases import Phase
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.byte_counter import Direction
from tsr_swarm.telemetry.events import Event
from tsr_swarm.wire import checks
from tsr_swarm.wire.messages import ContributionHeader, PublishedHeader
from tsr_swarm.wire.v1 import swarm_pb2 as pb

REPORT_SECONDS = 5.0  # how long a closed round waits for its peers' reports before it is shown
DIGEST_SECONDS = 60.0  # the leader may apply a round later than a peer
PROGRESS_SECONDS = 1.0  # at most one event of a kind and peer in this time: peers must not flood the log
KEPT_ROUNDS = 100  # a peer reports within a round or two


@dataclass(slots=True)
class _OpenRound:
    """A round that was opened and is not known to be committed."""

    plan: RoundPlan
    expected: set[str]
    opened_at: float
    arrived: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _CommittedRound:
    """A committed round. ``closed``: its event, without loss, digest and traffic; None if it is not to be emitted."""

    closed: events.RoundClosed | None = None
    included: frozenset[str] = frozenset()
    due: float = 0.0  # when it is reported at the latest, by the clock
    digest: str | None = None  # of the weights after it; None: not applied here yet, "": never will be


class RoundReporter:
    """Emits the events of the rounds of one leadership, and compares digests with those that its peers report.

    To be called from one event loop. base: the committed round it began with; digests up to it may be unknown here.
    """

    def __init__(
        self, manifest: Manifest, roster: Roster, emit: Callable[[Event], None], clock: Callable[[], float], base: int
    ) -> None:
        self._manifest, self._roster, self._emit, self._clock = manifest, roster, emit, clock
        self._began = clock()
        self._opened: dict[int, _OpenRound] = {}  # two at most: a round may open before the last is read from disk
        self._committed: dict[int, _CommittedRound] = {}
        self._newest = base
        self._leaving: dict[str, str] = {}  # why peers say that they leave
        self._changed = Signal()  # a report has come, a round was applied, or a peer has left
        self._in_order = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._comparing = 0  # reports

    def opened(self, plan: RoundPlan, expected: frozenset[str], members: int, reducers: Sequence[str] = ()) -> None:
        """A round opens for ``members`` peers, of whom ``expected`` can be in it; ``reducers`` are names."""
        self._opened = {round: other for round, other in self._opened.items() if round == plan.round - 1}
        self._opened[plan.round] = _OpenRound(plan, set(expected), self._clock())
        refresh = len(plan.due.refresh)
        self._emit(
            events.RoundOpened(
                round=plan.round,
                peers=members,
                steps=plan.steps,
                lr=plan.lr_last,
                refresh=refresh,
                reducers=",".join(reducers),
            )
        )
        self._explain(plan.round, Phase.TRAIN.value, None, "peers take their local steps")

    def explained(self, explain: protocol.Explain) -> None:
        """The phase, its deadline or the reason has changed."""
        self._explain(explain.round, explain.phase, explain.deadline, explain.reason)

    def dropped(self, drop: protocol.Drop) -> None:
        """A peer is no member any more."""
        for opened in self._opened.values():
            opened.expected.discard(drop.peer)
        peer, reason = self._roster.get(drop.peer), self._leaving.pop(drop.peer, drop.reason)
        if peer is not None and peer.is_here:
            peer.is_here = False
            self._emit(events.PeerLeft(peer=peer.peer_id, name=peer.name, reason=reason))
        self._changed.notify()

    def committed(self, header: PublishedHeader, shards: Sequence[ReducedShard | None], members: int) -> None:
        """A round is committed; it is reported once it is applied.

        shards: what the reducer of each sent this leader; None if it sent it to another, and of a void shard.
        """
        round, now = header.plan.round, self._clock()
        opened = self._opened.pop(round, None) or _OpenRound(header.plan, set(), self._began)
        included = header.contributors
        closed = events.RoundClosed(
            round=round,
            peers=members,
            included=len(included),
            late=len(opened.expected - included),
            loss=None,
            local_loss=_local_loss(shards),
            tokens=max((result.tokens for result in header.shards), default=0),  # each counts its peers' whole payloads
            seconds=now - opened.opened_at,
            wire_bytes={"sent": {}, "received": {}},
            per_peer={},
            raw_bytes=_raw_bytes(header, shards, members),
            # Data-parallel training moves every gradient up and every mean down, in fp32, at every step.
            dense_bytes=header.plan.steps * len(included) * 2 * 4 * self._manifest.parameters,
            digest="",
        )
        self._committed[round] = _CommittedRound(closed, included, now + REPORT_SECONDS)
        self._newest = max(self._newest, round)
        for old in sorted(self._committed)[:-KEPT_ROUNDS]:
            del self._committed[old]
        if not self._opened:
            self._explain(round, "apply", None, "committed: fetch, apply, report")

    def applied(self, round: int, digest: str, loss: float | None) -> None:
        """This node's own weights after ``round`` have this digest and held-out loss.

        The round is reported once its peers have reported, at the latest REPORT_SECONDS after it was committed. Earlier
        rounds that were not applied, because a state was downloaded, are reported without digest and loss.
        """
        for earlier in [known for known in sorted(self._committed) if known < round]:
            if self._committed[earlier].digest is None:
                self._settle(earlier, "", None)
        self._settle(round, digest, loss)

    def _settle(self, number: int, digest: str, loss: float | None) -> None:
        round = self._committed.setdefault(number, _CommittedRound())
        closed, round.closed, round.digest = round.closed, None, digest
        self._changed.notify()
        if closed is not None:
            task = asyncio.create_task(self._report_closed(round, replace(closed, digest=digest, loss=loss)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Return when all rounds that were applied are reported, and all peers' digests of them compared."""
        await asyncio.gather(*self._tasks)
        await self._changed.wait_for(lambda: not self._comparing, REPORT_SECONDS)

    async def _report_closed(self, round: _CommittedRound, closed: events.RoundClosed) -> None:
        async with self._in_order:  # fair: rounds take it in the order in which they were applied
            has_reports = partial(self._has_reports, closed.round, round.included)
            await self._changed.wait_for(has_reports, round.due - self._clock())
            if not round.included:
                reason = "no shard reached its quorum; the work stays with its peers"
                self._emit(events.RoundVoid(round=closed.round, reason=reason))
            self._emit(_with_traffic(closed, self._roster.everyone()))

    def _has_reports(self, round: int, included: frozenset[str]) -> bool:
        """Whether all peers in a round have reported its bytes. A slow peer's are counted with the next round."""
        peers = (self._roster.get(peer_id) for peer_id in included)
        return all(peer is None or not peer.is_here or round in peer.reported for peer in peers)

    def _explain(self, round: int, phase: str, deadline: float | None, reason: str) -> None:
        self._emit(events.PhaseChanged(round=round, phase=phase, deadline=deadline, reason=reason))

    def leaving(self, peer_id: str, reason: str) -> None:
        """A peer says why it leaves; that is reported once it is dropped."""
        peer = self._roster.get(peer_id)
        if reason and peer is not None and peer.is_here:
            self._leaving[peer_id] = reason

    def progressed(self, peer_id: str, progress: pb.Progress) -> None:
        """A peer says how far it is in the open round."""
        peer, now = self._roster.get(peer_id), self._clock()
        opened = self._opened.get(progress.round)
        if peer is not None:
            peer.progress = progress
        if peer is None or opened is None or not progress.step or now - peer.progress_shown < PROGRESS_SECONDS:
            return
        peer.progress_shown = now
        self._emit(
            events.PeerProgress(
                peer=peer.peer_id,
                name=peer.name,
                round=progress.round,
                step=progress.step,
                steps=opened.plan.steps,
                tokens_per_second=round(progress.tokens_per_second, 1),
            )
        )

    def arrived(self, number: int, peer_id: str, seconds: float) -> None:
        """A peer's whole contribution to round ``number`` is with its reducers, ``seconds`` after the opening."""
        peer, opened = self._roster.get(peer_id), self._opened.get(number)
        if peer is None or opened is None or peer_id in opened.arrived:
            return
        opened.arrived.add(peer_id)
        progress = peer.progress if peer.progress.round == number else pb.Progress()
        self._emit(
            events.PayloadReceived(
                round=number,
                peer=peer_id,
                name=peer.name,
                seconds=round(max(0.0, seconds), 3),
                wire_bytes=progress.wire_bytes,
                local_loss=progress.local_loss if progress.local_loss else None,
            )
        )

    def late(self, round: int, peer_id: str, reason: str) -> None:
        """A contribution that came to this node is not counted."""
        peer = self._roster.get(peer_id)
        if peer is not None:
            self._emit(events.PayloadLate(round=round, peer=peer_id, name=peer.name, reason=reason))

    def refused(self, header: ContributionHeader, error: PeerError) -> None:
        """A contribution was refused; reported only if it names a peer of this run, and not too often."""
        peer, now = self._roster.get(header.peer_id), self._clock()
        if peer is None or now - peer.refusal_shown < PROGRESS_SECONDS:
            return
        peer.refusal_shown = now
        if error.reason == "round":
            self.late(header.round, peer.peer_id, str(error))
            return
        self._emit(
            events.PayloadRefused(
                round=header.round, peer=peer.peer_id, name=peer.name, reason=error.reason, message=str(error)
            )
        )

    async def report(self, request: pb.ReportRequest) -> pb.ReportReply:
        """Compare a peer's digest with this node's own. On a difference the peer is sent back to download a state.

        Bytes count whatever the round; a second copy of a report changes nothing. Raises PeerError.
        """
        checks.check(request)
        peer, round = self._roster.get(request.peer_id), request.round
        if peer is None or round in peer.reported:
            return pb.ReportReply(resync=False)
        peer.reported.append(round)
        for direction, counts in ((Direction.SENT, request.sent), (Direction.RECEIVED, request.received)):
            peer.traffic[direction].update(dict(counts))
        peer.overhead += request.overhead_bytes
        self._changed.notify()
        self._comparing += 1
        try:
            return pb.ReportReply(resync=not await self._is_same(peer, request))
        finally:
            self._comparing -= 1
            self._changed.notify()

    async def _is_same(self, peer: Peer, request: pb.ReportRequest) -> bool:
        """Whether the digest is this node's own, if that is known."""
        round = request.round
        if round <= self._newest + 1:  # a quick peer may be ahead of this node by one round
            await self._changed.wait_for(lambda: self._digest(round) is not None, DIGEST_SECONDS)
        expected = self._digest(round)
        if not expected:
            return True  # not known here, or not yet; the next round's digest covers this one
        is_same = request.digest.hex() == expected
        if is_same:
            peer.applied = max(peer.applied, round)
        self._show_digest(peer, request, expected)
        return is_same

    def _digest(self, round: int) -> str | None:
        """The digest after a round. None: not applied here yet. "": of an earlier leader's round, or an old one."""
        known = self._committed.get(round)
        if known is None:
            return None if round > self._newest else ""
        return known.digest

    def _show_digest(self, peer: Peer, request: pb.ReportRequest, expected: str) -> None:
        digest = request.digest.hex()
        if peer.trains:
            self._emit(events.DigestReported(round=request.round, peer=peer.peer_id, name=peer.name, digest=digest))
        if digest != expected:
            self._emit(
                events.DigestMismatch(
                    round=request.round, peer=peer.peer_id, name=peer.name, expected=expected, digest=digest
                )
            )


def _local_loss(shards: Sequence[ReducedShard | None]) -> float | None:
    """The mean over the tokens of all shards that are known, nats a token."""
    known = [shard for shard in shards if shard is not None and not shard.result.void]
    tokens = sum(shard.result.tokens for shard in known)
    return sum(shard.local_loss * shard.result.tokens for shard in known) / tokens if tokens else None


def _raw_bytes(header: PublishedHeader, shards: Sequence[ReducedShard | None], members: int) -> events.RawBytes:
    """Bytes before compression: sent, of the shards that are known, and received by so many members."""
    published = sum(section.raw_bytes for result in header.shards for section in result.sections)
    return {"sent": sum(shard.raw_sent for shard in shards if shard is not None), "received": members * published}


def _with_traffic(closed: events.RoundClosed, everyone: Iterable[Peer]) -> events.RoundClosed:
    """The event with the peers' reported traffic, which is taken from them: each byte is in one round's event.

    Nodes that do not train are left out: what they send and receive is counted by the peers.
    """
    per_peer: dict[str, events.PeerTraffic] = {}
    totals: dict[Direction, Counter[str]] = {direction: Counter() for direction in Direction}
    for peer in everyone:
        if not peer.trains:
            continue
        for direction in Direction:
            totals[direction].update(peer.traffic[direction])
        if any(peer.traffic.values()):
            # Two peers that had one name, one after the other, stay apart.
            name = peer.name if peer.name not in per_peer else f"{peer.name}/{peer.peer_id[:6]}"
            per_peer[name] = _take_traffic(peer)
    wire_bytes: events.Traffic = {"sent": dict(totals[Direction.SENT]), "received": dict(totals[Direction.RECEIVED])}
    return replace(closed, seconds=round(closed.seconds, 3), wire_bytes=wire_bytes, per_peer=per_peer)


def _take_traffic(peer: Peer) -> events.PeerTraffic:
    overhead, peer.overhead = peer.overhead, 0
    sent, received = (dict(peer.traffic[direction]) for direction in (Direction.SENT, Direction.RECEIVED))
    for counts in peer.traffic.values():
        counts.clear()
    return {"sent": sent, "received": received, "overhead": overhead}
