"""A peer's part in a run: carries out what rounds/peer.py decides, over the wire and on one worker thread."""

import asyncio
import copy
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, TypeVarTuple

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.plan import RoundPlan
from tsr_swarm.errors import CheckpointError, PeerError, RefusedError, UnreachableError
from tsr_swarm.optim.periods import follows_manifest
from tsr_swarm.rounds import peer as decide
from tsr_swarm.rounds.catch_up import Costs, choose_way
from tsr_swarm.runtime.background import Background, Signal
from tsr_swarm.runtime.downloads import Downloads
from tsr_swarm.runtime.reduction import open_published
from tsr_swarm.runtime.reporting import Reporter
from tsr_swarm.runtime.uploading import submit_all
from tsr_swarm.runtime.workshop import Workshop
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.events import Event
from tsr_swarm.train.trainer import RoundWork, StepProgress, Trainer
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.wire import control
from tsr_swarm.wire.messages import Shard, plan_from_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

STOPPED = "it was asked to stop"
GONE = "the run has finished, and its coordinator is gone"
LISTEN_MS = 2000  # one Follow; also how often progress is told
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)  # the last one repeats
GIVE_UP_SECONDS = 1800.0
FINISHED_ATTEMPTS = 2  # a coordinator that has finished soon ends
WAIT_SECONDS = 60.0  # nothing is waited for without looking again
SAVE_SECONDS = 60.0
LAST_REPORT_SECONDS = 5.0
MISSED_ROUNDS = 2  # from here on it is a choice how to catch up; one round is what everybody fetches

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


