"""Rounds or the state, whom to ask for a header, and sharing the chunks of a state out among donors."""

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.rounds.catch_up import (
    BRANCHES,
    MAX_CHUNKS,
    MOST_HEADER_DONORS,
    ChunkSchedule,
    choose_way,
    donors_of_header,
)


@given(
    applied=st.integers(0, 50),
    rounds=st.integers(0, 10**9),
    state_round=st.integers(0, 50),
    state=st.integers(1, 10**9),
    rest=st.integers(0, 10**9),
)
def test_the_way_with_fewer_bytes_is_chosen_and_no_older_state(
    applied: int, rounds: int, state_round: int, state: int, rest: int
) -> None:
    way = choose_way(applied, round_bytes=rounds, state_round=state_round, state_bytes=state, rest_bytes=rest)
    assert way.reason
    if not rounds:
        assert way.takes_state, "there is no other way"
    elif state_round <= applied:
        assert not way.takes_state
    else:
        assert way.takes_state == (state + rest < rounds)


def test_the_reason_compares() -> None:
    way = choose_way(3, round_bytes=2_000_000, state_round=20, state_bytes=232_000_000, rest_bytes=100_000)
    assert way.reason == "2.00 MB of rounds instead of 232 MB with the state"


names = st.sets(st.sampled_from([f"node-{number}" for number in range(12)]), min_size=1)
chains = st.text("0123456789abcdef", max_size=8)


@given(nodes=names, chain=chains)
def test_a_peer_asks_some_that_reduced_shards_for_the_header(nodes: set[str], chain: str) -> None:
    donors = donors_of_header("peer", chain, sorted(nodes) * 2)
    assert donors == donors_of_header("peer", chain, sorted(nodes, reverse=True))
    assert set(donors) <= nodes
    assert len(set(donors)) == len(donors) == min(MOST_HEADER_DONORS, len(nodes))


@given(count=st.integers(1, 60), chain=chains)
def test_nodes_that_reduced_shards_pass_the_header_on_from_a_few_to_all_and_none_waits_in_a_circle(
    count: int, chain: str
) -> None:
    nodes = [f"node-{number}" for number in range(count)]
    above = {node: donors_of_header(node, chain, nodes) for node in nodes}
    have = {node for node in nodes if not above[node]}
    assert len(have) == min(BRANCHES, count)  # they ask elsewhere
    given = Counter(donor for donors in above.values() for donor in donors)
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
        asked = Counter(donor for peer in peers for donor in donors_of_header(peer, chain, sources)[:1])
        ((node, most),) = asked.most_common(1)
        assert most <= 12 + BRANCHES
        busiest.append(node)
    assert len(set(busiest)) > 1


DONORS = ["a", "b", "c", "d"]


def check(state: ChunkSchedule) -> None:
    """Nothing is lost, and what is under way is bounded."""
    asked = [chunk for wanted in state.asked.values() for chunk in wanted if chunk in state.missing]
    assert all(asked.count(chunk) <= 2 for chunk in asked)
    assert set(state.asked) <= state.donors
    assert sum(len(wanted) for wanted in state.asked.values()) <= MAX_CHUNKS * len(state.donors)
    idle = state.donors - set(state.asked)
    if state.missing - set(asked) and idle:
        _, wanted = state.next_range(min(idle))
        assert wanted is not None, "what nobody was asked for can be asked for"
        assert set(wanted) <= state.missing


@given(chunks=st.frozensets(st.integers(0, 60)), donors=st.integers(1, 4), choices=st.data())
def test_every_chunk_comes_as_long_as_one_donor_gives_and_nothing_is_lost_when_others_fail(
    chunks: frozenset[int], donors: int, choices: st.DataObject
) -> None:
    """Donors give one chunk at a time, end their answers early or fail, in any order; the last one only gives."""
    state = ChunkSchedule(chunks, frozenset(DONORS[:donors]))
    streams: dict[str, list[int]] = {}
    for _ in range(100_000):
        check(state)
        for donor in sorted(state.donors - set(state.asked)):
            state, wanted = state.next_range(donor)
            if wanted is not None:
                assert state.missing.issuperset(wanted)
                streams[donor] = list(wanted)
        check(state)
        if state.is_complete:
            break
        assert state.asked, "something is always under way"
        donor = choices.draw(st.sampled_from(sorted(state.asked)))
        what = choices.draw(st.sampled_from(["give", "give", "give", "end", "fail"]))
        if what == "fail" and len(state.donors) > 1:
            state = state.drop_donor(donor)
        elif what == "end" and len(state.donors) > 1:
            state = state.end_answer(donor).drop_donor(donor)  # too little is as good as nothing
        elif streams[donor]:
            state = state.add_chunk(streams[donor].pop(0))
        if donor in state.asked and not state.due_from(donor):
            state = state.end_answer(donor)
    assert state.is_complete


def test_a_single_donor_is_asked_for_every_chunk_once_in_order() -> None:
    state, asked = ChunkSchedule(frozenset(range(40)), frozenset({"a"})), []
    while not state.is_complete:
        state, wanted = state.next_range("a")
        asked += list(wanted)
        for chunk in wanted:
            state = state.add_chunk(chunk)
        state = state.end_answer("a")
    assert asked == list(range(40))


def test_a_donor_that_is_done_takes_the_far_half_of_the_slowest_and_two_are_asked_for_a_last_chunk() -> None:
    state = ChunkSchedule(frozenset(range(8)), frozenset({"slow", "quick"}))
    ranges = {}
    for donor in ("slow", "quick"):
        state, ranges[donor] = state.next_range(donor)
    assert ranges == {"slow": range(2), "quick": range(2, 3)}
    while state.missing - {0, 1}:
        for chunk in state.asked["quick"]:
            state = state.add_chunk(chunk)
        state, _ = state.end_answer("quick").next_range("quick")
    assert state.asked["quick"] == range(1, 2)
    state = state.add_chunk(1).end_answer("quick")
    state, last = state.next_range("quick")
    assert last == range(1)
    state = state.add_donor("third")
    assert state.next_range("third")[1] is None, "two are enough"
    assert state.drop_donor("slow").next_range("third")[1] == range(1)
