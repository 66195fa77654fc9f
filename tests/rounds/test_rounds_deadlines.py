"""When a round closes, and why."""

from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.rounds.deadlines import DeadlinePolicy, decide

POLICY = DeadlinePolicy(quorum=1, floor_seconds=2.0, ceiling_seconds=100.0)
PEERS = ["a", "b", "c", "d"]

offsets = st.floats(0, 99, allow_nan=False)
arrivals = st.dictionaries(st.sampled_from(PEERS), offsets, max_size=4)


@given(arrivals=arrivals, elapsed=st.floats(0, 200), quorum=st.integers(1, 5))
def test_a_round_never_outlives_its_ceiling_and_never_closes_early_below_its_quorum(
    arrivals: dict[str, float], elapsed: float, quorum: int
) -> None:
    policy = DeadlinePolicy(quorum=quorum, floor_seconds=2.0, ceiling_seconds=100.0)
    decision = decide(elapsed, PEERS, arrivals, policy)
    assert decision.deadline <= policy.ceiling_seconds or decision.close
    if elapsed >= policy.ceiling_seconds:
        assert decision.close
    elif len(arrivals) < quorum:
        assert not decision.close


@given(arrivals=arrivals, elapsed=st.floats(0, 99))
def test_a_later_look_never_reopens_a_closed_round(arrivals: dict[str, float], elapsed: float) -> None:
    if decide(elapsed, PEERS, arrivals, POLICY).close:
        assert decide(elapsed + 1, PEERS, arrivals, POLICY).close


@given(elapsed=st.floats(0, 99), offsets=st.lists(offsets, min_size=4, max_size=4))
def test_a_round_closes_at_once_when_everybody_is_here(elapsed: float, offsets: list[float]) -> None:
    decision = decide(elapsed, PEERS, dict(zip(PEERS, offsets, strict=True)), POLICY)
    assert decision.close
    assert decision.reason in ("all 4 payloads are here", "the ceiling was reached with 4 here")


def test_a_straggler_is_waited_for_as_long_as_the_others_suggest_and_no_longer() -> None:
    here = {"a": 10.0, "b": 10.5, "c": 11.0}
    assert not decide(11.0, PEERS, here, POLICY).close
    decision = decide(11.0, PEERS, here, POLICY)
    assert 11.0 + POLICY.floor_seconds <= decision.deadline <= 20.0
    assert decide(decision.deadline, PEERS, here, POLICY).close
    assert "1 of 4 missed the deadline" in decide(decision.deadline, PEERS, here, POLICY).reason


def test_nobody_is_late_before_half_of_the_payloads_are_here() -> None:
    assert not decide(99.0, PEERS, {"a": 1.0}, POLICY).close


def test_a_peer_that_sent_and_then_left_still_counts() -> None:
    assert decide(5.0, ["b"], {"a": 1.0, "b": 2.0}, POLICY).reason == "all 2 payloads are here"
