"""A peer's part in a run: carries out what rounds/peer.py decides, over the wire and on one worker thread."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, TypeVarTuple

from tsr_swarm.config.layout import upload_slots
from tsr_swarm.config.manifest import PROTOCOL_VERSION, Manifest
from tsr_swarm.config.plan import RoundPlan
from tsr_swarm.errors import PeerError, RefusedError, UnreachableError
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.rounds import peer as decide
from tsr_swarm.runtime.reduction import Published, open_published
from tsr_swarm.runtime.state_chunks import StateAssembly
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.events import Event
from tsr_swarm.telemetry.ledger import ByteLedger, Direction
from tsr_swarm.train.trainer import RoundWork, StepProgress, Trainer
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.kernel_bytes import KernelBytes
from tsr_swarm.wire import control
from tsr_swarm.wire.codec import encode
from tsr_swarm.wire.gate import max_published_bytes, shard_slots
from tsr_swarm.wire.messages import ContributionHeader, Shard, plan_from_proto, seal
from tsr_swarm.wire.v1 import swarm_pb2 as pb

LISTEN_MS = 2000  # one Follow; also how often progress is told
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)  # the last one repeats
GIVE_UP_SECONDS = 1800.0

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """What a peer says of itself when it joins."""

    peer_id: str
    name: str
    address: str
    local_space: str
    device: str


class Workshop(Protocol):
    """What the session needs of its owner: a trainer for its number, and a place to save it."""

    def trainer(self, number: int, consensus: Consensus) -> Trainer:
        """The trainer of this peer; the same one for the same number."""
        ...

    def save(self, trainer: Trainer, state: decide.PeerState) -> None:
        """Write this peer's checkpoint, if it keeps one."""
        ...


