"""What a reducer publishes for a mean: its grids, and bases that can be aimed or stay."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.optim.swarms import BLOCKS, DUES, LOW_RANK, SEEDS, draw_mean
from tests.steady import wide
from tsr_swarm.config.layout import Part, Slot, published_slots
from tsr_swarm.config.round_plan import Due
from tsr_swarm.config.run import WireConfig
from tsr_swarm.errors import RunError
from tsr_swarm.lowrank.basis import Basis, random_basis
from tsr_swarm.lowrank.grid import Grid, quantise_block
from tsr_swarm.optim.publish import publish

BASES = {i: random_basis(b.rows, b.cols, b.rank, 7, i) for i, b in enumerate(BLOCKS) if b.is_low_rank}

wires = st.builds(WireConfig, published_bits=st.sampled_from((8, 16)))


def publish_all(mean: dict[Slot, Tensor], due: Due) -> dict[tuple[int, Part], Grid]:
    grids = publish(mean, published_slots(BLOCKS, due, wide()), BLOCKS, BASES)
    return {(slot.block, slot.part): grid for slot, grid in grids.items()}


def zero(mean: dict[Slot, Tensor], block: int, part: Part) -> dict[Slot, Tensor]:
    return {slot: x * 0 if (slot.block, slot.part) == (block, part) else x for slot, x in mean.items()}


@settings(max_examples=40)
@given(DUES, wires, SEEDS)
def test_every_slot_is_filled_as_the_layout_says(due: Due, wire: WireConfig, seed: int) -> None:
    slots = published_slots(BLOCKS, due, wire)

    grids = publish(draw_mean(due, seed), slots, BLOCKS, BASES)

    assert tuple(grids) == slots
    for slot, grid in grids.items():
        assert tuple(grid.values.shape) == (slot.rows, slot.cols)
        assert grid.exponents.numel() == slot.exponents
        if slot.part is Part.DENSE:
            assert grid.values.dtype == torch.float32
        else:
            assert grid.values.dtype == torch.int32
            assert int(grid.values.abs().max()) < 2 ** (slot.bits - 1)


@settings(max_examples=40)
@given(DUES, SEEDS)
def test_the_mean_is_published_to_half_a_step(due: Due, seed: int) -> None:
    mean = draw_mean(due, seed)

    found = publish_all(mean, due)

    for slot, x in mean.items():
        if slot.part in (Part.CORE, Part.TANGENT_LEFT, Part.TANGENT_RIGHT):
            grid = found[slot.block, slot.part]
            assert float((grid.numbers() - x).abs().max()) <= math.ldexp(0.5, int(grid.exponents))
        elif slot.part is Part.DENSE:
            assert torch.equal(found[slot.block, slot.part].values, x.float())


def test_a_gradient_of_zeros_publishes_the_old_range_and_no_singular_vectors() -> None:
    due = Due(range=LOW_RANK, project=LOW_RANK)
    mean = zero(zero(draw_mean(due), 1, Part.RANGE), 1, Part.PROJECTION)

    found = publish_all(mean, due)

    q, u = found[1, Part.RANGE].values.double(), BASES[1].left_float(torch.float64)
    assert float((u - q.mT @ torch.linalg.lstsq(q.mT, u).solution).norm()) < 0.1 * float(u.norm())
    assert not found[1, Part.SINGULAR_LEFT].values.any()
    assert not found[1, Part.SINGULAR_RIGHT].values.any()
    assert found[0, Part.SINGULAR_LEFT].values.any()


def test_a_mean_that_is_missing_is_named() -> None:
    mean = {slot: x for slot, x in draw_mean(Due()).items() if slot.block != 1}
    with pytest.raises(RunError, match=r"'core' of block 'up.weight' must be 3 x 3, but there is nothing"):
        publish_all(mean, Due())


def test_a_mean_that_is_not_finite_is_refused() -> None:
    mean = {slot: x * math.nan if slot.block == 1 else x for slot, x in draw_mean(Due()).items()}
    with pytest.raises(RunError, match="not finite"):
        publish_all(mean, Due())


def test_only_the_slots_asked_for_are_published() -> None:
    slots = published_slots(BLOCKS, Due(), wide(), void=frozenset({0, 2}))
    mean = {slot: x for slot, x in draw_mean(Due()).items() if slot.block == 1}
    bases: dict[int, Basis] = {}

    grids = publish(mean, slots, BLOCKS, bases)

    wanted = quantise_block(next(iter(mean.values())), 16)
    assert [slot.block for slot in grids] == [1]
    assert torch.equal(grids[slots[0]].values, wanted.values)
