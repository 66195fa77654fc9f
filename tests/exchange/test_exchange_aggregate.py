"""The mean of contributions."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.config.layout import Part, Slot
from tsr_swarm.exchange.aggregate import WeightedPayload, weighted_mean
from tsr_swarm.lowrank.grid import quantise_rows


@given(seed=st.integers(0, 2**31), weights=st.lists(st.integers(1, 10**6), min_size=1, max_size=5))
def test_the_mean_is_weighted_by_tokens_and_does_not_depend_on_the_order(seed: int, weights: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    slot = Slot(0, Part.CORE, 3, 4, 8, 3)
    contributions = [
        WeightedPayload(number, tokens, {slot: quantise_rows(torch.randn(3, 4, generator=generator), 8)})
        for number, tokens in enumerate(weights, 1)
    ]
    mean = weighted_mean(contributions, [slot])[slot]
    assert torch.equal(mean, weighted_mean(contributions[::-1], [slot])[slot])
    expected = sum(c.grids[slot].numbers() * c.tokens for c in contributions) / sum(weights)
    assert torch.allclose(mean, expected, rtol=1e-12, atol=1e-12)
