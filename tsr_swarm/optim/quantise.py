"""Which grid a slot's numbers are rounded to: the one place where uploads and publications choose it."""

import hashlib

import torch
from torch import Tensor

from tsr_swarm.config.layout import Slot
from tsr_swarm.lowrank.coarse import quantise_coarse, quantise_dead_zone
from tsr_swarm.lowrank.grid import Grid, quantise_block, quantise_rows


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
    """A seed of the slot's place and of the numbers themselves.

    They differ from round to round and from peer to peer, so the noise does too and averages out, without a peer
    having to know its number; and rounding the same numbers twice gives the same bytes.
    """
    numbers = x.detach().to("cpu", torch.float64).contiguous().numpy()
    name = hashlib.blake2b(f"rounding/{slot.block}/{slot.part}/".encode(), digest_size=4)
    name.update(numbers.tobytes())
    return int.from_bytes(name.digest(), "little")
