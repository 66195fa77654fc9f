"""What a reducer publishes: the mean on its grid, and the bases that follow from it.

All peers apply what is published, the reducer included, so nothing here has to be reproducible elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from tsr_swarm.config.blocks import Block
from tsr_swarm.config.layout import Part, Slot
from tsr_swarm.config.run import OptimizerConfig
from tsr_swarm.errors import RunError
from tsr_swarm.lowrank.basis import Basis, unscaled_grid
from tsr_swarm.lowrank.dct import flags, strongest
from tsr_swarm.lowrank.grid import Grid, dense_grid
from tsr_swarm.lowrank.randomized_svd import known_range, range_basis, singular_vectors
from tsr_swarm.optim.outer_step import OuterState, keep_dropped, outer_step, require_finite
from tsr_swarm.optim.quantise import quantise_slot

_CHOSEN_BY = {Part.COLUMNS_LEFT: Part.ENERGY_LEFT, Part.COLUMNS_RIGHT: Part.ENERGY_RIGHT}


def publish_step(
    mean: Mapping[Slot, Tensor],
    slots: Sequence[Slot],
    blocks: Sequence[Block],
    bases: Mapping[int, Basis],
    optimizer: OptimizerConfig,
    state: OuterState,
) -> tuple[dict[Slot, Grid], OuterState]:
    """Take the outer step from ``mean`` and ``publish`` it. Returns the grids and the state after it, in ``bases``.

    What the grids of cores drop stays in that state and goes out with the next step, as far as the next basis holds
    it. ``state`` is left as it is. Raises RunError for numbers that are not finite.
    """
    wanted, after = outer_step(mean, state, optimizer, bases)
    grids = publish(wanted, slots, blocks, bases)
    kept = keep_dropped(after, wanted, grids)
    require_finite(kept)
    return grids, kept


def publish(
    mean: Mapping[Slot, Tensor], slots: Sequence[Slot], blocks: Sequence[Block], bases: Mapping[int, Basis]
) -> dict[Slot, Grid]:
    """Fill the published ``slots`` from the ``mean`` (float64, by upload slot) of what was included.

    Cores and tangent sketches are quantised with one exponent a block; dense numbers stay float32. A range and singular
    vectors come from the mean sketch and projection of gradients, see lowrank/randomized_svd.py. What cannot aim a side
    publishes zeros for it. Raises RunError for a mean that is missing or not finite.
    """
    by_part = {(slot.block, slot.part): numbers for slot, numbers in mean.items()}
    published: dict[Slot, Grid] = {}
    grids: dict[tuple[int, Part], Grid] = {}  # right singular vectors are made with the left ones
    for slot in slots:
        if slot.part is Part.RANGE:
            sketch = _mean_of(by_part, slot, slot.part, blocks)
            grid = unscaled_grid(range_basis(sketch, bases[slot.block], slot.bits))
        elif slot.part is Part.SINGULAR_LEFT:
            whole = replace(slot, rows=slot.cols, cols=blocks[slot.block].cols)
            projected = _mean_of(by_part, whole, Part.PROJECTION, blocks)
            left, right = singular_vectors(known_range(bases[slot.block], slot.cols), projected, slot.rows, slot.bits)
            grid, grids[slot.block, Part.SINGULAR_RIGHT] = unscaled_grid(left), unscaled_grid(right)
        elif slot.part is Part.SINGULAR_RIGHT:
            grid = grids[slot.block, slot.part]
        elif slot.part in _CHOSEN_BY:
            energies = _mean_of(by_part, slot, _CHOSEN_BY[slot.part], blocks)
            rank = blocks[slot.block].ranks[slot.part is Part.COLUMNS_RIGHT]
            grid = unscaled_grid(flags(strongest(energies, rank), slot.cols))
        else:
            numbers = _mean_of(by_part, slot, slot.part, blocks)
            grid = dense_grid(numbers) if slot.part is Part.DENSE else quantise_slot(numbers, slot)
        published[slot] = grids[slot.block, slot.part] = grid
    return published


def _mean_of(by_part: Mapping[tuple[int, Part], Tensor], slot: Slot, part: Part, blocks: Sequence[Block]) -> Tensor:
    numbers = by_part.get((slot.block, part))
    if numbers is None or tuple(numbers.shape) != (slot.rows, slot.cols):
        found = "nothing" if numbers is None else f"shape {tuple(numbers.shape)}"
        raise RunError(
            f"The mean of '{part}' of block '{blocks[slot.block].name}' must be {slot.rows} x {slot.cols}, "
            f"but there is {found}; the round cannot be published."
        )
    return numbers
