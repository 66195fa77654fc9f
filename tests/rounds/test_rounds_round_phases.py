"""A leader's rounds: when they open and close, whom they wait for, and that each is committed once, in order."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures import round_policy
from tsr_swarm.rounds import round_phases as phases
from tsr_swarm.rounds.protocol import Commit, Drop, Explain, Open, Propose, ShardDigest
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.rounds.round_phases import CloseRound, Gather, LeaderState, Phase, decide, missing_shards, take_answer

POLICY = round_policy()
PEERS = ["a", "b", "c", "d"]
Call = tuple[Any, ...]  # the time, a function that changes the state, and its arguments

call, arrive, leave = phases.add_member, phases.add_arrival, phases.remove_member
disconnect, tick, stop = phases.disconnect, phases.tick, phases.stop


def fresh(min_peers: int = 2, last_round: int = 0, quorum: int = 1) -> LeaderState:
    return LeaderState(round_policy(quorum=quorum, min_peers=min_peers, last_round=last_round), round=0)


def led(round: int, **settings: Any) -> LeaderState:
    """The state of a leader that has opened rounds before."""
    return replace(fresh(min_peers=1), round=round, has_opened=True, **settings)


def result_of(round: int) -> RoundRecord:
    return RoundRecord(round, f"chain-{round}")


def drive(state: LeaderState, *calls: Call, commits: bool = True) -> tuple[LeaderState, list[phases.PhaseAction]]:
    """Make the calls; reducers answer at once, and so do the voters unless told otherwise."""
    seen: list[phases.PhaseAction] = []
    for now, *call in calls:
        queue: list[list[Any]] = [call]
        while queue:
            change, *args = queue.pop(0)
            state, actions = change(state, now, *args)
            seen += actions
            for action in actions:
                if isinstance(action, CloseRound):
                    queue.append([phases.propose, result_of(state.round)])
                if isinstance(action, Propose) and commits:
                    queue.append([phases.commit, action.record])
    return state, seen


def committed(actions: list[phases.PhaseAction]) -> list[int]:
    return [action.record.round for action in actions if isinstance(action, Commit)]


def opened(actions: list[phases.PhaseAction]) -> list[int]:
    return [action.round for action in actions if isinstance(action, Open)]


def both_joined(*calls: Call, **settings: int) -> LeaderState:
    """The state with peers a and b in round 1, after ``calls``."""
    return drive(fresh(**settings), (0.0, call, "a"), (0.0, call, "b"), *calls)[0]


def test_the_first_round_waits_for_enough_peers_and_later_ones_do_not() -> None:
    state, seen = drive(fresh(min_peers=2), (1.0, call, "a"))
    assert state.phase is Phase.WAITING
    assert seen == [Explain(0, "waiting", None, "1 of 2 peers are here")]
    state, seen = drive(state, (2.0, call, "b"), (3.0, arrive, "a", 1), (3.5, leave, "b", "bye"))
    assert committed(seen) == [1]
    assert state.round == 2


def test_a_round_is_committed_only_once_the_voters_have_decided_on_this_very_result() -> None:
    state, seen = drive(fresh(min_peers=1), (0.0, call, "a"), (1.0, arrive, "a", 1), commits=False)
    assert state.phase is Phase.COMMIT
    assert Propose(result_of(1)) in seen
    others = RoundRecord(1, "another"), RoundRecord(2, "chain-1")
    state, seen = drive(state, *((1.1, phases.commit, record) for record in others))
    assert seen == []
    _, seen = drive(state, (1.3, phases.commit, result_of(1)))
    assert seen[0] == Commit(result_of(1))


def test_after_shards_have_moved_every_peer_has_to_send_again() -> None:
    state, seen = drive(both_joined((5.0, arrive, "a", 1), (5.5, phases.clear_arrivals)), (6.0, arrive, "b", 1))
    assert committed(seen) == []
    assert committed(drive(state, (6.5, arrive, "a", 1))[1]) == [1]


def test_a_new_leader_gives_the_peers_of_the_last_round_time_to_find_it_and_waits_for_nobody_else() -> None:
    state, seen = drive(
        led(4, open_after=6.0, awaited=frozenset("ab")), (1.0, call, "a"), (1.1, call, "c"), (5.9, tick)
    )
    assert opened(seen) == []
    assert opened(drive(state, (6.0, tick))[1]) == [5]
    state, seen = drive(state, (5.9, call, "b"))
    assert opened(seen) == [5]
    assert state.expected == frozenset("abc")
    state, seen = drive(led(4, open_after=6.0), (1.0, call, "a"))
    assert opened(seen) == [], "it does not know whom to wait for"


def test_a_killed_peer_is_dropped_soon_and_costs_no_round() -> None:
    state = both_joined((5.0, arrive, "a", 1), (6.0, disconnect, "b"), (6.5, tick))
    _, seen = drive(state, (6.0 + phases.RETURN_SECONDS, tick))
    assert Drop("b", "its connection broke or it fell silent") in seen
    assert committed(seen) == [1]


def test_a_peer_that_calls_again_after_a_broken_connection_is_kept() -> None:
    state, seen = drive(both_joined((6.0, disconnect, "b")), (7.0, call, "a"), (7.0, call, "b"), (12.0, tick))
    assert set(state.members) == {"a", "b"}
    assert seen == []


def test_below_the_quorum_the_ceiling_closes_the_round() -> None:
    alive = [(float(at), call, peer) for at in range(0, 60, 10) for peer in ("a", "b")]
    state, seen = drive(both_joined((1.0, arrive, "a", 1), quorum=2), *alive)
    assert committed(seen) == []
    assert committed(drive(state, (60.0, tick))[1]) == [1]


@pytest.mark.parametrize(("ends", "last_round"), [([(1.5, stop)], 0), ([], 1)], ids=["stopped", "the last"])
def test_after_a_stop_or_the_last_round_no_other_opens(ends: list[Call], last_round: int) -> None:
    state, seen = drive(fresh(1, last_round), (0.0, call, "a"), *ends, (2.0, arrive, "a", 1), (3.0, arrive, "a", 2))
    assert committed(seen) == opened(seen) == [1]
    assert state.phase is Phase.FINISHED


def test_stop_does_not_wait_for_peers_that_are_all_gone() -> None:
    state, _ = drive(fresh(min_peers=1), (0.0, call, "a"), (1.0, leave, "a", "bye"))
    assert state.phase is Phase.TRAIN
    assert drive(state, (2.0, stop))[1] == [Explain(1, "finished", None, "it was asked to stop")]


peers = st.sampled_from(["a", "b", "c"])
changes = st.one_of(
    st.tuples(st.sampled_from([call, disconnect]), peers),
    st.tuples(st.just(leave), peers, st.just("bye")),
    st.tuples(st.just(arrive), peers, st.integers(1, 6)),
    st.tuples(st.just(tick)),
)


@given(schedule=st.lists(st.tuples(changes, st.floats(0, 20)), max_size=60), quorum=st.integers(1, 3))
def test_rounds_are_opened_and_committed_in_order_each_once_whatever_happens(
    schedule: list[tuple[tuple[Callable[..., Any], ...], float]], quorum: int
) -> None:
    now, calls = 0.0, list[Call]()
    for change, wait in schedule:
        now += wait
        calls.append((now, *change))
    state, seen = drive(fresh(min_peers=1, quorum=quorum), *calls)
    rounds = opened(seen)
    assert rounds == list(range(1, len(rounds) + 1))
    assert committed(seen) in (rounds, rounds[:-1])
    assert (state, seen) == drive(fresh(min_peers=1, quorum=quorum), *calls)
    if phases.is_open(state) and state.members:
        assert now - state.opened_at < POLICY.ceiling_seconds


def rounds_with_paces(paces: dict[str, float], rounds: int) -> tuple[list[float], dict[str, int]]:
    """How long each round took, and in how many each peer was; a peer that is too late starts the next round."""
    state = fresh(min_peers=len(paces))
    for peer in paces:
        state, _ = drive(state, (0.0, call, peer))
    took, counted = [], dict.fromkeys(paces, 0)
    now = 0.0
    while len(took) < rounds:
        round, began = state.round, now
        due = {peer: began + pace for peer, pace in paces.items()}
        while state.round == round:
            deadline = phases.deadline_at(state)
            now, peer = min([(at, peer) for peer, at in due.items()] + ([(deadline, "")] if deadline else []))
            state, _ = drive(state, *((now, call, other) for other in paces))
            if peer:
                del due[peer]
            arrived = state.round == round and peer != ""
            counted[peer or next(iter(paces))] += arrived
            state, _ = drive(state, (now, arrive, peer, round) if arrived else (now, tick))
        took.append(now - began)
    return took, counted


def test_a_peer_ten_times_slower_costs_the_others_next_to_nothing() -> None:
    took, counted = rounds_with_paces({"a": 9.0, "b": 10.0, "c": 10.5, "slow": 100.0}, 64)
    assert sum(took[16:]) < 1.04 * 48 * 10.5
    assert counted["a"] == counted["b"] == counted["c"] == 64
    assert max(took[-16:]) > 10.5, "it is still waited for now and then"


def test_a_peer_that_is_a_little_slower_is_in_every_round() -> None:
    took, counted = rounds_with_paces({"a": 9.0, "b": 10.0, "c": 13.0}, 32)
    assert set(counted.values()) == {32}
    assert took == [13.0] * 32


def test_a_peer_that_was_late_once_is_waited_for_again() -> None:
    state = both_joined((10.0, arrive, "a", 1))
    deadline = phases.deadline_at(state)
    state, seen = drive(state, (deadline, call, "b"), (deadline, call, "a"))
    assert committed(seen) == [1]
    assert state.late_rounds == {"b": 1}
    state, seen = drive(state, (deadline + 10.0, arrive, "a", 2))
    assert committed(seen) == [], "the next round waits for both"
    state, seen = drive(state, (deadline + 11.0, arrive, "b", 2))
    assert committed(seen) == [2]
    assert state.late_rounds == {}


def test_a_peer_that_was_late_once_is_waited_for_in_an_odd_round_and_all_are_where_all_were_late() -> None:
    members = {"a": 100.0, "b": 100.0}
    for late_rounds in ({"b": 1}, {"a": 3, "b": 2}):
        state, seen = drive(led(6, late_rounds=late_rounds, members=members), (1.0, tick))
        assert opened(seen) == [7]
        assert state.expected == frozenset("ab")


def test_a_peer_that_came_after_a_round_was_opened_was_not_late_for_it() -> None:
    state, _ = drive(fresh(min_peers=1), (0.0, call, "a"), (1.0, call, "b"), (2.0, arrive, "a", 1))
    assert state.round == 2
    assert state.late_rounds == {}


arrivals = st.dictionaries(st.sampled_from(PEERS), st.floats(0, 59, allow_nan=False), max_size=4)


@given(arrivals=arrivals, elapsed=st.floats(0, 120), quorum=st.integers(1, 5))
def test_a_round_closes_at_its_ceiling_or_with_everybody_never_below_its_quorum_and_for_good(
    arrivals: dict[str, float], elapsed: float, quorum: int
) -> None:
    policy = replace(POLICY, quorum=quorum)
    decision = decide(elapsed, PEERS, arrivals, policy)
    assert decision.deadline <= POLICY.ceiling_seconds or decision.close
    if elapsed >= POLICY.ceiling_seconds:
        assert decision.close
    elif len(arrivals) < quorum:
        assert not decision.close
    elif len(arrivals) == len(PEERS):
        assert (decision.close, decision.reason) == (True, "all 4 payloads are here")
    if decision.close:
        assert decide(elapsed + 1, PEERS, arrivals, policy).close


def test_a_late_peer_is_waited_for_as_long_as_the_others_suggest_and_no_longer() -> None:
    here = {"a": 10.0, "b": 10.5, "c": 11.0}
    decision = decide(11.0, PEERS, here, POLICY)
    assert not decision.close
    assert 11.0 + POLICY.floor_seconds <= decision.deadline <= 20.0
    late = decide(decision.deadline, PEERS, here, POLICY)
    assert late.close
    assert "1 of 4 missed the deadline" in late.reason


def test_nobody_is_late_before_half_of_the_contributions_are_here_and_of_a_peer_that_left_they_count() -> None:
    assert not decide(59.0, PEERS, {"a": 1.0}, POLICY).close
    assert decide(5.0, ["b"], {"a": 1.0, "b": 2.0}, POLICY).reason == "all 2 payloads are here"


REDUCERS = ("a", "b", "b", "c")
BEGUN = Gather(7, REDUCERS, 100.0)


def digest(shard: int) -> ShardDigest:
    return ShardDigest(frozenset({"p"}), f"digest-{shard}")


def test_every_reducer_is_asked_for_all_its_shards_that_are_missing() -> None:
    assert missing_shards(BEGUN, (), 100.0) == {"a": (0,), "b": (1, 2), "c": (3,)}
    gather = take_answer(BEGUN, "b", 1, digest(1), 100.2)
    assert missing_shards(gather, (), 100.5) == {"a": (0,), "b": (2,), "c": (3,)}


def test_the_first_answer_of_the_right_reducer_counts() -> None:
    gather = BEGUN
    for sender, shard, result in (("a", 1, 9), ("b", 1, 1), ("b", 1, 2), ("b", 17, 2)):
        gather = take_answer(gather, sender, shard, digest(result), 100.1)
    assert gather.answers == {1: digest(1)}


def test_the_shards_of_a_reducer_that_is_gone_are_void_at_once() -> None:
    gather = take_answer(take_answer(BEGUN, "a", 0, digest(0), 100.5), "c", 3, digest(3), 100.5)
    assert missing_shards(gather, ["b"], 100.6) == {}
    assert gather.results == (digest(0), ShardDigest(), ShardDigest(), digest(3))


@given(answered=st.sets(st.integers(0, 3)), seconds=st.floats(0.0, 3.0))
def test_it_ends_in_time_whoever_is_silent(answered: set[int], seconds: float) -> None:
    gather = BEGUN
    for shard in sorted(answered):
        gather = take_answer(gather, REDUCERS[shard], shard, digest(shard), 100.0 + seconds)
    assert gather.deadline <= 100.0 + 2 * phases.PATIENCE_SECONDS + 3 * seconds
    assert missing_shards(gather, (), gather.deadline) == {}
    assert gather.results == tuple(digest(shard) if shard in answered else ShardDigest() for shard in range(4))
