"""Simulated swarms: our own method with its real trainers, reduction, codec and checks, and the baselines. No sockets.

Nothing is batched over peers: on a CPU that was not faster (8 peers, d = 64: 163 ms a step stacked by vmap, 153 ms one
after the other). What is shared is the consensus, since every peer's is the same to the bit: a published round is
opened and applied once. ``exact`` shares nothing, and checks that.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from tsr_swarm.baselines.method import ExchangeBytes
from tsr_swarm.baselines.registry import make_method
from tsr_swarm.config.layout import PayloadKind
from tsr_swarm.config.manifest import Manifest, make_manifest
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import RunError
from tsr_swarm.exchange.contribution import captured_of, pack
from tsr_swarm.exchange.reduction import WeightedPayload, open_published, reduce_round
from tsr_swarm.lowrank.sketch import Captured
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.outer_step import OuterState, rotate_outer
from tsr_swarm.optim.periods import learning_rate, plan_round
from tsr_swarm.optim.sketch_budget import after_round, begin_refresh_state, mean_captured, within_budget
from tsr_swarm.simulate.result import ExchangeResult
from tsr_swarm.simulate.run_spec import RunSpec
from tsr_swarm.train.llama import build_model, initial_weights, parameter_shapes
from tsr_swarm.train.trainer import RoundWork, StepProgress, Trainer, fresh_consensus, make_space
from tsr_swarm.wire import messages
from tsr_swarm.wire.codec import Section
from tsr_swarm.wire.gate import check_header, void_blocks
from tsr_swarm.wire.messages import PublishedHeader, published_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

RUN_ID = "simulated"
ROUND_TRIPS = 2  # the upload and its reply; the request for the average and its bytes


class Stream(Protocol):
    """The training data of one peer."""

    def batch(self, step: int, micro: int = 0) -> Tensor:
        """See ``train.trainer.Batches``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """What is trained: its blocks, its first weights by name, and a fresh model whose ``loss`` takes a batch."""

    manifest: Manifest
    weights: Mapping[str, Tensor]
    make_model: Callable[[], nn.Module]


def decoder_task(config: RunConfig, autocast: bool = False) -> Task:
    """The decoder of the [model] section from weights drawn from the run's seed. Raises ConfigError.

    ``autocast``: the matrix products of its loss and their gradients are in bfloat16, its parameters are not.
    """
    weights = initial_weights(config.model, config.run.seed)

    def make_model() -> nn.Module:
        model = build_model(config.model, weights)
        if autocast:
            model.loss = torch.autocast("cpu", torch.bfloat16)(model.loss)  # type: ignore[method-assign]
        return model

    return Task(manifest=manifest_of(config), weights=weights, make_model=make_model)


class OwnSwarm:
    """Peers 0 to N - 1, the reducer, and the consensus between them. ``task`` is a decoder_task if none is given.

    Deterministic, as a BaselineSwarm is: the same calls, the same bits.
    """

    def __init__(
        self, config: RunConfig, streams: Sequence[Stream], exact: bool = False, task: Task | None = None
    ) -> None:
        self._config, self._exact = config, exact
        task = decoder_task(config) if task is None else task
        self._manifest = task.manifest
        self._consensus = fresh_consensus(self._manifest, task.weights)
        self._trainers = [self._trainer(stream, task.make_model()) for stream in streams]
        self._ids = tuple(f"{number:032x}" for number in range(1, len(streams) + 1))
        self._outer: OuterState = {}  # what the reducer keeps
        self._known = begin_refresh_state(config, self._manifest.blocks, 1)  # by which sketches are chosen
        self._round, self._chain = 0, ""

    @property
    def period(self) -> int:
        """Local steps between two exchanges."""
        return self._config.periods.k_x

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """What is evaluated: the consensus, by parameter name."""
        return self._consensus.weights

    def advance(self, first_step: int, work: Mapping[int, int]) -> ExchangeResult:
        """Train one round from global step ``first_step`` and exchange. ``work``: steps by peer that takes part.

        A straggler's steps stay with it until it has a whole round of them, as a real peer's do. A peer that is away
        fetches what it missed when it returns: applied here at once, which is the same.
        """
        blocks = self._manifest.blocks
        plan = plan_round(self._config, blocks, self._round + 1, self._chain)
        plan = within_budget(plan, self._config, blocks, self._known)
        assert plan.first_step == first_step, "rounds are counted as steps are"
        done = {peer: _train(self._trainers[peer], plan, steps) for peer, steps in sorted(work.items())}
        contributions = {peer: contribution for peer, contribution in done.items() if contribution is not None}
        shards, captured, sent = self._send(contributions)
        is_quorum = len(contributions) >= self._config.round.quorum
        counted = shards if is_quorum else [{} for _ in shards]
        header, data, outer = reduce_round(self._manifest, plan, counted, self._consensus.bases, self._outer)
        sections = [section for shard in header.shards for section in shard.sections]
        received = _wire_bytes(sections, published_to_proto(header).ByteSize())
        self._known = after_round(self._known, plan, void_blocks(header), captured)
        digest = self._apply(header, data, outer)
        self._round, self._chain = plan.round, header.chain.hex()
        return ExchangeResult(
            traffic=ExchangeBytes({kind: count / len(work) for kind, count in sent.items()}, received, ROUND_TRIPS),
            extra_steps=self._config.periods.micro_batches if plan.due.of_gradients else 0,
            tokens=sum(contribution.tokens for contribution in contributions.values()),
            losses=tuple(c.local_loss for c in contributions.values() if c.local_loss == c.local_loss),
            digest=digest,
        )

    def _send(
        self, contributions: Mapping[int, RoundWork]
    ) -> tuple[list[dict[str, WeightedPayload]], dict[int, Captured], Counter[str]]:
        """Encode contributions, pass them through the gate and decode them.

        Returns them by shard and peer, what they measured, and wire bytes by payload kind. Raises PeerError or RunError
        for what cannot be sent.
        """
        manifest, sent = self._manifest, Counter[str]()
        shards: list[dict[str, WeightedPayload]] = [{} for _ in manifest.shard_blocks]
        measured = []
        for peer, work in contributions.items():
            peer_id = self._ids[peer]
            for shard, blocks in enumerate(manifest.shard_blocks):
                header, data = pack(manifest, peer_id, work, shard, blocks)
                envelope = messages.seal(header)
                received = messages.open_envelope(envelope)
                checked = check_header(received, manifest=manifest, plan=work.plan, is_known=self._ids.__contains__)
                shards[shard][peer_id] = WeightedPayload(peer + 1, header.tokens, checked.decode(data))
                measured.append((header.tokens, captured_of(checked.header, manifest, blocks)))
                sent += _wire_bytes(header.sections, envelope.ByteSize())
        return shards, mean_captured(measured), sent

    def _trainer(self, stream: Stream, model: nn.Module) -> Trainer:
        config = self._config
        kind = "full" if config.optimizer.local_space == "full" else "core"  # in a mixed run, what a peer is by default
        consensus = self._consensus
        if self._exact:
            consensus = Consensus.from_tensors(self._manifest.blocks, consensus.tensors(), config.optimizer.lift)
        return Trainer(self._manifest, model, make_space(kind, model, self._manifest), stream.batch, consensus)

    def _apply(self, header: PublishedHeader, data: bytes, outer: OuterState) -> str:
        """Open the round as it travels and apply it for everybody. Returns the digest of the consensus."""
        message = published_to_proto(header)
        opened = open_published(self._manifest, message, data, self._chain)
        if not self._exact:
            for trainer, peer_id in zip(self._trainers, self._ids, strict=True):
                trainer.settle(opened.header.plan, opened.grids, opened.included_blocks(peer_id))
        refreshed = self._consensus.apply(opened.header.plan, opened.grids, opened.void)
        self._outer = rotate_outer(outer, refreshed, self._config.optimizer)
        digest = self._consensus.digest()
        if self._exact:
            self._apply_by_each(message, data, digest)
        else:
            for trainer in self._trainers:
                trainer.space.rotate(refreshed)
        return digest.hex()

    def _apply_by_each(self, message: pb.PublishedHeader, data: bytes, digest: bytes) -> None:
        """Open and apply the round at every peer, as real ones do. Raises RunError if one ends with other weights."""
        for trainer, peer_id in zip(self._trainers, self._ids, strict=True):
            own = open_published(self._manifest, message, data, self._chain)
            plan, included = own.header.plan, own.included_blocks(peer_id)
            if trainer.apply(plan, own.grids, own.void, included) != digest:
                raise RunError(f"After round {plan.round} two peers hold different weights; please report this.")


