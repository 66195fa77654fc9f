"""What a leader tells people of its rounds, and what the peers report of them."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.errors import PeerError
from tsr_swarm.node.events.round_summary import RoundSummary, closed_event, outcome_of
from tsr_swarm.node.peer_registry import Peer, Roster
from tsr_swarm.node.round_cache import ReducedShard
from tsr_swarm.process.tasks import Signal
from tsr_swarm.rounds import protocol
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.rounds.round_phases import Phase
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.byte_counter import Direction
from tsr_swarm.telemetry.events import Event
from tsr_swarm.wire import checks
from tsr_swarm.wire.messages import ContributionHeader, PublishedHeader
from tsr_swarm.wire.v1 import swarm_pb2 as pb

REPORT_SECONDS = 5.0  # how long a closed round waits for its peers' reports before it is shown
DIGEST_SECONDS = 60.0  # the leader's own apply may be slower than a peer's
PROGRESS_SECONDS = 1.0  # at most one event of a kind and peer in this time: peers must not flood the log
KEPT_ROUNDS = 100  # a peer reports within a round or two


@dataclass(slots=True)
class Totals:
    """Of the rounds that were shown."""

    wire_bytes: int = 0  # both directions, summed over peers
    dense_bytes: int = 0


@dataclass(slots=True)
class _Open:
    """A round that was opened and has not been taken down as committed."""

    plan: RoundPlan
    expected: set[str]
    opened_at: float
    arrived: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Round:
    """A round that stands. ``outcome``: still to be told; None where it was told, or is not this leader's to tell."""

    outcome: RoundSummary | None = None
    due: float = 0.0  # when it is told at the latest, by the clock
    digest: str | None = None  # of the weights after it; None: not applied here yet, "" never will be


