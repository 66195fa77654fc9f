"""Whom a peer asks for a round's header: a few of many, nobody too often, and nobody in a circle."""

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.rounds.header_tree import BRANCHES, MOST_GIVERS, header_givers

names = st.sets(st.sampled_from([f"node-{number}" for number in range(12)]), min_size=1)
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
