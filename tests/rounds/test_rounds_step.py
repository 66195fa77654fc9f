"""One node, step by step: faults that rehearsals have found, and that must not return."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.fixtures import GENESIS, started_node
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.follower import UNLED_SECONDS
from tsr_swarm.rounds.leader import round_update
from tsr_swarm.rounds.raft_state import Heartbeat, HeartbeatReply, RoundRecord, VoteReply
from tsr_swarm.rounds.round_phases import Phase
from tsr_swarm.rounds.state import Node
from tsr_swarm.rounds.step import ASLEEP_SECONDS, step, wake_at

FIRST = RoundRecord(1, "x1", "", ("c",))
SLOTS = (pt.ReducerSlot("c", 1), pt.ReducerSlot("c", 1))


def drive(state: Node, *events: tuple[pt.Event, float]) -> tuple[Node, list[pt.Action]]:
    """Put all events, and return what the last one led to."""
    actions: list[pt.Action] = []
    for event, now in events:
        state, actions = step(state, event, now)
    return state, actions


def only(actions: list[pt.Action], kind: type) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def sent(actions: list[pt.Action], kind: type) -> list[Any]:
    return [action.message for action in only(actions, pt.Send) if isinstance(action.message, kind)]


def uploads(actions: list[pt.Action]) -> list[int]:
    return [action.shard for action in only(actions, pt.Upload)]


def poll(peer: str, key: tuple[int, int, int] = (0, 0, 0), applied: int = 0, **settings: bool) -> pt.Received:
    return pt.Received(
        peer, pt.Poll(peer, 1, applied, **{"trains": True, "is_dialable": False, **settings}, sent=key, known=0)
    )


def update(
    term: int = 1, version: int = 2, plan: pt.OpenRound | None = None, base: RoundRecord = GENESIS, number: int = 1
) -> pt.Received:
    return pt.Received("c", pt.RoundUpdate(term, "c", version, base, (), plan, (), False, number))


def plan(term: int = 1, version: int = 1) -> pt.OpenRound:
    return pt.OpenRound(1, "", term, version, SLOTS)


def new_leader() -> Node:
    state, _ = step(started_node("c", trains=False), pt.Tick(), 0.0)
    assert state.voter.leads
    return state


def working() -> Node:
    """A peer that has trained for round 1 and begun to send it."""
    events = (pt.Tick(), 0.0), (update(plan=plan()), 0.1), (pt.Trained(1, True), 4.0)
    state, actions = drive(started_node("p"), *events)
    assert uploads(actions)
    return state


def without_peers() -> Node:
    """A leader whose only peer left in the middle of a round."""
    state, _ = drive(new_leader(), (poll("p"), 1.0), (pt.Received("p", pt.Goodbye("p")), 2.0))
    assert state.leader_role.state.phase is Phase.TRAIN
    return state


@pytest.mark.parametrize("make", [without_peers, new_leader, working])
def test_a_timer_that_went_off_is_not_due_at_once_again(make: Callable[[], Node]) -> None:
    state = make()
    now = 5.0
    for _ in range(50):
        now = max(now, wake_at(state))
        state, _ = step(state, pt.Tick(), now)
        assert wake_at(state) > now


def test_the_shards_of_a_proposal_are_fetched_from_their_reducers_as_far_as_these_are_known() -> None:
    def stores(state: Node, term: int = 1) -> list[pt.Store]:
        return only(step(state, pt.Received("c", Heartbeat(term, GENESIS, proposal)), 1.0)[1], pt.Store)

    proposal = RoundRecord(1, "chain", "", ("c",))
    state, _ = step(started_node("p"), pt.Tick(), 0.0)
    assert stores(state) == [pt.Store(proposal, (), ("c",))]
    slots = (pt.ReducerSlot("r", 1), pt.ReducerSlot("c", 1))
    state, _ = step(state, update(plan=pt.OpenRound(1, "", 1, 1, slots)), 0.5)
    assert stores(state) == [pt.Store(proposal, ("r", "c"), ("c",))]
    assert stores(state, term=2) == [pt.Store(proposal, (), ("c",))], "of another leader's plan"


def test_what_was_sent_by_another_leaders_plan_has_not_arrived() -> None:
    state, _ = drive(new_leader(), (poll("p"), 1.0))
    round, term, version = state.leader_role.plan.key
    other, _ = step(state, poll("p", (round, term - 1, version)), 2.0)
    assert other.leader_role.state.arrivals == {}
    role = step(state, poll("p", (round, term, version)), 2.0)[0].leader_role
    assert role.gather is not None or role.state.arrivals


def test_a_shard_that_came_too_late_for_one_leader_is_offered_to_the_next() -> None:
    state, actions = drive(
        working(),
        (pt.Uploaded(1, 1, 0, SLOTS[0], True), 4.1),
        (pt.Uploaded(1, 1, 1, SLOTS[1], False), 4.2),
        (update(version=3, plan=plan(), number=2), 4.3),
    )
    assert uploads(actions) == []
    _, actions = step(state, update(term=2, version=4, plan=plan(term=2), number=2), 4.4)
    assert uploads(actions) == [1]


def test_a_reducer_that_closed_for_one_leader_takes_more_for_the_next() -> None:
    def counted(actions: list[pt.Action]) -> list[bool]:
        return [action.verdict.counted for action in only(actions, pt.Reply)]

    close = pt.Close(1, 1, "", (0,), frozenset({"p"}))
    state, actions = drive(started_node("r"), (pt.Offered("p", 1, 1, "", 0, 10), 1.0), (pt.Received("c", close), 2.0))
    assert pt.Average(1, 1, {0: frozenset({"p"})}) in actions
    assert counted(step(state, pt.Offered("q", 1, 1, "", 0, 10), 2.1)[1]) == [False]
    state, actions = step(state, pt.Offered("q", 2, 1, "", 0, 10), 2.2)
    assert counted(actions) == [True]
    old = pt.Averaged(1, 1, 0, pt.ShardDigest(frozenset({"p"}), "old"))
    _, actions = drive(state, (pt.Received("d", replace(close, term=2, admitted=frozenset("pq"))), 2.3), (old, 2.4))
    assert not sent(actions, pt.ShardDone)


def test_an_update_of_a_later_round_is_newer_even_in_a_lower_term() -> None:
    """New voters may never have heard of the old ones' terms."""
    later = update(term=2, base=RoundRecord(3, "x3", "x2", ("d", "e", "f"))).message
    state, _ = drive(started_node("p"), (pt.Tick(), 0.0), (update(term=7), 0.1))
    for event in (pt.Received("d", replace(later, leader="d")), update(term=7, version=9)):
        state, _ = step(state, event, 0.2)
        assert state.tracking.leader == "d"