class RoundReporter:
    """One leadership's rounds, told to people through ``emit``, and compared with what its peers report.

    The event loop's. ``base`` is what stood as it began: of that round and those before, this node may know no digest.
    """

    def __init__(
        self,
        manifest: Manifest,
        roster: Roster,
        emit: Callable[[Event], None],
        clock: Callable[[], float],
        base: RoundRecord,
    ) -> None:
        self.totals = Totals()
        self._manifest, self._roster, self._emit, self._clock = manifest, roster, emit, clock
        self._began = clock()
        self._opened: dict[int, _Open] = {}  # two at most: the next may open before one that stands is read from disk
        self._rounds: dict[int, _Round] = {}
        self._newest = base.round
        self._leaving: dict[str, str] = {}  # what peers said as they left
        self._changed = Signal()  # a report has come, or a round was applied, or a peer has left
        self._in_order = asyncio.Lock()
        self._telling: set[asyncio.Task[None]] = set()
        self._comparing = 0  # reports

    # --- what the leader decides --------------------------------------------------------------------------------

    def opened(self, plan: RoundPlan, expected: frozenset[str], members: int, reducers: Sequence[str] = ()) -> None:
        """A round opens for ``members`` peers, of whom ``expected`` can be in it; ``reducers`` are names."""
        self._opened = {round: other for round, other in self._opened.items() if round == plan.round - 1}
        self._opened[plan.round] = _Open(plan, set(expected), self._clock())
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

    def explained(self, said: protocol.Explain) -> None:
        """The phase, its deadline or the reason has changed."""
        self._explain(said.round, said.phase, said.deadline, said.reason)

    def dropped(self, drop: protocol.Drop) -> None:
        """A peer is no member any more."""
        for opened in self._opened.values():
            opened.expected.discard(drop.peer)
        peer, reason = self._roster.get(drop.peer), self._leaving.pop(drop.peer, drop.reason)
        if peer is not None and peer.is_here:
            peer.is_here = False
            self._emit(events.PeerLeft(peer=peer.peer_id, name=peer.name, reason=reason))
        self._changed.notify()

    def committed(self, header: PublishedHeader, made: Sequence[ReducedShard | None], members: int) -> None:
        """A round stands; it is told once it is applied.

        made: by shard, what its reducer told this leader; None where it told another, and of a shard that is void.
        """
        round, now = header.plan.round, self._clock()
        opened = self._opened.pop(round, None) or _Open(header.plan, set(), self._began)
        outcome = outcome_of(header, made, frozenset(opened.expected), members, now - opened.opened_at)
        self._rounds[round] = _Round(outcome, now + REPORT_SECONDS)
        self._newest = max(self._newest, round)
        for old in sorted(self._rounds)[:-KEPT_ROUNDS]:
            del self._rounds[old]
        if not self._opened:
            self._explain(round, "apply", None, "committed: fetch, apply, report")

    def applied(self, round: int, digest: str, loss: float | None) -> None:
        """This node's own weights after ``round`` have this digest and held-out loss.

        The round is told once its peers have reported, or REPORT_SECONDS after it was committed. Rounds before it that
        were committed and not applied, because a state was downloaded, are told without digest and loss.
        """
        for earlier in [known for known in sorted(self._rounds) if known < round]:
            if self._rounds[earlier].digest is None:
                self._settle(earlier, "", None)
        self._settle(round, digest, loss)

    def _settle(self, number: int, digest: str, loss: float | None) -> None:
        round = self._rounds.setdefault(number, _Round())
        outcome, round.outcome, round.digest = round.outcome, None, digest
        self._changed.notify()
        if outcome is not None:
            task = asyncio.create_task(self._tell(outcome, round.due, digest, loss))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def finish(self) -> None:
        """Return when all rounds that were applied have been told, and what came of them has been compared."""
        await asyncio.gather(*self._telling)
        await self._changed.wait_for(lambda: not self._comparing, REPORT_SECONDS)

    async def _tell(self, outcome: RoundSummary, due: float, digest: str, loss: float | None) -> None:
        async with self._in_order:  # fair: rounds take it in the order in which they were applied
            await self._changed.wait_for(lambda: self._has_reports(outcome), due - self._clock())
            if not outcome.included:
                reason = "no shard reached its quorum; the work stays with its peers"
                self._emit(events.RoundVoid(round=outcome.round, reason=reason))
            closed = closed_event(outcome, self._roster.everyone(), self._manifest.parameters, loss, digest)
            sent, received = closed.wire_bytes["sent"], closed.wire_bytes["received"]
            self.totals.wire_bytes += sum(sent.values()) + sum(received.values())
            self.totals.dense_bytes += closed.dense_bytes
            self._emit(closed)

    def _has_reports(self, outcome: RoundSummary) -> bool:
        """A round's bytes are known once its peers have reported them; a busy peer's are counted with the next."""
        peers = (self._roster.get(peer_id) for peer_id in outcome.included)
        return all(peer is None or not peer.is_here or outcome.round in peer.reported for peer in peers)

    def _explain(self, round: int, phase: str, deadline: float | None, reason: str) -> None:
        self._emit(events.PhaseChanged(round=round, phase=phase, deadline=deadline, reason=reason))

    # --- what is heard of peers ---------------------------------------------------------------------------------

    def leaving(self, peer_id: str, reason: str) -> None:
        """A peer says why it goes; it is told once it is dropped."""
        peer = self._roster.get(peer_id)
        if reason and peer is not None and peer.is_here:
            self._leaving[peer_id] = reason

    def progressed(self, peer_id: str, progress: pb.Progress) -> None:
        """How far a peer says that it is in the open round."""
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
        """A peer's whole contribution to round ``number`` is with its reducers, ``seconds`` after it was opened."""
        peer, opened = self._roster.get(peer_id), self._opened.get(number)
        if peer is None or opened is None or peer_id in opened.arrived:
            return
        opened.arrived.add(peer_id)
        said = peer.progress if peer.progress.round == number else pb.Progress()
        self._emit(
            events.PayloadReceived(
                round=number,
                peer=peer_id,
                name=peer.name,
                seconds=round(max(0.0, seconds), 3),
                wire_bytes=said.wire_bytes,
                local_loss=said.local_loss if said.local_loss else None,
            )
        )

    def late(self, round: int, peer_id: str, reason: str) -> None:
        """A contribution that came to this node is not counted."""
        peer = self._roster.get(peer_id)
        if peer is not None:
            self._emit(events.PayloadLate(round=round, peer=peer_id, name=peer.name, reason=reason))

    def refused(self, header: ContributionHeader, error: PeerError) -> None:
        """Show a refusal, if it says that it is of a peer we know; a stranger's are not worth a line each."""
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
        """Compare a peer's digest with this node's own. A difference names round and peer and sends the peer back.

        Bytes count whatever the round; a second copy of a report changes nothing. Raises PeerError.
        """
        checks.check_report(request)
        peer, round = self._roster.get(request.peer_id), request.round
        if peer is None or round in peer.reported:
            return pb.ReportReply(resync=False)
        peer.reported.append(round)
        _count(peer, request)
        self._changed.notify()
        self._comparing += 1
        try:
            return pb.ReportReply(resync=not await self._is_same(peer, request))
        finally:
            self._comparing -= 1
            self._changed.notify()

    async def _is_same(self, peer: Peer, request: pb.ReportRequest) -> bool:
        """Whether the digest is this node's own, as far as can be told."""
        round = request.round
        if round <= self._newest + 1:  # a quick peer may be ahead of this node by the round that was decided just now
            await self._changed.wait_for(lambda: self._digest(round) is not None, DIGEST_SECONDS)
        expected = self._digest(round)
        if not expected:
            return True  # not known here, or not yet; the next round's digest will tell
        is_same = request.digest.hex() == expected
        if is_same:
            peer.applied = max(peer.applied, round)
        self._show_digest(peer, request, expected)
        return is_same

    def _digest(self, round: int) -> str | None:
        """After a round; None: not applied here yet. "": an earlier leader's, or too old to be kept."""
        known = self._rounds.get(round)
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


def _count(peer: Peer, request: pb.ReportRequest) -> None:
    for direction, counts in ((Direction.SENT, request.sent), (Direction.RECEIVED, request.received)):
        peer.traffic[direction].update(dict(counts))
    peer.overhead += request.overhead_bytes
