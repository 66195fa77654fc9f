"""Shards and their reducers: each has one, loads are even, and little moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.rounds.shard_assignment import SLACK, assign

names = st.sets(st.sampled_from([f"node-{number}" for number in range(12)]), min_size=1)
sizes = st.lists(st.integers(1, 50), min_size=1, max_size=16)


@given(sizes=sizes, nodes=names)
def test_every_shard_has_one_reducer_that_is_here_and_nobody_has_far_more_than_others(
    sizes: list[int], nodes: set[str]
) -> None:
    reducers = assign(sizes, nodes)
    assert len(reducers) == len(sizes)
    assert set(reducers) <= nodes
    loads = {node: [size for size, reducer in zip(sizes, reducers, strict=True) if reducer == node] for node in nodes}
    even = sum(sizes) / len(nodes)
    assert all(sum(load) <= max(SLACK * even, even + max(sizes)) for load in loads.values())


@given(sizes=sizes, nodes=names)
def test_the_order_in_which_nodes_are_named_changes_nothing(sizes: list[int], nodes: set[str]) -> None:
    assert assign(sizes, sorted(nodes)) == assign(sizes, sorted(nodes, reverse=True))


@given(sizes=sizes, nodes=names, data=st.data())
def test_what_is_kept_stays_and_only_shards_of_who_is_gone_move(
    sizes: list[int], nodes: set[str], data: st.DataObject
) -> None:
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


def test_of_many_equal_shards_a_newcomer_takes_about_its_share() -> None:
    shards = [1] * 64
    before = assign(shards, [f"node-{number}" for number in range(7)])
    after = assign(shards, [f"node-{number}" for number in range(8)])
    assert sum(old != new for old, new in zip(before, after, strict=True)) <= 24
