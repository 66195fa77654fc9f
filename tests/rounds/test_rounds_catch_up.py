"""Rounds or the state."""

from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.rounds.catch_up import Costs, choose_way


@given(
    applied=st.integers(0, 50),
    rounds=st.integers(0, 10**9),
    state_round=st.integers(0, 50),
    state=st.integers(1, 10**9),
    rest=st.integers(0, 10**9),
)
def test_the_fewer_bytes_win_and_nobody_goes_back(
    applied: int, rounds: int, state_round: int, state: int, rest: int
) -> None:
    way = choose_way(applied, Costs(round_bytes=rounds, state_round=state_round, state_bytes=state, rest_bytes=rest))
    assert way.reason
    if not rounds:
        assert way.takes_state, "there is no other way"
    elif state_round <= applied:
        assert not way.takes_state
    else:
        assert way.takes_state == (state + rest < rounds)


def test_the_reason_compares() -> None:
    costs = Costs(round_bytes=2_000_000, state_round=20, state_bytes=232_000_000, rest_bytes=100_000)
    assert choose_way(3, costs).reason == "2.00 MB of rounds instead of 232 MB with the state"