def test_two_nodes_that_redirect_to_each_other_are_not_asked_without_a_pause() -> None:
    state, _ = step(started_node("p"), pt.Tick(), 0.0)
    polls = 0
    for turn in range(20):
        sender, hint = ("c", "d") if state.tracking.asked == "c" else ("d", "c")
        state, actions = step(state, pt.Received(sender, pt.Redirect(3, hint, GENESIS)), 0.01 * turn)
        polls += len(only(actions, pt.Send))
    assert polls <= 4


def test_a_redirect_to_a_dead_node_does_not_keep_a_node_from_asking_the_others() -> None:
    state, now, asked = started_node("p", known=("d", "e")), 0.0, set[str]()
    for _ in range(12):
        now = max(now, wake_at(state))
        state, actions = step(state, pt.Tick(), now)
        while only(actions, pt.Send):
            (action,) = only(actions, pt.Send)
            asked.add(action.to)
            is_dead = action.to == "x"
            redirect = pt.Received(action.to, pt.Redirect(3, "x", GENESIS))
            state, actions = step(state, pt.Unreachable("x", action.message) if is_dead else redirect, now)
    assert {"c", "d", "e"} <= asked


def test_a_committed_round_is_learned_from_a_node_that_does_not_lead_too() -> None:
    record = RoundRecord(1, "x1", "", ("p", "q", "r"))
    _, actions = drive(started_node("p"), (pt.Tick(), 0.0), (pt.Received("c", pt.Redirect(3, "", record)), 0.1))
    assert [action.round for action in only(actions, pt.FetchRound)] == [1]