class PeerSession:
    """One peer in one run, from its first call to its goodbye."""

    def __init__(
        self,
        client: SwarmClient,
        reporter: Reporter,
        manifest: Manifest,
        introduction: Introduction,
        workshop: Workshop,
        downloads: Downloads,
        emit: Callable[[Event], None],
    ) -> None:
        self._client, self._reporter = client, reporter
        self._downloads = downloads
        self._manifest, self._introduction = manifest, introduction
        self._workshop, self._emit = workshop, emit
        self._state = decide.PeerState()
        self._trainer: Trainer | None = None
        self._plan: RoundPlan | None = None
        self._shards: tuple[Shard, ...] = ()
        self._work: RoundWork | None = None
        self._news = Signal()
        self._version = 0
        self._committed = (0, "")  # the newest round that the leader told of, and its chain hash
        self._progress = pb.Progress()
        self._rounds_included = 0
        self._worker = ThreadPoolExecutor(1, "maths")
        self._background = Background()
        self._leaving = asyncio.Event()  # set: leave once the round is over
        self._is_alone = False  # the coordinator could not be reached when this peer was to leave
        self._is_over = False
        self._warned_of = 0  # the round of whose upload people have been told
        self._reports: set[asyncio.Task[None]] = set()
        self._saved_at = -math.inf

    def restore(self, trainer: Trainer, state: decide.PeerState) -> None:
        """Go on from this peer's own checkpoint."""
        self._trainer = trainer
        self._state = state

    @property
    def rounds_included(self) -> int:
        """Rounds in whose average this peer's work is."""
        return self._rounds_included

    async def run(self, stop_gently: asyncio.Event) -> str:
        """Take part until the run ends or ``stop_gently`` is set and its round is over. Returns the reason.

        Raises RefusedError when the coordinator turns this peer away, UnreachableError when it stays away.
        """
        done = asyncio.Event()
        reasons: list[str] = []

        async def act() -> None:
            reasons.append(await self._act())
            done.set()

        self._background.start(self._listen())
        self._background.start(self._leave_when(stop_gently))
        self._background.start(act())
        try:
            await self._background.until(done)
            await self._save()
            if self._reports:  # the last one says whether all weights agree at the end
                await asyncio.wait(self._reports, timeout=LAST_REPORT_SECONDS)
            await self._say_goodbye(reasons[0])
            return reasons[0]
        finally:
            self._is_over = True  # a training thread ends at its next step
            await self._background.close()
            self._worker.shutdown(wait=False, cancel_futures=True)

    async def _act(self) -> str:
        """Do the most urgent thing, again and again, until there is a reason to end."""
        while True:
            action = decide.next_action(self._state)
            finishes_a_round = isinstance(action, decide.FetchRound | decide.Upload | decide.Wait)
            if self._leaving.is_set() and (self._is_alone or not finishes_a_round):
                return STOPPED
            went_through = True
            match action:
                case decide.Join():
                    went_through = await self._keep_trying(self._join)
                case decide.FetchState():
                    went_through = await self._keep_trying(self._fetch_state)
                case decide.FetchRound(round):
                    went_through = await self._keep_trying(partial(self._catch_up, round))
                case decide.Upload():
                    await self._upload()
                case decide.Train():
                    await self._train()
                case decide.Quit():
                    return "the run has finished"
                case decide.Wait():
                    if self._leaving.is_set() and self._state.trained <= self._state.applied:
                        return STOPPED
                    await self._news.wait_for(self._is_there_news(), WAIT_SECONDS)
            if not went_through:
                return GONE if self._state.is_finished else STOPPED

    def _is_there_news(self) -> Callable[[], bool]:
        before = (self._leaving.is_set(), self._is_alone)
        return lambda: (
            not isinstance(decide.next_action(self._state), decide.Wait)
            or (self._leaving.is_set(), self._is_alone) != before
        )

    async def _leave_when(self, stop_gently: asyncio.Event) -> None:
        await stop_gently.wait()
        self._leaving.set()
        self._news.notify()

    async def _keep_trying(self, call: Callable[[], Awaitable[None]]) -> bool:
        """Repeat ``call`` while the coordinator cannot be reached: True once it went through.

        False when this peer was asked to leave meanwhile, or the run has finished and nobody is there any more.
        Warns once. Raises UnreachableError after half an hour.
        """
        started, attempt = time.monotonic(), 0
        while True:
            try:
                await call()
                return True
            except UnreachableError as error:
                if attempt == 0 and not self._state.is_finished:
                    self._emit(events.Warned(message=f"{error} This peer keeps trying."))
                if time.monotonic() - started > GIVE_UP_SECONDS:
                    raise
            if self._state.is_finished and attempt >= FINISHED_ATTEMPTS:
                return False
            pause = RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]
            if await self._news.wait_for(self._leaving.is_set, pause):
                return False
            attempt += 1

    # --- listening ----------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Follow the leader for as long as the session lasts; doubles as this peer's heartbeat."""
        while True:
            await self._news.wait_for(lambda: self._state.is_member, WAIT_SECONDS)
            if self._state.is_member:
                self._is_alone = not await self._keep_trying(self._follow)
                self._news.notify()
                if self._is_alone:
                    await asyncio.sleep(RETRY_SECONDS[0])

    async def _follow(self) -> None:
        self._reporter.sample()
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
            if not follows_manifest(plan, self._manifest):
                raise RefusedError(f"The plan of round {plan.round} is not what this run's manifest says; leaving.")
            self._plan = plan
        self._version = reply.version
        self._committed = (reply.committed_round, reply.committed_chain.hex())
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
        self._news.notify()

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
        self._downloads.sources.tell(reply.donors)
        self._version = 0
        await self._on_worker(self._workshop.take_number, reply.number)
        self._state = decide.rejoined(self._state, self._work.plan.round if self._work is not None else 0)
        self._news.notify()
        self._emit(
            events.Joined(
                run=self._manifest.config.run.name,
                name=reply.name,
                number=reply.number,
                address=self._client.address,
                round=max(0, self._state.applied),
            )
        )

    async def _fetch_state(self) -> None:
        """Download a recent state, going on after a broken connection where it stopped."""
        started = time.monotonic()
        if self._downloads.has_failed:
            await self._ask_how_to_catch_up()  # for other donors
        state, donors = await self._downloads.state(self._leaving.is_set)
        consensus = await self._on_worker(state.consensus, self._manifest)
        if self._trainer is None:
            self._trainer = await self._on_worker(self._workshop.trainer, consensus)
        else:
            await self._on_worker(self._trainer.replace_consensus, consensus)
        self._work = None
        about = state.description
        self._state = decide.restored(self._state, about.round, about.chain.hex())
        self._version = 0  # hear the news again, in the light of this state
        self._emit(
            events.StateReceived(
                round=about.round,
                bytes=about.total_bytes,
                seconds=round(time.monotonic() - started, 3),
                donors=donors,
                found_bytes=state.found_bytes,
            )
        )
        await self._downloads.keep_state(state)

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

        work = await self._on_worker(trainer.train, plan, should_stop, on_step)
        if work is not None:
            self._work = work
            self._state = replace(self._state, trained=plan.round, unsent=plan.round)

    async def _upload(self) -> None:
        """Send the contribution, a call a shard, unless its round closes first. What is not counted stays here."""
        work = self._work
        assert work is not None, "there is something unsent"
        peer_id = self._introduction.peer_id
        sending = asyncio.create_task(submit_all(self._client, self._manifest, peer_id, work, self._shards))
        sending.add_done_callback(lambda _: self._news.notify())

        def is_settled() -> bool:
            return sending.done() or self._state.committed >= work.plan.round

        try:
            while not await self._news.wait_for(is_settled, WAIT_SECONDS):
                continue  # a slow line: as long as the round is open
        finally:
            sending.cancel()
        await asyncio.wait({sending})
        error = None if sending.cancelled() else sending.exception()
        if isinstance(error, UnreachableError):
            self._warn_of_upload(work.plan.round, f"Round {work.plan.round} is not sent yet: {error}")
            await self._news.wait_for(lambda: self._state.committed >= work.plan.round, RETRY_SECONDS[1])
            return  # tried again while the round is open
        if isinstance(error, PeerError):
            self._warn_of_upload(work.plan.round, f"Round {work.plan.round} was not counted: {error} Its work is kept.")
        elif error is not None:
            raise error
        elif not sending.cancelled() and sending.result():
            self._warn_of_upload(work.plan.round, f"Round {work.plan.round} came too late: {sending.result()}.")
        self._state = replace(self._state, unsent=0)

    def _warn_of_upload(self, round: int, message: str) -> None:
        """Once a round: an upload is tried every second."""
        if round != self._warned_of:
            self._warned_of = round
            self._emit(events.Warned(message=message))

    async def _catch_up(self, round: int) -> None:
        """Fetch a published round, apply it and report. One that cannot be had or trusted means: fetch the state."""
        started = time.monotonic()
        trainer = self._trainer
        assert trainer is not None, "a peer that has applied a round has a state"
        if not await self._is_replay_cheaper(round):
            self._state = replace(self._state, needs_state=True)
            return
        try:
            message, data = await self._downloads.round(round, *self._committed)
            published = await asyncio.to_thread(open_published, self._manifest, message, data, self._state.chain)
        except (RefusedError, PeerError):
            self._state = replace(self._state, needs_state=True)
            return
        included = published.included_blocks(self._introduction.peer_id)
        header = published.header
        digest = await self._on_worker(trainer.apply, header.plan, published.grids, published.void, included)
        # Its tensors are replaced by the next round, never written to: a shallow copy stays what it is.
        consensus = copy.copy(trainer.consensus)
        self._background.start(self._downloads.keep_round(header, data, consensus))
        self._state = decide.applied(self._state, round, header.chain.hex())
        self._rounds_included += bool(included)
        report = self._background.start(self._report(round, digest, bool(included), time.monotonic() - started))
        self._reports.add(report)
        report.add_done_callback(self._reports.discard)
        await self._save_now_and_then()

    async def _is_replay_cheaper(self, round: int) -> bool:
        """Choose how to go on from before ``round``, once for each time that this peer has missed several rounds."""
        missed = self._state.committed - round + 1
        if missed < MISSED_ROUNDS or self._downloads.is_catching_up:
            self._downloads.is_catching_up = missed > 1
            return True
        costs = await self._ask_how_to_catch_up()
        if costs is None:
            return True
        way = choose_way(self._state.applied, costs)
        self._emit(events.CatchingUp(missed=missed, takes_state=way.takes_state, reason=way.reason))
        self._downloads.is_catching_up = True
        return not way.takes_state

    async def _ask_how_to_catch_up(self) -> Costs | None:
        """Ask the leader, who names donors too. None if it does not say."""
        peer_id, applied = self._introduction.peer_id, max(0, self._state.applied)
        reply = await self._client.follow(pb.FollowRequest(peer_id=peer_id, is_behind=True, applied=applied))
        if not reply.HasField("catch_up"):
            return None
        said = reply.catch_up
        control.check_catch_up(said)
        self._downloads.sources.tell(said.donors)
        return Costs(
            round_bytes=said.round_bytes,
            state_round=said.state_round,
            state_bytes=said.state_bytes,
            rest_bytes=said.rest_bytes,
        )

    async def _report(self, round: int, digest: bytes, is_included: bool, seconds: float) -> None:
        """Tell the digest and the bytes. Beside the training: the leader may still be applying the round itself."""
        report = self._reporter.prepare(round, digest)
        mine = self._work if self._work is not None and self._work.plan.round == round else None
        self._emit(
            events.RoundApplied(
                round=round,
                included=is_included,
                local_loss=mine.local_loss if mine is not None else None,
                tokens=mine.tokens if mine is not None else 0,
                seconds=seconds,
                digest=digest.hex(),
                wire_bytes={"sent": dict(report.sent), "received": dict(report.received)},
                overhead=report.overhead_bytes,
            )
        )
        if await self._reporter.send(report):
            self._state = replace(self._state, needs_state=True)
            self._news.notify()
            self._emit(
                events.Warned(message=f"This peer's weights differ after round {round}; it fetches the state again.")
            )

    # --- the end ------------------------------------------------------------------------------------------------

    async def _save_now_and_then(self) -> None:
        """What is lost with a crash is replayed from the delta log; disks need not turn every round for it."""
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            await self._save()

    async def _save(self) -> None:
        if self._trainer is None or self._state.applied < 0:
            return
        self._saved_at = time.monotonic()
        try:
            await self._on_worker(self._workshop.save, self._trainer, self._state)
        except CheckpointError as error:
            self._emit(events.Warned(message=f"{error} Training goes on."))

    async def _say_goodbye(self, reason: str) -> None:
        with suppress(UnreachableError, RefusedError, PeerError):
            await self._client.leave(pb.LeaveRequest(peer_id=self._introduction.peer_id, reason=reason), 2.0)

    async def _on_worker(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)
