"""Rounding a slot's numbers to its grid: the one place where uploads and publications choose it.

Moments of cores follow DES-LOC (Iacob et al., arXiv 2505.22549, Algorithm 1): all peers write theirs in the same bases,
so the mean of their moments is a moment as well. Departures: what is averaged is bias-corrected, and each peer applies
its own correction again, which is the mean of the states themselves where all have taken as many steps; moments travel
in 16 bits; and those of dense blocks (norms, biases) stay with their peers. LoRDO's low-rank moments go the same way.
Moments are no part of the consensus: a void round, or a peer without steps, changes only how fast it learns.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from tsr_swarm.config.layout import Part, Slot
from tsr_swarm.lowrank.grid import (
    Grid,
    powers_of_two,
    quantise_block,
    quantise_coarse,
    quantise_dead_zone,
    quantise_rows,
)
from tsr_swarm.optim.block_state import BlockState
from tsr_swarm.optim.inner_optimizer import InnerOptimizer

GradientSketches = Mapping[tuple[int, Part], Tensor]  # what a peer measured of its gradients, by block and part


def quantise_slot(x: Tensor, slot: Slot) -> Grid:
    """Round ``x`` (rows, cols) as ``slot`` travels; what is dropped is ``x - grid.numbers()``.

    Raises RunError for numbers that are not finite.
    """
    if slot.density < 1:
        return quantise_dead_zone(x, slot.density, slot.bits)
    if slot.mantissas:
        return quantise_coarse(x, slot.bits, slot.exponents, _noise_seed(x, slot) if slot.stochastic else None)
    return quantise_block(x, slot.bits) if slot.exponents == 1 else quantise_rows(x, slot.bits)


def _noise_seed(x: Tensor, slot: Slot) -> int:
    """Return a seed that follows from the slot and the numbers themselves.

    They differ from round to round and from peer to peer, so the noise does too and averages out, and rounding the
    same numbers twice gives the same bytes.
    """
    numbers = x.detach().to("cpu", torch.float64).contiguous().numpy()
    name = hashlib.blake2b(f"rounding/{slot.block}/{slot.part}/".encode(), digest_size=4)
    name.update(numbers.tobytes())
    return int.from_bytes(name.digest(), "little")


def gradient_grid(slot: Slot, gradients: GradientSketches) -> Grid:
    """Round what was measured of gradients. It only aims a basis, so no residual is kept."""
    return quantise_slot(gradients[slot.block, slot.part], slot)


def moment_grid(slot: Slot, state: BlockState, inner: InnerOptimizer) -> Grid:
    """Round a block's moment as ``slot`` sends it: bias-corrected, all zero before the first step."""
    moment, correction = _moment(slot, state, inner)
    return quantise_slot(moment / correction if correction else moment, slot)


def take_moment(slot: Slot, grid: Grid, state: BlockState, inner: InnerOptimizer) -> None:
    """Replace a block's moment by the published average, as it would be after this peer's own steps.

    Steps are divided by the root of a second moment, so one that was rounded to zero (or is negative, which a correct
    average never is) becomes half a step of its row's grid, the most that it can have been.
    """
    moment, correction = _moment(slot, state, inner)
    numbers = grid.numbers()
    if slot.part is Part.MOMENT_SECOND:
        numbers = numbers.maximum(powers_of_two(grid.exponents.tolist())[:, None] / 2)
    moment.copy_(numbers * correction)


def _moment(slot: Slot, state: BlockState, inner: InnerOptimizer) -> tuple[Tensor, float]:
    index = 0 if slot.part is Part.MOMENT_FIRST else 1
    moment = (state.first, state.second)[index]
    assert moment is not None, "a run without second moments has no period for them"
    return moment, inner.corrections(state.steps)[index]