@pytest.mark.parametrize("is_told", [True, False])
def test_after_a_sleep_nothing_is_sent_before_a_new_update(is_told: bool) -> None:
    state, _ = drive(started_node("p"), (pt.Tick(), 0.0), (update(plan=plan()), 0.1), (pt.Tick(), 3.0))
    now = 3.0 + ASLEEP_SECONDS + 60
    if is_told:
        state, _ = step(state, pt.Resumed(), now)
    state, actions = step(state, pt.Trained(1, True), now)
    assert uploads(actions) == []
    state, actions = step(state, update(plan=plan(), number=state.tracking.oldest - 1), now)
    assert uploads(actions) == []
    _, actions = step(state, update(plan=plan(), number=state.tracking.number), now)
    assert uploads(actions) == [0, 1]


def test_a_leader_that_is_asked_to_stop_ends_its_round_and_leaves_without_ending_the_run() -> None:
    state, actions = drive(new_leader(), (poll("p"), 1.0), (pt.Stop(), 2.0))
    assert not only(actions, pt.Quit), "the work of p would be lost to this round"
    arrived = poll("p", state.leader_role.plan.key)
    state, actions = drive(state, (arrived, 3.0), (pt.Sealed(FIRST), 3.1), (pt.Applied(FIRST), 3.2))
    assert only(actions, pt.Quit)
    assert state.leader_role.state.phase is Phase.FINISHED
    assert not round_update(state).is_finished


def test_a_peer_that_is_asked_to_stop_and_knows_no_leader_leaves_at_once_and_has_no_timer() -> None:
    state, _ = step(working(), pt.Unreachable("c", poll("p").message), 4.1)
    state, actions = step(replace(state, tracking=replace(state.tracking, leader="")), pt.Stop(), 4.2)
    assert only(actions, pt.Quit)
    assert wake_at(state) == float("inf")


def test_a_peer_that_has_the_last_round_tells_the_leader_at_once() -> None:
    over = replace(update(base=FIRST, number=2).message, is_finished=True)
    state, _ = drive(started_node("p"), (pt.Tick(), 0.0), (update(), 0.1), (pt.Received("c", over), 1.0))
    _, actions = step(state, pt.Applied(FIRST), 1.5)
    assert [message.applied for message in sent(actions, pt.Poll)] == [1] or sent(actions, pt.Goodbye)


def tick_until_it_quits(state: Node, seconds: float, lives: bool) -> tuple[Node, float]:
    """The node when it quits or after ``seconds``, and how long it took. Of the others q alone may answer."""
    began = now = state.stepped_at
    while now < began + seconds:
        now = max(wake_at(state), now + 0.01)
        state, actions = step(state, pt.Tick(), now)
        if only(actions, pt.Quit):
            break
        events = [pt.Unreachable(action.to, action.message) for action in only(actions, pt.Send)]
        if lives:
            events = [pt.Received("q", HeartbeatReply(state.voter.term, 2, "", "following"))]
        state, _ = drive(state, *((event, now) for event in events))
    return state, now - began


@pytest.mark.parametrize("applied", [2, 3])
def test_a_voter_that_is_started_after_the_last_round_ends_where_nobody_leads(applied: int) -> None:
    """The other voters left with the end of the run: it would wait for them for ever."""
    base = RoundRecord(applied, "2" * 64, "1" * 64, ("c", "p", "q"))
    state = started_node("c", trains=False, base=base, last_round=3, known=("p", "q"))
    state, seconds = tick_until_it_quits(state, 3 * UNLED_SECONDS, lives=False)
    assert state.has_quit is state.peer.is_finished is (applied == 3), "else it goes on when the others are back"
    if state.has_quit:
        assert UNLED_SECONDS <= seconds < UNLED_SECONDS + 10.0


