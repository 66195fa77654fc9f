"""The training of one peer: first weights and bases, local steps, and published rounds applied to its weights.

Not thread-safe: its owner runs it on one worker thread.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tsr_swarm.config.layout import Part, PayloadKind, Slot, upload_slots
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.lowrank.basis import random_basis
from tsr_swarm.lowrank.dct import column_energies
from tsr_swarm.lowrank.grid import Grid
from tsr_swarm.lowrank.randomized_svd import draw_test_matrix, known_range, projection, range_sketch
from tsr_swarm.lowrank.sketch import Captured
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.core_space import CoreSpace
from tsr_swarm.optim.full_space import FullSpace
from tsr_swarm.optim.local_space import LocalSpace
from tsr_swarm.optim.periods import are_drawn, drawn_bases
from tsr_swarm.optim.quantise import GradientSketches
from tsr_swarm.train.llama import initial_weights

# Tokens (B, T + 1) of a global step's micro-batch of this number: pure, so that resuming needs no generator state.
Batches = Callable[[int, int], Tensor]
STOP_CHECK_SECONDS = 0.25  # how often a peer that simulates a slower machine looks whether it should stop


@dataclass(frozen=True, slots=True)
class RoundWork:
    """The result of a peer's local steps, from which its contribution is made."""

    plan: RoundPlan  # the round it was finished for
    steps: int
    tokens: int
    local_loss: float  # mean over the steps, nats a token
    grids: Mapping[Slot, Grid]
    captured: Mapping[int, Captured] = field(default_factory=dict)  # of each low-rank block, where it is measured


@dataclass(frozen=True, slots=True)
class StepProgress:
    """How far a round's local steps are, for the screen."""

    step: int
    tokens_per_second: float


def fresh_consensus(manifest: Manifest, weights: Mapping[str, Tensor] | None = None) -> Consensus:
    """The consensus of round 0: ``weights``, or else ones drawn from the run's seed, and the first bases.

    Drawn once and shipped, since random numbers differ between machines; except bases whose draw is the same on all.
    """
    seed, lift = manifest.config.run.seed, manifest.config.optimizer.lift
    weights = initial_weights(manifest.config.model, seed) if weights is None else weights
    if are_drawn(manifest):
        return Consensus(manifest.blocks, weights, drawn_bases(manifest, 0), lift)
    low_rank = [(index, block) for index, block in enumerate(manifest.blocks) if block.is_low_rank]
    bases = {index: random_basis(block.rows, block.cols, block.ranks, seed, index) for index, block in low_rank}
    return Consensus(manifest.blocks, weights, bases, lift)


def make_space(kind: str, model: nn.Module, manifest: Manifest) -> LocalSpace:
    """Make the local space named ``kind`` ("core", "full") over a model's parameters."""
    space = CoreSpace if kind == "core" else FullSpace
    return space(dict(model.named_parameters()), manifest.blocks, manifest.config.optimizer)


