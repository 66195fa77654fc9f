"""Three ways to fine-tune one model on the same batches: peers that exchange cores, peers that average, one machine.

The swarms are those of ``tsr-swarm simulate``: ours is real trainers, reduction, codec and gate in one process. Every
method starts from the same weights and takes the same steps under the same schedule; only rates are its own.
"""

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tests.bench.finetune.dataset import Share
from tsr_swarm.config.manifest import Manifest, make_manifest
from tsr_swarm.config.run import RunConfig
from tsr_swarm.lowrank.exact import BASIS_BITS
from tsr_swarm.optim.periods import are_drawn
from tsr_swarm.simulate.run_spec import OWN, RunSpec
from tsr_swarm.simulate.swarms import RUN_ID, BaselineSwarm, OwnSwarm, Stream, Task

METHODS = ("ours", "dense", "single")
SMALL = 8  # a matrix with fewer rows or columns, such as the head, is exchanged whole
OnSteps = Callable[[int, float], None]  # steps done, and the mean loss since the last call, nats a sentence


@dataclass(frozen=True, slots=True)
class Trained:
    """The consensus at the end, and wire bytes of one peer over the whole run, by payload kind."""

    weights: Mapping[str, Tensor]
    sent: Mapping[str, float]
    received: Mapping[str, float]
    bases: float = 0.0  # bytes of the first bases at 12 bits a number, which a peer fetches with the model


def spec_of(method: str, config: RunConfig, lr: float) -> RunSpec:
    """Return what is simulated for ``method``; ``config`` has the peers (data.parts), rounds and seed.

    dense: local AdamW, all weights averaged in fp32 after each k_x steps, moments private.
    single: AdamW on the batches of all peers as one.
    """
    optimizer, steps = config.optimizer, config.run.rounds * config.periods.k_x
    config = replace(config, optimizer=replace(optimizer, lr=lr))
    if method == "ours":
        return RunSpec(method=OWN, config=config, peers=config.data.parts, steps=steps)
    adamw = {"betas": optimizer.betas, "eps": optimizer.eps, "weight_decay": optimizer.weight_decay}
    if method == "dense":
        settings = {**adamw, "k_x": config.periods.k_x, "outer": "average", "bits": 32}
        return RunSpec(method="diloco", config=config, settings=settings, peers=config.data.parts, steps=steps)
    return RunSpec(method="ddp", config=config, settings=adamw, peers=1, steps=steps)


def train(spec: RunSpec, start: nn.Module, shares: Sequence[Share], on_steps: OnSteps) -> Trained:
    """Fine-tune ``start``, which stays as it is. Raises ConfigError, or RunError when training diverges."""
    config = spec.fitted()
    weights = {name: parameter.detach().clone() for name, parameter in start.named_parameters()}
    task = Task(manifest=manifest_of(config, start), weights=weights, make_model=lambda: copy.deepcopy(start))
    streams: Sequence[Stream] = shares if spec.peers > 1 else [JointBatches(shares)]
    swarm: OwnSwarm | BaselineSwarm = (
        OwnSwarm(config, streams, task=task) if spec.is_own else BaselineSwarm(spec, config, streams, task)
    )
    sent, received = Counter[str](), Counter[str]()
    losses: list[float] = []
    for first in range(0, spec.steps, swarm.period):
        exchange = swarm.advance(first, dict.fromkeys(range(spec.peers), swarm.period))
        if spec.peers > 1:  # alone, there is nobody to send to
            sent.update(exchange.traffic.sent)  # type: ignore[arg-type]
            received.update(exchange.traffic.received)  # type: ignore[arg-type]
        losses.extend(exchange.losses)
        if (first + swarm.period) % config.periods.k_x == 0:
            on_steps(first + swarm.period, sum(losses) / max(1, len(losses)))
            losses = []
    return Trained(swarm.weights, sent, received, first_bases(task.manifest) if spec.is_own else 0.0)


def first_bases(manifest: Manifest) -> float:
    """Bytes of the first bases that a joining peer fetches; none where every peer draws them from the seed."""
    if are_drawn(manifest):
        return 0.0
    return sum(block.basis_size for block in manifest.blocks if block.is_low_rank) * BASIS_BITS / 8


class JointBatches:
    """All peers' batches of a step as one, for the machine that has all data."""

    def __init__(self, shares: Sequence[Share]) -> None:
        self._shares = shares

    def batch(self, step: int, micro: int = 0) -> Tensor:
        return torch.cat([share.batch(step, micro) for share in self._shares])


def manifest_of(config: RunConfig, model: nn.Module) -> Manifest:
    """Plan the blocks of any model: matrices at low rank, small ones and vectors dense. Raises ConfigError."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    small = {name: shape for name, shape in shapes.items() if len(shape) == 2 and min(shape) < SMALL}
    flat = {name: (rows * cols,) for name, (rows, cols) in small.items()}
    planned = make_manifest(RUN_ID, config, shapes | flat)
    blocks = (
        replace(block, rows=small[block.name][0], cols=small[block.name][1]) if block.name in small else block
        for block in planned.blocks
    )
    return replace(planned, blocks=tuple(blocks))
