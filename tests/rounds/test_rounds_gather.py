"""Averages are collected from their reducers, and a reducer that is gone costs its own shards only."""

from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.rounds import gather as ga
from tsr_swarm.rounds.gather import Ask, Complete, Gather, ShardDigest

REDUCERS = ("a", "b", "b", "c")


def of(shard: int) -> ShardDigest:
    return ShardDigest(frozenset({"p"}), f"digest-{shard}")


def begun() -> Gather:
    return Gather(7, REDUCERS, 100.0)


def test_everybody_is_asked_once_for_all_its_shards_and_again_a_second_later() -> None:
    gather, asks = ga.progress(begun(), (), 100.0)
    assert asks == [Ask("a", (0,)), Ask("b", (1, 2)), Ask("c", (3,))]
    gather = ga.result(gather, "b", 1, of(1), 100.2)
    gather, asks = ga.progress(gather, (), 100.5)
    assert asks == []
    _, asks = ga.progress(gather, (), 101.0)
    assert asks == [Ask("a", (0,)), Ask("b", (2,)), Ask("c", (3,))]


def test_the_first_answer_of_the_right_reducer_counts() -> None:
    gather = ga.result(begun(), "a", 1, of(9), 100.1)
    gather = ga.result(gather, "b", 1, of(1), 100.2)
    gather = ga.result(gather, "b", 1, of(2), 100.3)
    gather = ga.result(gather, "b", 17, of(2), 100.3)
    assert gather.results == {1: of(1)}


def test_who_is_gone_leaves_its_shards_void_at_once() -> None:
    gather = begun()
    for shard in (0, 3):
        gather = ga.result(gather, REDUCERS[shard], shard, of(shard), 100.5)
    _, done = ga.progress(gather, ["b"], 100.6)
    assert done == [Complete((of(0), ShardDigest(), ShardDigest(), of(3)))]


@given(answered=st.sets(st.integers(0, 3)), seconds=st.floats(0.0, 3.0))
def test_it_ends_in_time_whoever_is_silent(answered: set[int], seconds: float) -> None:
    gather = begun()
    for shard in sorted(answered):
        gather = ga.result(gather, REDUCERS[shard], shard, of(shard), 100.0 + seconds)
    assert gather.deadline <= 100.0 + 2 * ga.PATIENCE_SECONDS + 3 * seconds
    _, done = ga.progress(gather, (), gather.deadline)
    expected = tuple(of(shard) if shard in answered else ShardDigest() for shard in range(4))
    assert done == [Complete(expected)]
