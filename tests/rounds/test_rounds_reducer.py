"""Which contributions count, and the mean of those that do."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.config.layout import Part, Slot
from tsr_swarm.exchange.aggregate import WeightedPayload, weighted_mean
from tsr_swarm.lowrank.grid import quantise_rows
from tsr_swarm.rounds.reducer import ReducerState, close, included, is_complete, offer

offers = st.tuples(st.integers(1, 3), st.sampled_from("abc"), st.integers(0, 1), st.booleans())


@given(calls=st.lists(offers, max_size=30))
def test_a_contribution_counts_at_most_once_and_only_in_time(calls: list[tuple[int, str, int, bool]]) -> None:
    state = ReducerState(round=2, shards=2)
    kept: list[tuple[str, int]] = []
    for round, peer, shard, closes in calls:
        was_open = state.is_open
        state, verdict = offer(state, round, peer, shard, tokens=10)
        if verdict.is_new:
            kept.append((peer, shard))
            assert was_open
            assert round == 2
        assert verdict.counted == (round == 2 and (peer, shard) in kept)
        if closes:
            state = close(state)
    assert len(kept) == len(set(kept))
    assert set(state.held) == set(kept)


def test_a_shard_below_the_quorum_is_void_and_the_rest_stand() -> None:
    state = ReducerState(round=1, shards=2)
    for peer, shard in (("a", 0), ("b", 0), ("a", 1)):
        state, _ = offer(state, 1, peer, shard, tokens=1)
    assert included(state, 0, quorum=2) == {"a", "b"}
    assert included(state, 1, quorum=2) == frozenset()
    assert is_complete(state, "a")
    assert not is_complete(state, "b")


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
