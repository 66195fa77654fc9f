"""Each slot on its grid."""

from collections.abc import Callable

import pytest
import torch

from tests.optim.swarms import WIRES
from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.config.layout import FEW_BITS, Part, Slot, published_slots, upload_slots
from tsr_swarm.config.round_plan import Due
from tsr_swarm.config.run import WireConfig
from tsr_swarm.lowrank.grid import quantise_block, quantise_coarse, quantise_rows
from tsr_swarm.optim.quantise import quantise_slot
from tsr_swarm.wire.codec import decode, encode

BLOCKS = (
    Block(name="a", rows=12, cols=9, rank=6, role=BlockRole.MATRIX),
    Block(name="b", rows=10, cols=8, rank=5, role=BlockRole.EMBEDDING),
)
DUES = [Due(), Due(tangent=frozenset({0, 1})), Due(tangent=frozenset({1}), aim=frozenset({0, 1}))]
MADE = (Part.BASIS_LEFT, Part.BASIS_RIGHT, Part.FACTOR_LEFT, Part.FACTOR_RIGHT)  # not rounded from a mean


def numbers_for(slot: Slot, seed: int = 0) -> torch.Tensor:
    return torch.randn(slot.rows, slot.cols, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("due", DUES)
@pytest.mark.parametrize("layout", [upload_slots, published_slots])
def test_every_slot_gets_a_grid_that_travels(
    wire: WireConfig, due: Due, layout: Callable[[tuple[Block, ...], Due, WireConfig], tuple[Slot, ...]]
) -> None:
    slots = tuple(slot for slot in layout(BLOCKS, due, wire) if slot.part not in MADE)
    grids = {slot: quantise_slot(numbers_for(slot), slot) for slot in slots}

    decoded = decode(slots, *encode(slots, grids, 1))

    for slot in slots:
        assert torch.equal(decoded[slot].numbers(), grids[slot].numbers())
        assert (grids[slot].exponents.numel(), grids[slot].mantissas.numel()) == (slot.exponents, slot.mantissas)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("due", DUES)
def test_what_is_published_has_one_exponent_and_sketches_keep_their_bits(wire: WireConfig, due: Due) -> None:
    for slot in published_slots(BLOCKS, due, wire):
        if slot.part in (Part.TANGENT_LEFT, Part.TANGENT_RIGHT):
            assert slot.bits >= wire.sketch_bits
            assert slot.density == 1
        assert slot.exponents <= 1
        assert bool(slot.mantissas) == (slot.bits <= FEW_BITS or slot.density < 1)


def test_more_than_four_bits_of_full_density_have_steps_of_powers_of_two() -> None:
    upload, published = Slot(0, Part.CORE, 4, 4, 8, 4), Slot(0, Part.CORE, 4, 4, 16, 1)
    x = numbers_for(upload)

    assert torch.equal(quantise_slot(x, upload).values, quantise_rows(x, 8).values)
    assert torch.equal(quantise_slot(x, published).values, quantise_block(x, 16).values)


def test_stochastic_rounding_differs_by_peer_and_block_and_repeats_itself() -> None:
    here, there = (Slot(block, Part.CORE, 8, 8, 4, 8, 8, stochastic=True) for block in (0, 1))
    x = numbers_for(here)
    other = x + 2.0**-40  # another peer's numbers, as good as the same

    first = quantise_slot(x.double(), here)

    assert torch.equal(first.values, quantise_slot(x.double(), here).values)
    assert not torch.equal(first.values, quantise_slot(x.double(), there).values)
    assert not torch.equal(first.values, quantise_slot(other.double() + 2.0**-40, here).values)
    assert not torch.equal(first.values, quantise_coarse(x, 4, 8).values)
    assert torch.equal(first.mantissas, quantise_coarse(x, 4, 8).mantissas)
