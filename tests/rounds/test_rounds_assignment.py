"""Which node reduces which shard, and which nodes vote: little changes without a reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.rounds.assignment import MOST_VOTERS, SLACK, assign, next_voters

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


# --- voters -----------------------------------------------------------------------------------------------------------

letters = st.sampled_from("abcdefgh")


@given(voters=st.sets(letters, min_size=1, max_size=5), serving=st.lists(letters, unique=True, max_size=8))
def test_voters_are_an_odd_number_of_serving_nodes_and_change_seldom(voters: set[str], serving: list[str]) -> None:
    chosen = next_voters(voters, serving, "a")
    assert chosen == tuple(sorted(chosen))
    assert next_voters(chosen, serving, "a") == chosen
    if not serving:
        assert set(chosen) == voters
        return
    assert len(chosen) % 2 == 1
    assert len(chosen) <= MOST_VOTERS
    assert set(chosen) <= set(serving)
    assert "a" in chosen or "a" not in serving, "the coordinator votes wherever it serves"
    if set(chosen) - voters - {"a"}:
        assert voters & set(serving) <= set(chosen), "only the coordinator, or fewer voters, replace one that serves"


def test_one_two_and_three_nodes() -> None:
    assert next_voters(["a"], ["a"], "a") == ("a",)
    assert next_voters(["a"], ["a", "b"], "a") == ("a",)
    assert next_voters(["a"], ["a", "b", "c"], "a") == ("a", "b", "c")
    assert next_voters(["a", "b", "c"], ["b", "c"], "a") == ("b",)
