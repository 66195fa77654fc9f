"""The leader and the peers, driven by events alone."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.rounds import peer as pr
from tsr_swarm.rounds import round_phases as ld
from tsr_swarm.rounds.deadlines import DeadlinePolicy

DEADLINES = DeadlinePolicy(quorum=1, floor_seconds=2.0, ceiling_seconds=60.0)


def fresh(min_peers: int = 2, last_round: int = 0, quorum: int = 1) -> ld.LeaderState:
    deadlines = replace(DEADLINES, quorum=quorum)
    return ld.LeaderState(ld.LeaderPolicy(deadlines, min_peers, last_round), round=0)


def drive(
    state: ld.LeaderState, *events: tuple[ld.Event, float], decides: bool = True
) -> tuple[ld.LeaderState, list[ld.Action]]:
    """Feed events; the reducer answers at once, and so do the voters unless told otherwise."""
    seen: list[ld.Action] = []
    for event, now in events:
        queue: list[ld.Event] = [event]
        while queue:
            state, actions = ld.step(state, queue.pop(0), now)
            seen += actions
            for action in actions:
                match action:
                    case ld.Reduce(round):
                        queue.append(ld.Reduced(round, f"chain-{round}"))
                    case ld.Propose(round, chain) if decides:
                        queue.append(ld.Decided(round, chain))
    return state, seen


def commits(actions: list[ld.Action]) -> list[int]:
    return [action.round for action in actions if isinstance(action, ld.Commit)]


def test_the_first_round_waits_for_enough_peers_and_later_ones_do_not() -> None:
    state, seen = drive(fresh(min_peers=2), (ld.Joined("a"), 1.0))
    assert state.phase is ld.Phase.WAITING
    assert ld.Explain(ld.Phase.WAITING, None, "1 of 2 peers are here") in seen
    state, seen = drive(state, (ld.Joined("b"), 2.0), (ld.Arrived("a", 1), 3.0), (ld.Left("b", "bye"), 3.5))
    assert commits(seen) == [1]
    assert state.round == 2


def test_a_round_is_committed_only_once_the_voters_have_decided_on_this_very_result() -> None:
    state, _ = drive(fresh(min_peers=1), (ld.Joined("a"), 0.0))
    state, seen = drive(state, (ld.Arrived("a", 1), 1.0), decides=False)
    assert state.phase is ld.Phase.COMMIT
    assert ld.Propose(1, "chain-1") in seen
    state, seen = drive(state, (ld.Decided(1, "another"), 1.1), (ld.Decided(2, "chain-1"), 1.2))
    assert commits(seen) == []
    state, seen = drive(state, (ld.Decided(1, "chain-1"), 1.3))
    assert commits(seen) == [1]


def test_shards_that_move_make_their_senders_send_again() -> None:
    state, _ = drive(
        fresh(), (ld.Joined("a"), 0.0), (ld.Joined("b"), 0.0), (ld.Arrived("a", 1), 5.0), (ld.Moved(), 5.5)
    )
    state, seen = drive(state, (ld.Arrived("b", 1), 6.0))
    assert commits(seen) == []
    state, seen = drive(state, (ld.Arrived("a", 1), 6.5))
    assert commits(seen) == [1]


def test_a_new_leader_gives_its_peers_time_to_find_it() -> None:
    state = replace(fresh(min_peers=1), round=4, has_opened=True, open_after=6.0)
    state, seen = drive(state, (ld.Joined("a"), 1.0), (ld.Tick(), 5.9))
    assert ld.BeginRound(5) not in seen
    state, seen = drive(state, (ld.Tick(), 6.0))
    assert ld.BeginRound(5) in seen


def test_a_new_leader_waits_no_longer_than_for_those_of_the_last_round() -> None:
    state = replace(fresh(min_peers=1), round=4, has_opened=True, open_after=6.0, awaited=frozenset("ab"))
    state, seen = drive(state, (ld.Joined("a"), 1.0), (ld.Joined("c"), 1.1))
    assert ld.BeginRound(5) not in seen
    state, seen = drive(state, (ld.Joined("b"), 1.5))
    assert ld.BeginRound(5) in seen
    assert state.expected == frozenset("abc")


def test_a_killed_peer_is_dropped_soon_and_costs_no_round() -> None:
    state, _ = drive(fresh(), (ld.Joined("a"), 0.0), (ld.Joined("b"), 0.0), (ld.Arrived("a", 1), 5.0))
    state, seen = drive(state, (ld.Disconnected("b"), 6.0), (ld.Tick(), 6.5), (ld.Tick(), 6.0 + ld.RETURN_SECONDS))
    assert ld.Drop("b", "its connection broke or it fell silent") in seen
    assert commits(seen) == [1]


def test_a_peer_that_calls_again_after_a_broken_connection_is_kept() -> None:
    state, _ = drive(fresh(), (ld.Joined("a"), 0.0), (ld.Joined("b"), 0.0), (ld.Disconnected("b"), 6.0))
    state, seen = drive(state, (ld.Heard("a"), 7.0), (ld.Heard("b"), 7.0), (ld.Tick(), 12.0))
    assert set(state.members) == {"a", "b"}
    assert seen == []


def test_below_the_quorum_the_ceiling_closes_the_round() -> None:
    state, _ = drive(fresh(quorum=2), (ld.Joined("a"), 0.0), (ld.Joined("b"), 0.0), (ld.Arrived("a", 1), 1.0))
    alive = [(ld.Heard(peer), float(at)) for at in range(0, 60, 10) for peer in ("a", "b")]
    state, seen = drive(state, *alive)
    assert commits(seen) == []
    state, seen = drive(state, (ld.Tick(), 60.0))
    assert commits(seen) == [1]


def test_stop_finishes_the_open_round_and_opens_no_other() -> None:
    state, _ = drive(fresh(min_peers=1), (ld.Joined("a"), 0.0))
    state, seen = drive(state, (ld.Stop(), 1.0), (ld.Arrived("a", 1), 2.0))
    assert commits(seen) == [1]
    assert state.phase is ld.Phase.FINISHED


def test_stop_does_not_wait_for_peers_that_are_all_gone() -> None:
    state, _ = drive(fresh(min_peers=1), (ld.Joined("a"), 0.0), (ld.Left("a", "bye"), 1.0))
    assert state.phase is ld.Phase.TRAIN
    state, seen = drive(state, (ld.Stop(), 2.0))
    assert ld.Finish("it was asked to stop") in seen


def test_the_last_round_is_the_last() -> None:
    state, seen = drive(
        fresh(min_peers=1, last_round=2), (ld.Joined("a"), 0.0), (ld.Arrived("a", 1), 1.0), (ld.Arrived("a", 2), 2.0)
    )
    assert commits(seen) == [1, 2]
    assert state.phase is ld.Phase.FINISHED


peers = st.sampled_from(["a", "b", "c"])
rounds = st.integers(1, 6)
events = st.one_of(
    st.builds(ld.Joined, peers),
    st.builds(ld.Heard, peers),
    st.builds(ld.Disconnected, peers),
    st.builds(ld.Left, peers, st.just("bye")),
    st.builds(ld.Arrived, peers, rounds),
    st.just(ld.Tick()),
)


@given(schedule=st.lists(st.tuples(events, st.floats(0, 20)), max_size=60), quorum=st.integers(1, 3))
def test_rounds_are_opened_and_committed_in_order_each_once_whatever_happens(
    schedule: list[tuple[ld.Event, float]], quorum: int
) -> None:
    now, timed = 0.0, []
    for event, wait in schedule:
        now += wait
        timed.append((event, now))
    state, seen = drive(fresh(min_peers=1, quorum=quorum), *timed)
    opened = [action.round for action in seen if isinstance(action, ld.BeginRound)]
    assert opened == list(range(1, len(opened) + 1))
    assert commits(seen) == opened[: len(commits(seen))]
    assert len(opened) - len(commits(seen)) in (0, 1)
    assert (state, seen) == drive(fresh(min_peers=1, quorum=quorum), *timed)
    if state.phase in (ld.Phase.TRAIN, ld.Phase.EXCHANGE) and state.members:
        assert now - state.opened_at < DEADLINES.ceiling_seconds


# --- the peer's side --------------------------------------------------------------------------------------------


def news(committed: int, open_round: int, parent: str, **flags: bool) -> pr.LeaderUpdate:
    base = pr.LeaderUpdate(committed, open_round, parent, is_finished=False, unknown_peer=False)
    return replace(base, **flags)


def member_at(round: int, chain: str) -> pr.PeerState:
    return pr.PeerState(applied=round, chain=chain, is_member=True)


def test_a_newcomer_joins_then_fetches_the_state_then_trains() -> None:
    state = pr.PeerState()
    assert pr.next_action(state) == pr.Join()
    state = replace(state, is_member=True)
    assert pr.next_action(state) == pr.FetchState()
    state = pr.hear(pr.applied(state, 4, "d4"), news(4, 5, "d4"))
    assert pr.next_action(state) == pr.Train(5)


def test_a_peer_that_was_away_replays_what_it_missed_before_it_trains() -> None:
    state = pr.hear(member_at(2, "d2"), news(4, 5, "d4"))
    assert pr.next_action(state) == pr.FetchRound(3)
    state = pr.applied(state, 3, "d3")
    assert pr.next_action(state) == pr.FetchRound(4)
    assert pr.next_action(pr.applied(state, 4, "d4")) == pr.Train(5)


def test_training_stops_early_once_its_round_has_closed_without_it() -> None:
    state = pr.hear(member_at(4, "d4"), news(4, 5, "d4"))
    assert not pr.is_stale(state, 5)
    state = pr.hear(state, news(5, 6, "d5"))
    assert pr.is_stale(state, 5)


def test_a_contribution_that_came_too_late_is_not_sent() -> None:
    state = replace(member_at(4, "d4"), trained=5, unsent=5)
    state = pr.hear(state, news(5, 6, "d5"))
    assert pr.next_action(state) == pr.FetchRound(5)
    state = pr.applied(state, 5, "d5")
    assert state.unsent == 0
    assert pr.next_action(state) == pr.Train(6)


def test_a_peer_does_not_train_on_weights_of_another_history() -> None:
    state = pr.hear(member_at(4, "fork"), news(4, 5, "d4"))
    assert pr.next_action(state) == pr.FetchState()


def test_a_peer_whose_digest_differed_fetches_the_state_before_anything_else() -> None:
    state = replace(pr.hear(member_at(4, "d4"), news(5, 6, "d5")), needs_state=True)
    assert pr.next_action(state) == pr.FetchState()
    assert pr.is_stale(state, 6)


def test_a_peer_that_was_dropped_joins_again() -> None:
    assert pr.next_action(pr.hear(member_at(4, "d4"), news(4, 5, "d4", unknown_peer=True))) == pr.Join()


def test_the_last_published_round_is_applied_before_a_peer_quits() -> None:
    state = pr.hear(member_at(4, "d4"), news(5, 0, "", is_finished=True))
    assert pr.next_action(state) == pr.FetchRound(5)
    assert pr.next_action(pr.applied(state, 5, "d5")) == pr.Quit()


def rounds_with_paces(paces: dict[str, float], rounds: int) -> tuple[list[float], dict[str, int]]:
    """How long each round took, and in how many each peer was; who is too late gives up and starts the next round."""
    state = fresh(min_peers=len(paces))
    for peer in paces:
        state, _ = drive(state, (ld.Joined(peer), 0.0))
    took, counted = [], dict.fromkeys(paces, 0)
    now = 0.0
    while len(took) < rounds:
        round, opened = state.round, now
        due = {peer: opened + pace for peer, pace in paces.items()}
        while state.round == round:
            deadline = ld.deadline_at(state)
            now, peer = min([(at, peer) for peer, at in due.items()] + ([(deadline, "")] if deadline else []))
            for other in paces:
                state, _ = drive(state, (ld.Heard(other), now))
            if peer:
                del due[peer]
            arrived = state.round == round and peer != ""
            counted[peer or next(iter(paces))] += arrived
            state, _ = drive(state, (ld.Arrived(peer, round) if arrived else ld.Tick(), now))
        took.append(now - opened)
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
    state, _ = drive(fresh(), (ld.Joined("a"), 0.0), (ld.Joined("b"), 0.0), (ld.Arrived("a", 1), 10.0))
    deadline = ld.deadline_at(state)
    assert deadline is not None
    state, seen = drive(state, (ld.Heard("b"), deadline), (ld.Heard("a"), deadline))
    assert commits(seen) == [1]
    assert state.misses == {"b": 1}
    state, seen = drive(state, (ld.Arrived("a", 2), deadline + 10.0))
    assert commits(seen) == [], "the next round waits for both"
    state, seen = drive(state, (ld.Arrived("b", 2), deadline + 11.0))
    assert commits(seen) == [2]
    assert state.misses == {}


def test_a_peer_that_was_late_once_is_waited_for_in_an_odd_round_too() -> None:
    state = replace(fresh(min_peers=1), round=6, has_opened=True, misses={"b": 1})
    state, _ = drive(replace(state, members={"a": 100.0, "b": 100.0}), (ld.Tick(), 1.0))
    assert state.round == 7
    assert state.expected == frozenset("ab")


def test_where_everybody_was_late_everybody_is_waited_for() -> None:
    state = replace(fresh(min_peers=1), round=6, has_opened=True, misses={"a": 3, "b": 2})
    state = replace(state, members={"a": 100.0, "b": 100.0})
    state, seen = drive(state, (ld.Tick(), 1.0))
    assert ld.BeginRound(7) in seen
    assert state.expected == frozenset("ab")


def test_who_came_after_a_round_was_opened_has_missed_none() -> None:
    _, seen = drive(fresh(min_peers=1), (ld.Joined("a"), 0.0), (ld.Joined("b"), 1.0), (ld.Arrived("a", 1), 2.0))
    assert not [action for action in seen if isinstance(action, ld.Explain) and "missed rounds" in action.reason]
