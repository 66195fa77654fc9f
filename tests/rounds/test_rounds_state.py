"""What a peer does next, given what it knows."""

from dataclasses import replace

import pytest

from tsr_swarm.rounds.protocol import OpenRound
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.rounds.state import Activity, PeerState, apply_round, apply_update, is_stale, next_activity


def told(state: PeerState, committed: int) -> PeerState:
    """The state after an update of a leader."""
    return apply_update(state, committed, is_finished=False)


def applied(state: PeerState, round: int) -> PeerState:
    return apply_round(state, RoundRecord(round, f"d{round}"))


def at(round: int) -> PeerState:
    return PeerState(applied=round, chain=f"d{round}", is_member=True)


LATE = replace(at(4), trained=5, unsent=5)  # a peer whose contribution to round 5 is not sent

NEXT = {
    "a newcomer waits for an update": (PeerState(), Activity.WAIT),
    "then it fetches the state": (told(PeerState(), 4), Activity.FETCH_STATE),
    "then it trains": (told(applied(PeerState(), 4), 4), Activity.TRAIN),
    "a peer that was away fetches what it lacks": (told(at(2), 4), Activity.FETCH_ROUND),
    "each of these rounds": (applied(told(at(2), 4), 3), Activity.FETCH_ROUND),
    "before it trains": (applied(applied(told(at(2), 4), 3), 4), Activity.TRAIN),
    "the last round is applied": (apply_update(at(4), 5, is_finished=True), Activity.FETCH_ROUND),
    "before a peer quits": (applied(apply_update(at(4), 5, is_finished=True), 5), Activity.QUIT),
    "a contribution that came too late is not sent": (told(LATE, 5), Activity.FETCH_ROUND),
    "the next one is trained for": (applied(told(LATE, 5), 5), Activity.TRAIN),
    "another history": (told(replace(at(4), chain="fork"), 4), Activity.FETCH_STATE),
    "a digest that differed": (replace(told(at(4), 5), needs_state=True), Activity.FETCH_STATE),
}


@pytest.mark.parametrize(("state", "activity"), NEXT.values(), ids=NEXT)
def test_what_is_most_urgent_is_done_next(state: PeerState, activity: Activity) -> None:
    round = state.committed + 1  # is open, while there is a leader and the run goes on
    plan = OpenRound(round, f"d{round - 1}", 1, 1, ()) if state.is_member and not state.is_finished else None
    assert next_activity(state, plan) is activity


def test_training_stops_once_its_round_has_closed_without_this_peer_or_its_weights_are_wrong() -> None:
    state = told(at(4), 4)
    assert not is_stale(state, 5)
    assert is_stale(told(state, 5), 5)
    assert is_stale(replace(state, needs_state=True), 5)
    assert applied(told(LATE, 5), 5).unsent == 0, "what was too late is not sent later either"
