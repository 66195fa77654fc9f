"""Shards and their reducers: each has one, loads are even, and little moves."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.rounds.shards import BRANCHES, MOST_GIVERS, SLACK, assign, header_givers

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


chains = st.text("0123456789abcdef", max_size=8)


@given(nodes=names, chain=chains)
def test_a_peer_asks_some_who_made_shards_for_the_header(nodes: set[str], chain: str) -> None:
    givers = header_givers("peer", chain, sorted(nodes) * 2)
    assert givers == header_givers("peer", chain, sorted(nodes, reverse=True))
    assert set(givers) <= nodes
    assert len(set(givers)) == len(givers) == min(MOST_GIVERS, len(nodes))


@given(count=st.integers(1, 60), chain=chains)
def test_those_who_made_shards_hand_the_header_on_from_a_few_to_all_and_nobody_waits_in_a_circle(
    count: int, chain: str
) -> None:
    nodes = [f"node-{number}" for number in range(count)]
    above = {node: header_givers(node, chain, nodes) for node in nodes}
    have = {node for node in nodes if not above[node]}
    assert len(have) == min(BRANCHES, count)  # they ask elsewhere
    given = Counter(giver for givers in above.values() for giver in givers)
    assert max(given.values(), default=0) <= BRANCHES
    levels = 1
    while len(have) < count:
        have |= {node for node in nodes if have.intersection(above[node])}
        levels += 1
    assert levels <= 1 + math.log(count, BRANCHES)


def test_nobody_gives_the_header_to_many_and_nobody_to_most_in_every_round() -> None:
    sources = [f"node-{number}" for number in range(129)]
    peers = [*sources, *(f"peer-{number}" for number in range(384))]
    busiest = []
    for chain in ("a", "b", "c"):
        asked = Counter(giver for peer in peers for giver in header_givers(peer, chain, sources)[:1])
        ((node, most),) = asked.most_common(1)
        assert most <= 12 + BRANCHES
        busiest.append(node)
    assert len(set(busiest)) > 1
