"""Which contributions count."""

from hypothesis import given
from hypothesis import strategies as st

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
