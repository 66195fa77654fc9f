"""A peer's own work: local steps on the weights' thread, and its contribution, of which all shards are sent at once."""

import asyncio
import math
from dataclasses import dataclass, field

from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.errors import ConfigError, PeerError, RefusedError, UnreachableError
from tsr_swarm.exchange.contribution import pack
from tsr_swarm.node.context import NodeContext
from tsr_swarm.node.data_leases import DataLeases
from tsr_swarm.node.reducer import Reducer
from tsr_swarm.node.weights import WeightsThread
from tsr_swarm.node.workspace import Workspace
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.state import is_stale
from tsr_swarm.train.trainer import RoundWork, StepProgress
from tsr_swarm.transport.status import printable
from tsr_swarm.wire.messages import PublishedHeader, seal
from tsr_swarm.wire.v1 import swarm_pb2 as pb


@dataclass(slots=True, eq=False)
class TrainerTask:
    """Trains for a round and sends what came of it. ``workspace``: None for a node that does not train."""

    context: NodeContext
    weights: WeightsThread
    workspace: Workspace | None
    data_leases: DataLeases
    reducer: Reducer
    work: RoundWork | None = None  # the newest contribution
    progress: pb.Progress = field(default_factory=pb.Progress)
    _sending: dict[pt.Upload, asyncio.Task[None]] = field(default_factory=dict)
    _packed: set[pt.Upload] = field(default_factory=set)  # of this round, counted in the progress
    _warned_of: int = 0  # the round of whose upload people have been told

    def take_number(self, number: int) -> None:
        """Draw batches as the peer of this number; after the training that is under way."""
        assert self.workspace is not None, "it trains"
        self.context.number = number
        self.context.background.start(self.weights.run(self.workspace.take_number, number))

    async def train(self, plan: RoundPlan) -> None:
        missing: list[ConfigError] = []

        def on_step(step: StepProgress) -> None:
            self.progress = pb.Progress(round=plan.round, step=step.step, tokens_per_second=step.tokens_per_second)

        def take_steps() -> RoundWork | None:
            assert self.workspace is not None, "it trains"
            try:
                self.data_leases.begin(self.context.number)
            except ConfigError as error:
                missing.append(error)
            return self.workspace.trainer.train(plan, lambda: self._is_stale(plan.round), on_step)

        work = await self.weights.run(take_steps)
        for error in missing:
            self.data_leases.give_up()
            self.context.warn(f"{error} This peer stays with the part that it has.")
        if work is not None:
            self.work = work
            self.progress = pb.Progress(
                round=plan.round,
                step=self.progress.step,
                tokens_per_second=self.progress.tokens_per_second,
                local_loss=work.local_loss if math.isfinite(work.local_loss) else 0.0,
            )
        self.context.put(pt.Trained(plan.round, work is not None))

    def _is_stale(self, round: int) -> bool:
        """Whether to stop training for this round early; asked on the weights' thread."""
        return self.context.done.is_set() or is_stale(self.context.state.peer, round)

    def count_tokens(self, header: PublishedHeader) -> None:
        """A round stands: what this peer trained for it, if it is in it, counts for its part of the shared data."""
        work = self.work
        if self.context.me in header.contributors and work is not None and work.plan.round == header.plan.round:
            self.data_leases.count(work.tokens)

    def upload(self, order: pt.Upload) -> None:
        """Send one shard, unless its round closes first. What is not counted stays here, in the residual."""
        self._sending[order] = self.context.background.start(self._upload(order))

    def cancel_uploads(self, closed: int, plan: pt.OpenRound | None) -> None:
        """Rounds up to ``closed`` need not be sent any more; what ``plan`` has elsewhere now is not sent on."""
        for order in list(self._sending):
            is_over = order.round <= closed
            if is_over or (
                plan is not None and order.round == plan.round and plan.reducers[order.shard] != order.reducer
            ):
                self._sending.pop(order).cancel()  # now: what is put next comes here before the task has ended
                if not is_over:
                    self.context.put(pt.UploadFailed(order.round, order.shard, order.reducer))

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
            self.context.put(pt.UploadFailed(order.round, order.shard, order.reducer))
            return
        except (PeerError, RefusedError) as error:
            self._warn_of(order.round, f"Round {order.round} was not counted: {error} Its work is kept.")
            counted = False
        else:
            counted = reply.counted
            if not counted:
                self._warn_of(order.round, f"Round {order.round} came too late: {printable(reply.reason[:200])}.")
        self.context.put(pt.Uploaded(order.term, order.round, order.shard, order.reducer, counted))

    async def _submit(self, order: pt.Upload, work: RoundWork) -> pb.SubmitReply:
        context = self.context
        blocks = context.manifest.shard_blocks[order.shard]
        header, data = await asyncio.to_thread(
            pack, context.manifest, context.me, work, order.shard, blocks, order.term
        )
        if order not in self._packed:
            self._packed = {*(one for one in self._packed if one.round == order.round), order}
            self.progress.wire_bytes += len(data)
        envelope = seal(header)
        if order.reducer.node == context.me:
            return await self.reducer.submit(self.reducer.expect(envelope), data)
        return await (await context.clients.to(order.reducer.node)).submit(envelope, data)

    def _warn_of(self, round: int, message: str) -> None:
        """Once a round: an upload is tried every second."""
        if round != self._warned_of:
            self._warned_of = round
            self.context.warn(message)
