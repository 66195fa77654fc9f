"""A peer's own work: local steps on the worker thread, and its contribution sent shard by shard, beside each other."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.errors import ConfigError, PeerError, RefusedError, UnreachableError
from tsr_swarm.exchange.contribution import pack
from tsr_swarm.node.address_book import ClientPool
from tsr_swarm.node.round_cache import RoundCache
from tsr_swarm.process.tasks import Background
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.train.trainer import RoundWork, StepProgress, Trainer
from tsr_swarm.transport.status import printable
from tsr_swarm.wire.messages import seal
from tsr_swarm.wire.v1 import swarm_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """What training asks the rest of the node for."""

    put: Callable[[pt.Event], None]
    warn: Callable[[str], None]
    is_stale: Callable[[int], bool]  # whether to stop training for this round early; called on the worker thread
    train: Callable[
        [Callable[[Trainer], RoundWork | None]], Awaitable[RoundWork | None]
    ]  # on the worker thread, in order
    submit_here: Callable[[pb.Envelope, bytes], Awaitable[pb.SubmitReply]]  # this node is the shard's reducer


class TrainerTask:
    """One peer's. Its event loop owns it."""

    def __init__(
        self,
        me: str,
        manifest: Manifest,
        clients: ClientPool,
        round_cache: RoundCache,
        seams: Seams,
        background: Background,
    ) -> None:
        self._me, self._manifest = me, manifest
        self._clients, self._round_cache, self._seams, self._background = clients, round_cache, seams, background
        self.work: RoundWork | None = None  # the newest contribution
        self.progress = pb.Progress()
        self._sending: dict[pt.Upload, asyncio.Task[None]] = {}
        self._packed: set[pt.Upload] = set()  # of this round, counted in the progress
        self._warned_of = 0  # the round of whose upload people have been told

    def train(self, plan: pt.OpenRound) -> None:
        """Take the local steps of this round."""
        announced = self._round_cache.plan(plan.round, plan.parent)
        assert announced is not None, "it came with the news"
        self._background.start(self._train(announced))

    async def _train(self, plan: RoundPlan) -> None:
        def on_step(progress: StepProgress) -> None:
            self.progress = pb.Progress(
                round=plan.round, step=progress.step, tokens_per_second=progress.tokens_per_second
            )

        work = await self._seams.train(
            lambda trainer: trainer.train(plan, lambda: self._seams.is_stale(plan.round), on_step)
        )
        if work is not None:
            self.work = work
            self.progress = pb.Progress(
                round=plan.round,
                step=self.progress.step,
                tokens_per_second=self.progress.tokens_per_second,
                local_loss=work.local_loss if math.isfinite(work.local_loss) else 0.0,
            )
        self._seams.put(pt.Trained(plan.round, work is not None))

    def upload(self, order: pt.Upload) -> None:
        """Send one shard, unless its round closes first. What is not counted stays here, in the residual."""
        self._sending[order] = self._background.start(self._upload(order))

    def look_again(self, closed: int, plan: pt.OpenRound | None) -> None:
        """Rounds up to ``closed`` need not be sent any more; what ``plan`` has elsewhere now is not sent on."""
        for order in list(self._sending):
            is_over = order.round <= closed
            if is_over or (plan is not None and order.round == plan.round and plan.places[order.shard] != order.place):
                self._sending.pop(order).cancel()  # now: what is put next comes here before the task has ended
                if not is_over:
                    self._seams.put(pt.UploadFailed(order.round, order.shard, order.place))

    async def _upload(self, order: pt.Upload) -> None:
        work = self.work
        assert work is not None, "there is something unsent"
        try:
            try:
                if work.plan.round != order.round:
                    return  # its round is over
                reply = await self._submit(order, work)
            finally:
                self._sending.pop(order, None)
        except (UnreachableError, ConfigError) as error:
            self._warn_of(order.round, f"Round {order.round} is not sent yet: {error}")
            self._seams.put(pt.UploadFailed(order.round, order.shard, order.place))
            return
        except (PeerError, RefusedError) as error:
            self._warn_of(order.round, f"Round {order.round} was not counted: {error} Its work is kept.")
            counted = False
        else:
            counted = reply.counted
            if not counted:
                self._warn_of(order.round, f"Round {order.round} came too late: {printable(reply.reason[:200])}.")
        self._seams.put(pt.Uploaded(order.term, order.round, order.shard, order.place, counted))

    async def _submit(self, order: pt.Upload, work: RoundWork) -> pb.SubmitReply:
        blocks = self._manifest.shard_blocks[order.shard]
        header, data = await asyncio.to_thread(pack, self._manifest, self._me, work, order.shard, blocks, order.term)
        if order not in self._packed:
            self._packed = {*(one for one in self._packed if one.round == order.round), order}
            self.progress.wire_bytes += len(data)
        if order.place.node == self._me:
            return await self._seams.submit_here(seal(header), data)
        return await (await self._clients.to(order.place.node)).submit(seal(header), data)

    def _warn_of(self, round: int, message: str) -> None:
        """Once a round: an upload is tried every second."""
        if round != self._warned_of:
            self._warned_of = round
            self._seams.warn(message)
