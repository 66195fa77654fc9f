"""Averages are collected from their reducers, and a reducer that is gone costs its own shards only."""

from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.rounds.gather import PATIENCE_SECONDS, Gather, ShardDigest, missing_shards, take_answer

REDUCERS = ("a", "b", "b", "c")
VOID = ShardDigest()


def digest(shard: int) -> ShardDigest:
    return ShardDigest(frozenset({"p"}), f"digest-{shard}")


def begun() -> Gather:
    return Gather(7, REDUCERS, 100.0)


def test_every_reducer_is_asked_for_all_its_shards_that_are_missing() -> None:
    assert missing_shards(begun(), (), 100.0) == {"a": (0,), "b": (1, 2), "c": (3,)}
    gather = take_answer(begun(), "b", 1, digest(1), 100.2)
    assert missing_shards(gather, (), 100.5) == {"a": (0,), "b": (2,), "c": (3,)}


def test_the_first_answer_of_the_right_reducer_counts() -> None:
    gather = begun()
    for sender, shard, result in (("a", 1, 9), ("b", 1, 1), ("b", 1, 2), ("b", 17, 2)):
        gather = take_answer(gather, sender, shard, digest(result), 100.1)
    assert gather.answers == {1: digest(1)}


def test_the_shards_of_a_reducer_that_is_gone_are_void_at_once() -> None:
    gather = begun()
    for shard in (0, 3):
        gather = take_answer(gather, REDUCERS[shard], shard, digest(shard), 100.5)
    assert missing_shards(gather, ["b"], 100.6) == {}
    assert gather.results == (digest(0), VOID, VOID, digest(3))


@given(answered=st.sets(st.integers(0, 3)), seconds=st.floats(0.0, 3.0))
def test_it_ends_in_time_whoever_is_silent(answered: set[int], seconds: float) -> None:
    gather = begun()
    for shard in sorted(answered):
        gather = take_answer(gather, REDUCERS[shard], shard, digest(shard), 100.0 + seconds)
    assert gather.deadline <= 100.0 + 2 * PATIENCE_SECONDS + 3 * seconds
    assert missing_shards(gather, (), gather.deadline) == {}
    assert gather.results == tuple(digest(shard) if shard in answered else VOID for shard in range(4))
