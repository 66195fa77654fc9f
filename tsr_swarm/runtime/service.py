"""The coordinator's answers: each RPC, checked and put to the leadership. Carries no tensor itself."""

import asyncio
import time
from collections.abc import Callable, Iterator

from tsr_swarm import __version__
from tsr_swarm.config.manifest import PROTOCOL_VERSION
from tsr_swarm.errors import PeerError, RefusedError, RunError
from tsr_swarm.rounds import leader
from tsr_swarm.rounds.catch_up import pick_donors
from tsr_swarm.runtime.donor import Donor
from tsr_swarm.runtime.leadership import Leadership
from tsr_swarm.runtime.peer_service import check_protocol, require_manifest
from tsr_swarm.runtime.roster import Peer
from tsr_swarm.swarm.addresses import address_for, dialable_address
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.ledger import Direction
from tsr_swarm.telemetry.log import EventLog
from tsr_swarm.transport.base import Caller
from tsr_swarm.wire import control
from tsr_swarm.wire.gate import Contribution, check_contribution
from tsr_swarm.wire.messages import Shard, open_envelope, plan_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

PROGRESS_SECONDS = 1.0  # at most one event of a kind and peer in this time: peers must not flood the log
DIGEST_SECONDS = 60.0  # the leader's own apply may be slower than a peer's
_PHASES = {
    leader.Phase.WAITING: pb.PHASE_WAITING,
    leader.Phase.TRAIN: pb.PHASE_TRAIN,
    leader.Phase.EXCHANGE: pb.PHASE_EXCHANGE,
    leader.Phase.COMMIT: pb.PHASE_COMMIT,
    leader.Phase.FINISHED: pb.PHASE_WAITING,  # stopped, and may come back: peers wait for it; see is_over
}