@dataclass(eq=False)
class Trainer:
    """Holds model, local space and consensus of one peer, takes local steps and applies published rounds."""

    manifest: Manifest
    model: nn.Module
    space: LocalSpace
    batches: Batches
    consensus: Consensus
    slowdown: float = 1.0  # how many times longer a step takes than it has to, to simulate a slower machine
    sent_round: int = field(default=0, init=False)  # of the contribution that the space has not settled yet

    def __post_init__(self) -> None:
        self._carried_losses: list[float | None] = []  # of steps that no contribution has yet
        self._carried_tokens = 0
        self._parameters = dict(self.model.named_parameters())
        self._device = next(self.model.parameters()).device

    def train(
        self,
        plan: RoundPlan,
        should_stop: Callable[[], bool],
        on_step: Callable[[StepProgress], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> RoundWork | None:
        """Take the plan's local steps. None if ``should_stop`` was true before they were done.

        Steps taken until then stay in the residual, and the next round starts with them done: a slow peer needs
        several rounds for one contribution, but it contributes.
        """
        self.model.train()
        begun = clock()
        gradients = self._gradient_sketches(plan, should_stop)
        if gradients:
            self._slow_down(clock() - begun, should_stop, sleep)
        self.space.begin(self.consensus)
        losses, tokens, started = self._carried_losses, self._carried_tokens, clock()
        for step in range(min(len(losses), plan.steps), plan.steps):
            if should_stop():
                self._carried_losses, self._carried_tokens = losses, tokens
                return None
            begun = clock()
            batch = self.batches(plan.first_step + step, 0).to(self._device)
            loss = self._backward(batch)
            tokens += batch.shape[0] * (batch.shape[1] - 1)
            if loss is not None:
                self.space.step(plan.lr(step))
            losses = [*losses, loss]
            self._slow_down(clock() - begun, should_stop, sleep)
            on_step(StepProgress(step + 1, (tokens - self._carried_tokens) / max(clock() - started, 1e-9)))
        self._carried_losses, self._carried_tokens = [], 0
        finite = [loss for loss in losses if loss is not None]
        mean_loss = sum(finite) / len(finite) if finite else float("nan")
        captured = self.space.captured(self.consensus)
        grids = self.space.upload(self.consensus, plan, self.manifest.config.wire, gradients)
        self.sent_round = plan.round
        return RoundWork(plan, plan.steps, tokens, mean_loss, grids, captured)

    def apply(
        self, plan: RoundPlan, published: Mapping[Slot, Grid], void: frozenset[int], included: frozenset[int]
    ) -> bytes:
        """Apply a committed round; ``included`` are the blocks in whose average this peer is. Returns the digest."""
        self.settle(plan, published, included)
        self.space.rotate(self.consensus.apply(plan, published, void))
        return self.consensus.digest()

    def settle(self, plan: RoundPlan, published: Mapping[Slot, Grid], included: frozenset[int]) -> None:
        """Settle residuals and averaged moments: the part of ``apply`` that comes before the consensus changes."""
        # A peer that was restarted no longer knows what it sent; only what it does know is taken out of its residual.
        if self.sent_round == plan.round:
            self.space.settle(self.consensus, included)
        self.space.take_moments(published)

    def load(self, space: Mapping[str, Tensor], sent_round: int) -> None:
        """Continue from a checkpoint of ``space.state_dict()``. Raises CheckpointError."""
        self.space.load_state_dict(space)
        self.sent_round = sent_round

    def replace_consensus(self, consensus: Consensus) -> None:
        """Continue from a downloaded state."""
        self.consensus = consensus
        self.space.rebase(consensus)
        self._carried_losses, self._carried_tokens = [], 0  # their work may be gone: claim too little, never too much

    def _slow_down(self, worked: float, should_stop: Callable[[], bool], sleep: Callable[[float], None]) -> None:
        """Wait until work of ``worked`` seconds has taken as long as on the slower machine."""
        left = (self.slowdown - 1) * worked
        while left > 0 and not should_stop():
            sleep(min(left, STOP_CHECK_SECONDS))
            left -= STOP_CHECK_SECONDS

    def _backward(self, batch: Tensor) -> float | None:
        """Compute gradients of one batch, clipped to the run's global norm. Returns its loss; None if not finite."""
        self.model.zero_grad(set_to_none=True)
        loss = self.model.loss(batch)  # type: ignore[operator]
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.manifest.config.optimizer.clip)
        # A non-finite gradient must never enter the moments, where it would stay for ever.
        return float(loss.detach()) if bool(torch.isfinite(norm)) else None

    def _gradient_sketches(self, plan: RoundPlan, should_stop: Callable[[], bool]) -> GradientSketches:
        """Measure what ``plan`` asks of gradients: means over clipped micro-batches at the consensus.

        Each micro-batch is measured as it comes, and G itself is never kept.
        """
        due = plan.due
        if not due.of_gradients:
            return {}
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self.consensus.weights[name])
        blocks, wire = self.manifest.blocks, self.manifest.config.wire
        slots = [slot for slot in upload_slots(blocks, due, wire) if slot.part.kind is PayloadKind.GRADIENT]
        sums = {(slot.block, slot.part): torch.zeros(slot.rows, slot.cols, device=self._device) for slot in slots}
        factors = {key: self._factor(*key, plan) for key in sums}
        count = 0
        for micro in range(1, self.manifest.config.periods.micro_batches + 1):
            if should_stop():
                break
            if self._backward(self.batches(plan.first_step, micro).to(self._device)) is None:
                continue
            count += 1
            for (index, part), factor in factors.items():
                sums[index, part] += self._measure(index, part, factor)
        return {key: total / max(count, 1) for key, total in sums.items()}  # zeros if no gradient was finite

    def _factor(self, index: int, part: Part, plan: RoundPlan) -> Tensor | None:
        """Return what gradients are multiplied by: the test matrix of a range sketch, the range of a projection."""
        basis, block = self.consensus.bases[index], self.manifest.blocks[index]
        if part is Part.RANGE:
            right = basis.right_float().to(self._device)
            return draw_test_matrix(right, width=block.sketch_width, seed=plan.seed, block=index, round=plan.round)
        if part is Part.PROJECTION:
            return known_range(basis, block.sketch_width).to(self._device, torch.float32)
        return None

    def _measure(self, index: int, part: Part, factor: Tensor | None) -> Tensor:
        gradient = self._parameters[self.manifest.blocks[index].name].grad
        assert gradient is not None, "every low-rank block takes part in the loss"
        if factor is not None:
            return (range_sketch if part is Part.RANGE else projection)(gradient, factor)
        return column_energies(gradient if part is Part.ENERGY_LEFT else gradient.mT)[None].to(gradient)