@pytest.mark.parametrize("lives", [True, False])
def test_a_leader_does_not_leave_a_voter_without_the_last_round_that_still_asks_others(lives: bool) -> None:
    """It asked where nobody answers; meanwhile the run ended, everybody left, and it waited for ever."""
    state = started_node("c", base=RoundRecord(3, "3" * 64, "2" * 64, ("c", "p", "q")), last_round=3)
    state, _ = step(state, pt.Tick(), state.voter.election_at)
    for is_pre_vote in (True, False):
        vote = VoteReply(1, state.voter.term, True, is_pre_vote, "granted")
        state, _ = step(state, pt.Received("q", vote), state.stepped_at)
    assert state.voter.leads
    state, _ = tick_until_it_quits(state, 30.0, lives)
    assert state.has_quit is not lives
    if lives:
        now = state.stepped_at
        late, done = (poll("q", applied=round, trains=False, is_dialable=True) for round in (2, 3))
        assert only(drive(state, (late, now), (done, now + 0.1))[1], pt.Quit)


def test_shards_go_to_nodes_that_lack_no_more_than_the_round_that_was_committed_just_now() -> None:
    """Once a leader reduced every round after the first alone: nobody has applied a round as the next one opens."""
    state, _ = drive(new_leader(), *((poll(name, is_dialable=True), 1.0) for name in ("p", "q", "r")))
    plan = state.leader_role.plan
    ready = [(poll(name, plan.key, is_dialable=True), 2.0) for name in ("p", "q", "r")]
    done = [
        (pt.Received(reducer, pt.ShardDone(plan.term, 1, shard, pt.ShardDigest(frozenset("pqr"), f"d{shard}"))), 2.1)
        for shard, reducer in enumerate(plan.nodes)
    ]
    state, _ = drive(state, *ready, *done, (pt.Sealed(FIRST), 2.2))
    assert state.leader_role.plan.round == 2
    assert set(state.leader_role.plan.nodes) - {"c"}, "others reduce too"


def test_a_leader_that_trains_counts_its_own_work_as_soon_as_it_is_there() -> None:
    state, _ = drive(started_node("c"), (pt.Tick(), 0.0), (pt.Trained(1, True), 4.0))
    for shard in (0, 1):
        state, _ = step(state, pt.Offered("c", state.voter.term, 1, "", shard, 10), 4.1)
        state, actions = step(state, pt.Uploaded(state.voter.term, 1, shard, SLOTS[shard], True), 4.1)
    assert only(actions, pt.Average)


def ahead() -> Node:
    """A peer that has applied three rounds of a run whose only voter is the coordinator."""
    records = [RoundRecord(round, f"x{round}", f"x{round - 1}" if round > 1 else "", ("c",)) for round in (1, 2, 3)]
    told = update(term=2, base=records[-1]), 0.1
    state, _ = drive(started_node("p"), (pt.Tick(), 0.0), told, *((pt.Applied(record), 0.2) for record in records))
    assert state.peer.applied == 3
    return state


def test_the_only_voter_is_followed_when_it_was_set_back() -> None:
    state = ahead()
    state, actions = step(state, update(version=1, base=FIRST, number=state.tracking.number), 5.0)
    assert only(actions, pt.FetchState)
    assert state.tracking.leader == "c"
    state, _ = step(state, pt.Restored(FIRST), 6.0)
    assert (state.peer.applied, state.peer.chain, state.voter.hard_state.base) == (1, "x1", FIRST)


@pytest.mark.parametrize(
    ("sender", "voters", "age"),
    [("c", ("c",), 1), ("c", ("c", "d", "e"), 0), ("d", ("c",), 0)],
    ids=["an old answer", "other voters", "another node"],
)
def test_nothing_else_takes_back_a_committed_round(sender: str, voters: tuple[str, ...], age: int) -> None:
    state = ahead()
    older = update(base=replace(FIRST, voters=voters), number=state.tracking.number - age).message
    after, actions = step(state, pt.Received(sender, replace(older, leader=sender)), 5.0)
    assert (after.peer.applied, after.peer.needs_state, after.voter.hard_state.base.round) == (3, False, 3)
    assert not only(actions, pt.FetchState)