class PeerSession:
    """One peer in one run, from its first call to its goodbye."""

    def __init__(
        self,
        client: SwarmClient,
        ledger: ByteLedger,
        kernel: KernelBytes,
        manifest: Manifest,
        introduction: Introduction,
        workshop: Workshop,
        emit: Callable[[Event], None],
    ) -> None:
        self._client, self._ledger, self._kernel = client, ledger, kernel
        self._manifest, self._introduction = manifest, introduction
        self._workshop, self._emit = workshop, emit
        self._state = decide.PeerState()
        self._trainer: Trainer | None = None
        self._number, self._name = 0, introduction.name
        self._plan: RoundPlan | None = None
        self._shards: tuple[Shard, ...] = ()
        self._work: RoundWork | None = None
        self._news = asyncio.Event()
        self._version = 0
        self._progress = pb.Progress()
        self._reported = {direction: dict[str, int]() for direction in Direction}
        self._rounds_included = 0
        self._worker = ThreadPoolExecutor(1, "maths")
        self._is_leaving = False  # once its round is over
        self._is_over = False

    def restore(self, trainer: Trainer, state: decide.PeerState) -> None:
        """Go on from this peer's own checkpoint."""
        self._trainer = trainer
        self._state = state

    async def run(self, stop_gently: asyncio.Event) -> str:
        """Take part until the run ends or ``stop_gently`` is set and its round is over. Returns the reason.

        Raises RefusedError when the coordinator turns this peer away, UnreachableError when it stays away.
        """
        listening = asyncio.create_task(self._listen())
        acting = asyncio.create_task(self._act())
        leaving = asyncio.create_task(self._leave_when(stop_gently))
        try:
            await asyncio.wait({listening, acting}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                listening.result()  # it only ever ends by an error, which is the session's
            reason = await acting
            await self._save()
            await self._say_goodbye(reason)
            return reason
        finally:
            self._is_over = True  # a training thread ends at its next step
            tasks = (listening, acting, leaving)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._worker.shutdown(wait=False, cancel_futures=True)

    @property
    def rounds_included(self) -> int:
        """Rounds in whose average this peer's work is."""
        return self._rounds_included

    async def _act(self) -> str:
        while True:
            action = decide.next_action(self._state)
            if self._is_leaving and isinstance(action, decide.Train | decide.Join | decide.FetchState):
                return "it was asked to stop"
            match action:
                case decide.Join():
                    await self._keep_trying(self._join)
                case decide.FetchState():
                    await self._keep_trying(self._fetch_state)
                case decide.FetchRound(round):
                    await self._catch_up(round)
                case decide.Upload():
                    await self._upload()
                case decide.Train():
                    await self._train()
                case decide.Quit():
                    return "the run has finished"
                case decide.Wait():
                    if self._is_leaving and self._state.trained <= self._state.applied:
                        return "it was asked to stop"
                    self._news.clear()
                    if isinstance(decide.next_action(self._state), decide.Wait):
                        await self._news.wait()

    # --- listening ----------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Follow the leader for as long as the session lasts; doubles as this peer's heartbeat."""
        while True:
            if not self._state.is_member:
                self._news.set()
                await asyncio.sleep(RETRY_SECONDS[0])
                continue
            await self._keep_trying(self._follow)

    async def _follow(self) -> None:
        self._kernel.sample()  # a connection that closes keeps what was seen of it last
        request = pb.FollowRequest(
            peer_id=self._introduction.peer_id,
            known_version=self._version,
            wait_ms=LISTEN_MS,
            progress=self._progress,
        )
        reply = await self._client.follow(request)
        plan: RoundPlan | None = None
        if reply.HasField("plan"):
            plan, self._shards = plan_from_proto(reply.plan, self._manifest.blocks)
            self._plan = plan
        self._version = reply.version
        self._state = decide.hear(
            self._state,
            decide.News(
                committed=reply.committed_round,
                open_round=plan.round if plan is not None else 0,
                open_parent=plan.parent if plan is not None else "",
                is_finished=reply.phase == pb.PHASE_FINISHED,
                unknown_peer=reply.unknown_peer,
            ),
        )
        self._news.set()

    async def _leave_when(self, stop_gently: asyncio.Event) -> None:
        await stop_gently.wait()
        self._is_leaving = True
        self._news.set()

    async def _keep_trying(self, call: Callable[[], Awaitable[None]]) -> None:
        """Repeat ``call`` while the coordinator cannot be reached. Says so once; gives up after half an hour."""
        started, attempt = time.monotonic(), 0
        while True:
            try:
                await call()
                return
            except UnreachableError as error:
                if attempt == 0:
                    self._emit(events.Warned(message=f"{error} This peer keeps trying."))
                if time.monotonic() - started > GIVE_UP_SECONDS:
                    raise
                await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
                attempt += 1

    # --- joining ------------------------------------------------------------------------------------------------

    async def _join(self) -> None:
        who = self._introduction
        reply = await self._client.join(
            pb.JoinRequest(
                manifest_digest=bytes.fromhex(self._manifest.digest),
                peer_id=who.peer_id,
                name=who.name,
                address=who.address,
                local_space=who.local_space,
                device=who.device,
            )
        )
        control.check_join_reply(reply)
        self._number, self._name, self._version = reply.number, reply.name, 0
        if self._trainer is not None:
            self._trainer = self._workshop.trainer(self._number, self._trainer.consensus)
        self._state = replace(self._state, is_member=True)
        self._emit(
            events.Joined(
                run=self._manifest.config.run.name,
                name=self._name,
                number=self._number,
                address=self._client.address,
                round=max(0, self._state.applied),
            )
        )

    async def _fetch_state(self) -> None:
        """Download the newest state, going on after a broken connection where it stopped."""
        started = time.monotonic()
        digest = bytes.fromhex(self._manifest.digest)
        description = await self._client.describe_state(pb.DescribeStateRequest(manifest_digest=digest))
        control.check_state_description(description)
        assembly = StateAssembly(description, self._manifest)
        try:
            while not assembly.is_complete:
                with suppress(UnreachableError):
                    await self._fetch_chunks(assembly)
        except RefusedError:
            return  # a newer state has replaced it: begin again with that one
        consensus = await self._on_worker(assembly.consensus, self._manifest)
        if self._trainer is None:
            self._trainer = await self._on_worker(self._workshop.trainer, self._number, consensus)
        else:
            await self._on_worker(self._trainer.replace_consensus, consensus)
        self._work = None
        self._state = replace(decide.applied(self._state, description.round, description.chain.hex()), unsent=0)
        seconds = round(time.monotonic() - started, 3)
        self._emit(events.StateReceived(round=description.round, bytes=description.total_bytes, seconds=seconds))

    async def _fetch_chunks(self, assembly: StateAssembly) -> None:
        request = pb.FetchStateRequest(round=assembly.description.round, first_chunk=assembly.next_chunk)
        async with aclosing(self._client.fetch_state(request)) as chunks:
            async for chunk in chunks:
                assembly.add(chunk)

    # --- a round ------------------------------------------------------------------------------------------------

    async def _train(self) -> None:
        plan, trainer = self._plan, self._trainer
        assert plan is not None, "an open round has a plan"
        assert trainer is not None, "a peer that trains has a state"

        def should_stop() -> bool:
            return self._is_over or decide.is_stale(self._state, plan.round)

        def on_step(progress: StepProgress) -> None:
            self._progress = pb.Progress(
                round=plan.round, step=progress.step, tokens_per_second=progress.tokens_per_second
            )

        self._work = await self._on_worker(trainer.train, plan, should_stop, on_step)
        trained = plan.round
        self._state = replace(self._state, trained=trained, unsent=trained if self._work is not None else 0)

    async def _upload(self) -> None:
        """Send the contribution, a call a shard. What is not counted stays in the residual."""
        work, plan, shards = self._work, self._plan, self._shards
        assert work is not None, "there is something unsent"
        assert plan is not None, "its round is open"
        for index, shard in enumerate(shards):
            try:
                await self._submit(work, plan, index, shard)
            except (PeerError, UnreachableError) as error:
                self._emit(events.Warned(message=f"Round {plan.round} was not sent: {error} Its work is kept."))
                break
        self._state = replace(self._state, unsent=0)

    async def _submit(self, work: RoundWork, plan: RoundPlan, index: int, shard: Shard) -> None:
        wire = self._manifest.config.wire
        slots = shard_slots(upload_slots(self._manifest.blocks, plan.due, wire), shard.blocks)
        sections, data = await asyncio.to_thread(encode, slots, work.grids, wire.zstd_level)
        header = ContributionHeader(
            protocol=PROTOCOL_VERSION,
            manifest_digest=bytes.fromhex(self._manifest.digest),
            round=plan.round,
            parent=bytes.fromhex(plan.parent),
            peer_id=self._introduction.peer_id,
            shard=index,
            tokens=work.tokens,
            steps=work.steps,
            local_loss=work.local_loss if math.isfinite(work.local_loss) else 0.0,
            sections=sections,
        )
        reply = await self._client.submit(seal(header), data)
        if not reply.counted:
            self._emit(events.Warned(message=f"Round {plan.round} came too late: {reply.reason[:200]}."))

    async def _catch_up(self, round: int) -> None:
        """Fetch a published round, apply it and report. One that cannot be had or trusted means: fetch the state."""
        started = time.monotonic()
        request = pb.FetchPublishedRequest(peer_id=self._introduction.peer_id, round=round)
        trainer = self._trainer
        assert trainer is not None, "a peer that has applied a round has a state"
        try:
            message, data = await self._client.fetch_published(request, max_published_bytes(self._manifest))
            published = await asyncio.to_thread(open_published, self._manifest, message, data, self._state.chain)
        except UnreachableError:
            await asyncio.sleep(RETRY_SECONDS[0])
            return
        except (RefusedError, PeerError):
            self._state = replace(self._state, needs_state=True)
            return
        included = published.included_blocks(self._introduction.peer_id)
        header = published.header
        digest = await self._on_worker(trainer.apply, header.plan, published.grids, published.void, included)
        self._state = decide.applied(self._state, round, header.chain.hex())
        self._rounds_included += bool(included)
        await self._report(published, digest, bool(included), time.monotonic() - started)
        await self._save()

    async def _report(self, published: Published, digest: bytes, is_included: bool, seconds: float) -> None:
        round = published.header.plan.round
        sent, received = self._unreported(Direction.SENT), self._unreported(Direction.RECEIVED)
        request = pb.ReportRequest(
            peer_id=self._introduction.peer_id,
            round=round,
            digest=digest,
            sent=sent,
            received=received,
            overhead_bytes=self._overhead(),
        )
        mine = self._work if self._work is not None and self._work.round == round else None
        self._emit(
            events.RoundApplied(
                round=round,
                included=is_included,
                local_loss=mine.local_loss if mine is not None else None,
                tokens=mine.tokens if mine is not None else 0,
                seconds=seconds,
                digest=digest.hex(),
                wire_bytes={"sent": sent, "received": received},
                overhead=request.overhead_bytes,
            )
        )
        try:
            reply = await self._client.report(request)
        except UnreachableError:
            return  # its bytes are counted with the next report
        for direction, counts in ((Direction.SENT, sent), (Direction.RECEIVED, received)):
            known = self._reported[direction]
            for kind, count in counts.items():
                known[kind] = known.get(kind, 0) + count
        if reply.resync:
            self._state = replace(self._state, needs_state=True)
            self._emit(
                events.Warned(message=f"This peer's weights differ after round {round}; it fetches the state again.")
            )

    def _overhead(self) -> int:
        """What the kernel moved beyond what was counted here: framing, headers, retransmissions. Between transfers."""
        totals = self._kernel.sample()
        counted = sum(sum(self._ledger.totals(direction).values()) for direction in Direction)
        return max(0, totals.sent + totals.received - counted) if totals is not None else 0

    def _unreported(self, direction: Direction) -> dict[str, int]:
        known = self._reported[direction]
        return {
            kind: n - known.get(kind, 0) for kind, n in self._ledger.totals(direction).items() if n > known.get(kind, 0)
        }

    # --- the end ------------------------------------------------------------------------------------------------

    async def _save(self) -> None:
        if self._trainer is not None and self._state.applied >= 0:
            await self._on_worker(self._workshop.save, self._trainer, self._state)

    async def _say_goodbye(self, reason: str) -> None:
        with suppress(UnreachableError, RefusedError, PeerError):
            await self._client.leave(pb.LeaveRequest(peer_id=self._introduction.peer_id, reason=reason), 2.0)

    async def _on_worker(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)
