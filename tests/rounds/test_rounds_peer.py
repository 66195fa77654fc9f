"""What a peer does next, given what it knows."""

from dataclasses import replace

import pytest

from tsr_swarm.rounds.peer import Activity, PeerState, apply_round, apply_update, is_stale, next_activity
from tsr_swarm.rounds.protocol import OpenRound
from tsr_swarm.rounds.raft_state import RoundRecord


def announced(round: int) -> OpenRound:
    return OpenRound(round, f"d{round - 1}", 1, 1, ())


def told(state: PeerState, committed: int) -> PeerState:
    """The state after an update by which the next round is open."""
    return apply_update(state, committed, announced(committed + 1), is_finished=False)


def applied(state: PeerState, round: int) -> PeerState:
    return apply_round(state, RoundRecord(round, f"d{round}"))


def at(round: int) -> PeerState:
    return PeerState(applied=round, chain=f"d{round}", is_member=True)


def test_a_newcomer_waits_for_an_update_then_fetches_the_state_then_trains() -> None:
    assert next_activity(PeerState()) is Activity.WAIT
    assert next_activity(told(PeerState(), 4)) is Activity.FETCH_STATE
    assert next_activity(told(applied(PeerState(), 4), 4)) is Activity.TRAIN


def test_a_peer_that_was_away_replays_the_rounds_it_lacks_before_it_trains() -> None:
    state = told(at(2), 4)
    assert next_activity(state) is Activity.FETCH_ROUND
    assert next_activity(applied(state, 3)) is Activity.FETCH_ROUND
    assert next_activity(applied(applied(state, 3), 4)) is Activity.TRAIN


def test_training_stops_early_once_its_round_has_closed_without_it() -> None:
    state = told(at(4), 4)
    assert not is_stale(state, 5)
    assert is_stale(told(state, 5), 5)


def test_a_contribution_that_came_too_late_is_not_sent() -> None:
    state = told(replace(at(4), trained=5, unsent=5), 5)
    assert next_activity(state) is Activity.FETCH_ROUND
    state = applied(state, 5)
    assert state.unsent == 0
    assert next_activity(state) is Activity.TRAIN


@pytest.mark.parametrize(
    "state",
    [told(replace(at(4), chain="fork"), 4), replace(told(at(4), 5), needs_state=True)],
    ids=["it has another history", "its digest differed"],
)
def test_a_peer_with_wrong_weights_fetches_the_state_before_anything_else(state: PeerState) -> None:
    assert next_activity(state) is Activity.FETCH_STATE
    assert is_stale(state, 6) is state.needs_state


def test_the_last_published_round_is_applied_before_a_peer_quits() -> None:
    state = apply_update(at(4), 5, None, is_finished=True)
    assert next_activity(state) is Activity.FETCH_ROUND
    assert next_activity(applied(state, 5)) is Activity.QUIT
