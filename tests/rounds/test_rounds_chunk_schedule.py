"""Sharing the chunks of a state out among donors that are slow, fail or lie, in any order."""

from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.rounds.chunk_schedule import MAX_CHUNKS, Sharing, answered, arrived, ask, failed, with_donor

DONORS = ["a", "b", "c", "d"]


def shared(chunks: int, donors: list[str]) -> Sharing:
    state = Sharing(frozenset(range(chunks)))
    for donor in donors:
        state = with_donor(state, donor)
    return state


def check(state: Sharing) -> None:
    """Nothing is lost, and what is under way is bounded."""
    asked = [chunk for wanted in state.asked.values() for chunk in wanted if chunk in state.missing]
    assert all(asked.count(chunk) <= 2 for chunk in asked)
    assert set(state.asked) <= state.donors
    assert sum(len(wanted) for wanted in state.asked.values()) <= MAX_CHUNKS * len(state.donors)
    idle = state.donors - set(state.asked)
    if state.missing - set(asked) and idle:
        _, wanted = ask(state, min(idle))
        assert wanted is not None, "what nobody was asked for can be asked for"
        assert set(wanted) <= state.missing


@given(chunks=st.integers(0, 60), donors=st.integers(1, 4), choices=st.data())
def test_every_chunk_comes_as_long_as_anybody_gives_and_nothing_is_lost_when_donors_fail(
    chunks: int, donors: int, choices: st.DataObject
) -> None:
    """Donors give one chunk at a time, end their answers early or fail, in any order; the last one only gives."""
    state = shared(chunks, DONORS[:donors])
    streams: dict[str, list[int]] = {}
    for _ in range(100_000):
        check(state)
        for donor in sorted(state.donors - set(state.asked)):
            state, wanted = ask(state, donor)
            if wanted is not None:
                assert not set(wanted) - state.missing
                streams[donor] = list(wanted)
        check(state)
        if state.is_complete:
            break
        assert state.asked, "something is always under way"
        donor = choices.draw(st.sampled_from(sorted(state.asked)))
        what = choices.draw(st.sampled_from(["give", "give", "give", "end", "fail"]))
        if what == "fail" and len(state.donors) > 1:
            state = failed(state, donor)
        elif what == "end" and len(state.donors) > 1:
            state = failed(answered(state, donor), donor)  # too little is as good as nothing
        elif streams[donor]:
            state = arrived(state, streams[donor].pop(0))
        if donor in state.asked and not state.due_from(donor):
            state = answered(state, donor)
    assert state.is_complete


def test_a_single_donor_is_asked_for_every_chunk_once_in_order() -> None:
    state, asked = shared(40, ["a"]), []
    while not state.is_complete:
        state, wanted = ask(state, "a")
        assert wanted is not None
        asked += list(wanted)
        for chunk in wanted:
            state = arrived(state, chunk)
        state = answered(state, "a")
    assert asked == list(range(40))


def test_who_is_done_takes_the_far_half_of_the_slowest_and_a_last_chunk_is_asked_of_two() -> None:
    state = shared(8, ["slow", "quick"])
    ranges = {}
    for donor in ("slow", "quick"):
        state, ranges[donor] = ask(state, donor)
    assert ranges == {"slow": range(2), "quick": range(2, 3)}
    while state.missing - {0, 1}:
        for chunk in state.asked["quick"]:
            state = arrived(state, chunk)
        state, _ = ask(answered(state, "quick"), "quick")
    assert state.asked["quick"] == range(1, 2)
    state = answered(arrived(state, 1), "quick")
    state, last = ask(state, "quick")
    assert last == range(1)
    state = with_donor(state, "third")
    assert ask(state, "third")[1] is None, "two are enough"
    assert ask(failed(state, "slow"), "third")[1] == range(1)


def test_chunks_that_are_here_already_are_not_asked_for() -> None:
    state = with_donor(Sharing(frozenset({1, 2, 7})), "a")
    _, wanted = ask(state, "a")
    assert wanted == range(1, 2)