class CoordinatorService:
    """Implements transport.base.SwarmHandler."""

    def __init__(
        self,
        leadership: Leadership,
        donor: Donor,
        log: EventLog,
        initial_peers: Callable[[Caller], list[str]],
        emit: Callable[[events.Event], None],
    ) -> None:
        self._lead = leadership
        self._donor = donor
        self._log = log
        self._initial_peers = initial_peers
        self._emit = emit
        self._opened = asyncio.Event()

    def open(self) -> None:
        """Admit peers from now on; before, they wait."""
        self._opened.set()

    async def hello(self, request: pb.HelloRequest, caller: Caller) -> pb.HelloReply:
        """Tell what run this is; refuse another protocol."""
        check_protocol(request)
        return pb.HelloReply(
            protocol=PROTOCOL_VERSION,
            package_version=__version__,
            manifest=self._lead.manifest.encoded,
            initial_peers=self._initial_peers(caller),
            unix_time=time.time(),
        )

    async def join(self, request: pb.JoinRequest, caller: Caller) -> pb.JoinReply:
        """Admit a peer of this very run."""
        control.check_join(request)
        require_manifest(self._donor, request.manifest_digest)
        await self._opened.wait()
        address = dialable_address(caller.address, request.address)
        allowed = self._lead.config.optimizer.local_space
        if allowed not in ("mixed", request.local_space):
            raise RefusedError(
                f'This run takes peers of local_space "{allowed}", not "{request.local_space}"; '
                "leave --local-space out."
            )
        known = self._lead.roster.get(request.peer_id)
        if known is not None and known.is_here:
            peer = known  # a repeated call
            peer.address = address  # it may have been started anew, on another port
        else:
            peer = self._lead.roster.admit(request.peer_id, request.name, address, request.device, request.local_space)
            self._emit(
                events.PeerJoined(
                    peer=peer.peer_id,
                    name=peer.name,
                    number=peer.number,
                    address=peer.address,
                    device=peer.device,
                    local_space=peer.local_space,
                )
            )
        self._lead.dispatch(leader.Joined(peer.peer_id))
        return pb.JoinReply(number=peer.number, name=peer.name, donors=self._donors_for(peer, caller))

    def _donors_for(self, asking: Peer, caller: Caller) -> list[str]:
        """Peers that the caller can dial and that have applied the newest rounds."""
        return pick_donors(
            (
                (peer.number, address_for(caller.address, peer.address))
                for peer in self._lead.roster.here()
                if peer is not asking and peer.address and peer.applied >= self._lead.committed.round - 1
            ),
            asking.number,
        )

    async def describe_state(self, request: pb.DescribeStateRequest, caller: Caller) -> pb.StateDescription:
        """Name the newest state, or the one that the caller has begun with."""
        control.check_describe_state(request)
        require_manifest(self._donor, request.manifest_digest)
        return await self._lead.state(request.round)

    async def fetch_state(self, request: pb.FetchStateRequest, caller: Caller) -> Iterator[pb.StateChunk]:
        """Serve chunks of a state that is kept here."""
        return self._donor.chunks(request)

    async def follow(self, request: pb.FollowRequest, caller: Caller) -> pb.FollowReply:
        """Answer when there is news for this peer, or after its wait. Doubles as its heartbeat."""
        control.check_follow(request)
        peer = self._lead.roster.get(request.peer_id)
        if peer is None or not self._lead.is_member(request.peer_id):
            return pb.FollowReply(unknown_peer=True, version=self._lead.version)
        self._lead.dispatch(leader.Heard(peer.peer_id))
        self._note_progress(peer, request.progress)
        try:
            await self._wait_for_news(request)
        except asyncio.CancelledError:
            # The peer hung up while it was listening: it died, or its line did.
            self._lead.dispatch(leader.Disconnected(peer.peer_id))
            raise
        self._lead.dispatch(leader.Heard(peer.peer_id))
        news = self._news(peer.peer_id)
        if request.is_behind:
            news.catch_up.CopyFrom(self._lead.catch_up(request.applied))
            news.catch_up.donors.extend(self._donors_for(peer, caller))
        return news

    async def _wait_for_news(self, request: pb.FollowRequest) -> None:
        seconds = request.wait_ms / 1000
        await self._lead.changed.wait_for(lambda: self._lead.version != request.known_version, seconds)

    def _news(self, peer_id: str) -> pb.FollowReply:
        plan, left = self._lead.open_plan, self._lead.seconds_left()
        shards = [Shard(blocks) for blocks in self._lead.reduction.shard_blocks] if self._lead.reduction else []
        committed = self._lead.committed
        return pb.FollowReply(
            phase=pb.PHASE_FINISHED if self._lead.is_over else _PHASES[self._lead.phase],
            plan=plan_to_proto(plan, shards) if plan is not None else None,
            committed_round=committed.round,
            committed_chain=bytes.fromhex(committed.chain),
            deadline_ms=0 if left is None else int(left * 1000),
            unknown_peer=not self._lead.is_member(peer_id),
            version=self._lead.version,
        )

    def _note_progress(self, peer: Peer, progress: pb.Progress) -> None:
        now, plan = time.monotonic(), self._lead.open_plan
        is_news = progress.step and plan is not None and progress.round == plan.round
        if not is_news or now - peer.progress_shown < PROGRESS_SECONDS:
            return
        peer.progress_shown = now
        self._emit(
            events.PeerProgress(
                peer=peer.peer_id,
                name=peer.name,
                round=progress.round,
                step=progress.step,
                steps=plan.steps if plan is not None else 0,
                tokens_per_second=round(progress.tokens_per_second, 1),
            )
        )

    def expect(self, envelope: pb.Envelope, caller: Caller) -> int:
        """Check an upload's envelope before any of its bytes are taken; the number of bytes that may follow."""
        try:
            return self._check(envelope).wire_bytes
        except PeerError as error:
            self._note_refusal(envelope, error)
            raise

    async def submit(self, envelope: pb.Envelope, data: bytes, caller: Caller) -> pb.SubmitReply:
        """Take a contribution. A late or refused one is answered with the reason; nothing of it is kept."""
        contribution = self._check(envelope)
        header = contribution.header
        peer = self._lead.roster.get(header.peer_id)
        reduction, seconds = self._lead.reduction, self._lead.seconds_open()
        assert peer is not None, "checked"
        assert reduction is not None, "checked"
        try:
            grids = await asyncio.to_thread(contribution.decode, data)
        except PeerError as error:
            self._note_refusal(envelope, error)
            raise
        verdict = reduction.offer(header, peer.number, grids)
        if not verdict.counted:
            self._emit(events.PayloadLate(round=header.round, peer=peer.peer_id, name=peer.name, reason=verdict.reason))
        elif verdict.is_new:
            self._emit(
                events.PayloadReceived(
                    round=header.round,
                    peer=peer.peer_id,
                    name=peer.name,
                    seconds=round(seconds, 3),
                    wire_bytes=contribution.wire_bytes,
                    local_loss=header.local_loss,
                )
            )
            if reduction.is_complete(peer.peer_id):
                self._lead.dispatch(leader.Arrived(peer.peer_id, header.round))
        return pb.SubmitReply(counted=verdict.counted, reason=verdict.reason)

    def _check(self, envelope: pb.Envelope) -> Contribution:
        reduction = self._lead.reduction
        if reduction is None:
            raise PeerError("round", "No round is open yet; wait for the announcement.")
        return check_contribution(
            envelope,
            manifest=self._lead.manifest,
            plan=reduction.plan,
            shard_blocks=reduction.shard_blocks,
            is_known=self._lead.is_member,
        )

    def _note_refusal(self, envelope: pb.Envelope, error: PeerError) -> None:
        """Show a refusal, if it says that it is of a peer we know; a stranger's are not worth a line each."""
        try:
            header = open_envelope(envelope)
        except PeerError:
            return
        peer, now = self._lead.roster.get(header.peer_id), time.monotonic()
        if peer is None or now - peer.refusal_shown < PROGRESS_SECONDS:
            return
        peer.refusal_shown = now
        round, peer_id, name = header.round, peer.peer_id, peer.name
        if error.reason == "round":
            self._emit(events.PayloadLate(round=round, peer=peer_id, name=name, reason=str(error)))
            return
        self._emit(events.PayloadRefused(round=round, peer=peer_id, name=name, reason=error.reason, message=str(error)))

    async def fetch_published(
        self, request: pb.FetchPublishedRequest, caller: Caller
    ) -> tuple[pb.PublishedHeader, bytes]:
        """Serve a committed round from the delta log."""
        try:
            kept = await asyncio.to_thread(self._donor.delta_log.get, request.round)
        except RunError as error:
            self._emit(events.Warned(message=str(error)))
            self._donor.delta_log.forget(request.round)
            kept = None
        if kept is None:
            raise RefusedError(f"Round {request.round} is not kept here any more; fetch the state instead.")
        return kept

    async def report(self, request: pb.ReportRequest, caller: Caller) -> pb.ReportReply:
        """Compare a peer's digest with the leader's. A difference names round and peer and sends the peer back."""
        control.check_report(request)
        peer, reported = self._lead.roster.get(request.peer_id), self._lead.reported.get(request.round)
        if peer is None or reported is None or peer.peer_id in reported:
            return pb.ReportReply(resync=False)
        reported.add(peer.peer_id)
        for direction, counts in ((Direction.SENT, request.sent), (Direction.RECEIVED, request.received)):
            peer.traffic[direction].update(dict(counts))
        peer.overhead += request.overhead_bytes
        self._lead.changed.notify()
        try:
            async with asyncio.timeout(DIGEST_SECONDS):
                expected = await asyncio.shield(self._lead.digests[request.round])
        except TimeoutError:
            return pb.ReportReply(resync=False)  # the leader is far behind; the next round's digest will tell
        if request.digest.hex() == expected:
            peer.applied = max(peer.applied, request.round)
        self._show_digest(peer, request, expected)
        self._lead.changed.notify()
        return pb.ReportReply(resync=request.digest.hex() != expected)

    def _show_digest(self, peer: Peer, request: pb.ReportRequest, expected: str) -> None:
        digest = request.digest.hex()
        self._emit(events.DigestReported(round=request.round, peer=peer.peer_id, name=peer.name, digest=digest))
        if digest != expected:
            self._emit(
                events.DigestMismatch(
                    round=request.round, peer=peer.peer_id, name=peer.name, expected=expected, digest=digest
                )
            )

    async def leave(self, request: pb.LeaveRequest, caller: Caller) -> pb.LeaveReply:
        """Let a peer go."""
        control.check_leave(request)
        self._lead.dispatch(leader.Left(request.peer_id, request.reason or "it said goodbye"))
        return pb.LeaveReply()

    async def watch(self, request: pb.WatchRequest, caller: Caller) -> pb.WatchReply:
        """Serve the events after the ones that this monitor has seen."""
        control.check_watch(request)
        await self._log.wait(request.after, request.wait_ms / 1000)
        lines, last = self._log.since(request.after)
        return pb.WatchReply(events=lines, last=last)
