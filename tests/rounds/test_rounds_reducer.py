"""Little moves without a reason, and a contribution counts once, in time, and in no shard below the quorum."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures import started_node
from tsr_swarm.rounds.protocol import Average, Close, Offered, Reply, Send, ShardDigest, ShardDone
from tsr_swarm.rounds.reducer import SLACK, assign, close_shards, take_offer

names = st.sets(st.sampled_from([f"node-{number}" for number in range(12)]), min_size=1)
sizes = st.lists(st.integers(1, 50), min_size=1, max_size=16)


@given(sizes=sizes, nodes=names)
def test_every_shard_has_one_reducer_and_no_node_has_far_more_than_others(sizes: list[int], nodes: set[str]) -> None:
    reducers = assign(sizes, sorted(nodes))
    assert reducers == assign(sizes, sorted(nodes, reverse=True)), "the order in which nodes are named changes nothing"
    assert len(reducers) == len(sizes)
    assert set(reducers) <= nodes
    loads = {node: [size for size, reducer in zip(sizes, reducers, strict=True) if reducer == node] for node in nodes}
    even = sum(sizes) / len(nodes)
    assert all(sum(load) <= max(SLACK * even, even + max(sizes)) for load in loads.values())


@given(sizes=sizes, nodes=names, data=st.data())
def test_only_the_shards_of_a_node_that_is_gone_move(sizes: list[int], nodes: set[str], data: st.DataObject) -> None:
    before = assign(sizes, nodes)
    gone = data.draw(st.sampled_from(sorted(nodes)))
    here = nodes - {gone}
    if not here:
        with pytest.raises(ValueError, match="0 nodes"):
            assign(sizes, here)
        return
    after = assign(sizes, here, dict(enumerate(before)))
    assert all(old == new for old, new in zip(before, after, strict=True) if old != gone)
    assert set(after) <= here


def test_a_new_node_takes_about_its_share_of_many_equal_shards() -> None:
    shards = [1] * 64
    before = assign(shards, [f"node-{number}" for number in range(7)])
    after = assign(shards, [f"node-{number}" for number in range(8)])
    assert sum(old != new for old, new in zip(before, after, strict=True)) <= 24


CLOSE = Close(term=1, round=2, parent="", shards=(0, 1), admitted=frozenset("ab"))
offers = st.tuples(st.integers(1, 3), st.sampled_from("abc"), st.integers(0, 1), st.booleans())


def offered(peer: str, shard: int, round: int = 2) -> Offered:
    return Offered(peer, term=1, round=round, parent="", shard=shard, tokens=10)


@given(calls=st.lists(offers, max_size=30))
def test_a_contribution_counts_at_most_once_and_only_in_time(calls: list[tuple[int, str, int, bool]]) -> None:
    node, _ = take_offer(started_node("r"), offered("first", 0))
    kept = [("first", 0)]
    for round, peer, shard, closes in calls:
        was_open = node.reducer.is_open
        node, (reply,) = take_offer(node, offered(peer, shard, round))
        assert isinstance(reply, Reply)
        if reply.verdict.is_new:
            kept.append((peer, shard))
            assert was_open
            assert round == 2
        assert reply.verdict.counted == (round == 2 and (peer, shard) in kept)
        if closes:
            node, _ = close_shards(node, "c", CLOSE)
    assert len(kept) == len(set(kept))
    assert set(node.reducer.held) == set(kept)


def test_a_shard_below_the_quorum_is_void_and_the_rest_stand() -> None:
    node = started_node("r", quorum=2)
    for peer, shard in (("a", 0), ("b", 0), ("c", 0), ("a", 1), ("c", 1)):
        node, _ = take_offer(node, offered(peer, shard))
    _, actions = close_shards(node, "c", CLOSE)
    assert actions == [Average(1, 2, {0: frozenset("ab")}), Send("c", ShardDone(1, 2, 1, ShardDigest()))]