def manifest_of(config: RunConfig) -> Manifest:
    """Plan the blocks of a run. Raises ConfigError when its ranks do not fit its model."""
    return make_manifest(RUN_ID, config, parameter_shapes(config.model))


def _train(trainer: Trainer, plan: RoundPlan, steps: int) -> RoundWork | None:
    """Take at most ``steps`` local steps. Returns None while the round's are not all done."""
    taken: list[StepProgress] = []
    return trainer.train(plan, lambda: len(taken) >= steps, taken.append)


def _wire_bytes(sections: Iterable[Section], control: int) -> Counter[str]:
    """Return wire bytes by payload kind; ``control``: those of the message around the sections."""
    counts = Counter({PayloadKind.CONTROL.value: control})
    for section in sections:
        counts[section.kind] += section.wire_bytes
    return counts


class BaselineSwarm:
    """The peers of a baseline, with our data, first weights, clipping and schedule. By default of a decoder_task."""

    def __init__(self, spec: RunSpec, config: RunConfig, streams: Sequence[Stream], task: Task | None = None) -> None:
        task = decoder_task(config) if task is None else task
        self._method = make_method(spec.method, task.weights, spec.peers, spec.settings)
        self._model, self._streams, self._optimizer = task.make_model(), streams, config.optimizer
        self._parameters = dict(self._model.named_parameters())
        self._tokens, self._losses = 0, list[float]()  # of the present period
        self.period = self._method.period

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return self._method.weights

    def advance(self, first_step: int, work: Mapping[int, int]) -> ExchangeResult:
        """Train one period of the method and exchange."""
        rates = [learning_rate(self._optimizer, first_step + step) for step in range(self.period)]
        self._tokens, self._losses = 0, []
        traffic = self._method.advance(first_step, rates, self._gradient, work)
        return ExchangeResult(traffic=traffic, tokens=self._tokens, losses=tuple(filter(math.isfinite, self._losses)))

    def _gradient(self, peer: int, step: int, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the gradient of ``peer``'s batch of global ``step``, by name; zero if it is not finite."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])
        batch = self._streams[peer].batch(step)
        self._model.zero_grad(set_to_none=True)
        loss = self._model.loss(batch)  # type: ignore[operator]
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._optimizer.clip)
        self._tokens += batch.shape[0] * (batch.shape[1] - 1)
        self._losses.append(float(loss.detach()))
        is_finite = bool(torch.isfinite(norm))
        return {
            name: parameter.grad if is_finite and parameter.grad is not None else torch.zeros_like(parameter)
            for name, parameter in self._parameters.items()
        }


def period_of(spec: RunSpec) -> int:
    """Local steps between two exchanges of a baseline. Raises ConfigError for settings it cannot have."""
    config = spec.fitted()
    return make_method(spec.method, initial_weights(config.model, 0), 1, spec.settings).period
