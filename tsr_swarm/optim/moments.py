"""What peers exchange of the moments of their cores, at periods of their own.

DES-LOC (Iacob et al., arXiv 2505.22549, Algorithm 1) on the r x r numbers of a core: all peers write theirs in the same
bases, so the mean of their moments is one as well. Departures: what is averaged is bias-corrected, and each peer puts
its own correction back, which is the mean of the states themselves where all have taken as many steps; moments travel
in 16 bits; and those of dense blocks (norms, biases) stay with their peers.

Moments are no part of the consensus: a void round, or a peer without any steps, changes nothing but how fast it learns.
"""

from torch import Tensor

from tsr_swarm.config.layout import Part, Slot
from tsr_swarm.lowrank.grid import Grid, powers_of_two
from tsr_swarm.optim.block_state import BlockState
from tsr_swarm.optim.inner_optimizer import InnerOptimizer
from tsr_swarm.optim.quantise import quantise_slot


def moment_grid(slot: Slot, state: BlockState, inner: InnerOptimizer) -> Grid:
    """A core's moment as ``slot`` sends it: bias-corrected, all zero before the first step."""
    moment, correction = _moment(slot, state, inner)
    return quantise_slot(moment / correction if correction else moment, slot)


def take_moment(slot: Slot, grid: Grid, state: BlockState, inner: InnerOptimizer) -> None:
    """Replace a core's moment by the published average, as it would be after this peer's own steps.

    Steps are divided by the root of a second moment, so one that was rounded to zero (or is negative, which no honest
    average is) becomes half a step of its row's grid, the most that it can have been.
    """
    moment, correction = _moment(slot, state, inner)
    numbers = grid.numbers()
    if slot.part is Part.MOMENT_SECOND:
        numbers = numbers.maximum(powers_of_two(grid.exponents.tolist())[:, None] / 2)
    moment.copy_(numbers * correction)


def _moment(slot: Slot, state: BlockState, inner: InnerOptimizer) -> tuple[Tensor, float]:
    """The moment that ``slot`` is of, and its bias correction."""
    place = 0 if slot.part is Part.MOMENT_FIRST else 1
    moment = (state.first, state.second)[place]
    assert moment is not None, "a run without second moments has no period for them"
    return moment, inner.corrections(state.steps)[place]
