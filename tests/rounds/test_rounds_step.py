"""One node, step by step: what went wrong in rehearsals, and must not again."""

from dataclasses import replace

import pytest

from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.follower import UNLED_SECONDS
from tsr_swarm.rounds.gather import ShardDigest
from tsr_swarm.rounds.leader import round_update
from tsr_swarm.rounds.peer import PeerState
from tsr_swarm.rounds.protocol import OpenRound, Poll, Received, Redirect, ReducerSlot, RoundUpdate
from tsr_swarm.rounds.raft_state import HardState, Heartbeat, HeartbeatReply, RoundRecord, VoteReply
from tsr_swarm.rounds.round_phases import Phase, RoundPolicy
from tsr_swarm.rounds.state import Node, NodeIdentity
from tsr_swarm.rounds.step import ASLEEP_SECONDS, begin, step, wake_at

POLICY = RoundPolicy(quorum=1, floor_seconds=2.0, ceiling_seconds=30.0, min_peers=1, last_round=0)
GENESIS = RoundRecord(voters=("c",))
SLOTS = (ReducerSlot("c", 1), ReducerSlot("c", 1))


def node(me: str, trains: bool = True, now: float = 0.0, policy: RoundPolicy = POLICY) -> Node:
    identity = NodeIdentity(
        me=me, incarnation=1, trains=trains, is_dialable=True, first="c", sizes=(1, 1), policy=policy
    )
    return begin(identity, HardState(GENESIS), PeerState(applied=0), now)


def drive(state: Node, *events: tuple[pt.Event, float]) -> tuple[Node, list[pt.Action]]:
    """All events, and what the last one led to."""
    actions: list[pt.Action] = []
    for event, now in events:
        state, actions = step(state, event, now)
    return state, actions


def poll(peer: str, sent: tuple[int, int, int] = (0, 0, 0), known: int = 0) -> Received:
    return Received(peer, Poll(peer, 1, 0, True, False, sent, known))


def update(
    term: int = 1, version: int = 2, plan: OpenRound | None = None, base: RoundRecord = GENESIS, number: int = 1
) -> RoundUpdate:
    return RoundUpdate(term, "c", version, base, (), plan, (), False, number)


def plan(term: int = 1, version: int = 1) -> OpenRound:
    return OpenRound(1, "", term, version, SLOTS)


def new_leader() -> Node:
    state, _ = step(node("c", trains=False), pt.Tick(), 0.0)
    assert state.voter.leads
    return state


def working() -> Node:
    """A peer that has trained for round 1 and begun to send it."""
    state, actions = drive(
        node("p"), (pt.Tick(), 0.0), (Received("c", update(plan=plan())), 0.1), (pt.Trained(1, True), 4.0)
    )
    assert [action for action in actions if isinstance(action, pt.Upload)]
    return state


def uploads(actions: list[pt.Action]) -> list[int]:
    return [action.shard for action in actions if isinstance(action, pt.Upload)]


# --- time -------------------------------------------------------------------------------------------------------------


def emptied() -> Node:
    """A leader whose only peer left in the middle of a round."""
    state, _ = drive(new_leader(), (poll("p"), 1.0), (Received("p", pt.Goodbye("p")), 2.0))
    assert state.leader_role is not None
    assert state.leader_role.state.phase is Phase.TRAIN
    return state


def alone() -> Node:
    """A coordinator after its first round, whose peers are gone, so that the time to open is over."""
    return new_leader()


@pytest.mark.parametrize("make", [emptied, alone, working])
def test_a_timer_that_went_off_is_not_due_at_once_again(make: object) -> None:
    state: Node = make()  # type: ignore[operator]
    now = 5.0
    for _ in range(50):
        now = max(now, wake_at(state))
        state, _ = step(state, pt.Tick(), now)
        assert wake_at(state) > now


def test_a_node_that_has_quit_has_no_timer() -> None:
    state, actions = drive(node("p"), (pt.Tick(), 0.0), (pt.Stop(), 1.0))
    assert any(isinstance(action, pt.Quit) for action in actions)
    assert wake_at(state) == float("inf")


# --- who votes --------------------------------------------------------------------------------------------------------


def stores(state: Node, proposal: RoundRecord, term: int = 1) -> list[pt.Store]:
    beat = Heartbeat(term, GENESIS, proposal)
    _, actions = step(state, Received("c", beat), 1.0)
    return [action for action in actions if isinstance(action, pt.Store)]


def test_a_proposal_s_shards_are_fetched_from_who_made_them_as_far_as_that_is_known() -> None:
    state, _ = step(node("p"), pt.Tick(), 0.0)
    proposal = RoundRecord(1, "chain", "", ("c",))
    assert stores(state, proposal) == [pt.Store(proposal, (), ("c",))]
    slots = (ReducerSlot("r", 1), ReducerSlot("c", 1))
    state, _ = step(state, Received("c", update(plan=OpenRound(1, "", 1, 1, slots))), 0.5)
    assert stores(state, proposal) == [pt.Store(proposal, ("r", "c"), ("c",))]
    assert stores(state, proposal, term=2) == [pt.Store(proposal, (), ("c",))], "of another leader's plan"


# --- a new leader for the same round ----------------------------------------------------------------------------------


def test_what_was_sent_by_another_leaders_plan_has_not_arrived() -> None:
    state, _ = drive(new_leader(), (poll("p"), 1.0))
    assert state.leader_role is not None
    assert state.leader_role.plan is not None
    round, term, version = state.leader_role.plan.key
    other, _ = step(state, poll("p", (round, term - 1, version)), 2.0)
    assert other.leader_role is not None
    assert other.leader_role.state.arrivals == {}
    state, _ = step(state, poll("p", (round, term, version)), 2.0)
    assert state.leader_role is not None
    assert state.leader_role.gather is not None or state.leader_role.state.arrivals


def test_a_shard_that_came_too_late_for_one_leader_is_offered_to_the_next() -> None:
    state, actions = drive(
        working(),
        (pt.Uploaded(1, 1, 0, SLOTS[0], True), 4.1),
        (pt.Uploaded(1, 1, 1, SLOTS[1], False), 4.2),
        (Received("c", update(version=3, plan=plan(), number=2)), 4.3),
    )
    assert uploads(actions) == []
    _, actions = step(state, Received("c", update(term=2, version=4, plan=plan(term=2), number=2)), 4.4)
    assert uploads(actions) == [1]


def test_a_reducer_that_closed_for_one_leader_takes_more_for_the_next() -> None:
    state, actions = drive(
        node("r"),
        (pt.Offered("p", 1, 1, "", 0, 10), 1.0),
        (Received("c", pt.Close(1, 1, "", (0,), frozenset({"p"}))), 2.0),
    )
    assert pt.Average(1, 1, {0: frozenset({"p"})}) in actions
    _, late = step(state, pt.Offered("q", 1, 1, "", 0, 10), 2.1)
    assert [action.verdict.counted for action in late if isinstance(action, pt.Reply)] == [False]
    state, more = step(state, pt.Offered("q", 2, 1, "", 0, 10), 2.2)
    assert [action.verdict.counted for action in more if isinstance(action, pt.Reply)] == [True]
    old = pt.Averaged(1, 1, 0, ShardDigest(frozenset({"p"}), "old"))
    state, actions = drive(state, (Received("d", pt.Close(2, 1, "", (0,), frozenset({"p", "q"}))), 2.3), (old, 2.4))
    assert not any(isinstance(action, pt.Send) and isinstance(action.message, pt.ShardDone) for action in actions)


def test_a_later_round_is_newer_news_even_in_a_lower_term() -> None:
    """New voters may never have after of the old ones' terms."""
    later = RoundRecord(3, "x3", "x2", ("d", "e", "f"))
    state, _ = drive(node("p"), (pt.Tick(), 0.0), (Received("c", update(term=7)), 0.1))
    after, _ = step(state, Received("d", replace(update(term=2, base=later), leader="d")), 0.2)
    assert after.tracking.leader == "d"
    back, _ = step(after, Received("c", update(term=7, version=9)), 0.3)
    assert back.tracking.leader == "d"


# --- finding the others -----------------------------------------------------------------------------------------------


def test_two_that_point_at_each_other_are_not_asked_without_a_rest() -> None:
    state, _ = step(node("p"), pt.Tick(), 0.0)
    asked = 0
    for turn in range(20):
        sender, hint = ("c", "d") if state.tracking.asked == "c" else ("d", "c")
        state, actions = step(state, Received(sender, Redirect(3, hint, GENESIS)), 0.01 * turn)
        asked += sum(isinstance(action, pt.Send) for action in actions)
    assert asked <= 4


def test_a_stale_hint_does_not_keep_a_node_from_asking_the_others() -> None:
    state, now, asked = replace(node("p"), tracking=replace(node("p").tracking, nodes=("d", "e"))), 0.0, []
    for _ in range(12):
        now = max(now, wake_at(state))
        state, actions = step(state, pt.Tick(), now)
        for action in actions:
            if isinstance(action, pt.Send) and isinstance(action.message, Poll):
                asked.append(action.to)
                is_dead = action.to == "x"
                answer = (
                    pt.Unreachable("x", action.message) if is_dead else Received(action.to, Redirect(3, "x", GENESIS))
                )
                state, actions = step(state, answer, now)
                asked += [more.to for more in actions if isinstance(more, pt.Send)]
                if state.tracking.asked == "x":
                    state, _ = step(state, pt.Unreachable("x", action.message), now)
    assert {"c", "d", "e"} <= set(asked)


def test_a_round_that_stands_is_learned_from_who_does_not_lead_too() -> None:
    record = RoundRecord(1, "x1", "", ("p", "q", "r"))
    _, actions = drive(node("p"), (pt.Tick(), 0.0), (Received("c", Redirect(3, "", record)), 0.1))
    assert [action.round for action in actions if isinstance(action, pt.FetchRound)] == [1]


# --- sleep, and going away --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_told", [True, False])
def test_after_a_sleep_nothing_is_sent_before_there_is_fresh_news(is_told: bool) -> None:
    state, _ = drive(node("p"), (pt.Tick(), 0.0), (Received("c", update(plan=plan())), 0.1), (pt.Tick(), 3.0))
    now = 3.0 + ASLEEP_SECONDS + 60
    if is_told:
        state, _ = step(state, pt.Resumed(), now)
    state, actions = step(state, pt.Trained(1, True), now)
    assert uploads(actions) == []
    old = state.tracking.oldest - 1
    state, actions = step(state, Received("c", update(plan=plan(), number=old)), now)
    assert uploads(actions) == []
    _, actions = step(state, Received("c", update(plan=plan(), number=state.tracking.number)), now)
    assert uploads(actions) == [0, 1]


def stopped_in_a_round() -> Node:
    """A coordinator that was asked to stop while p trains for round 1."""
    state, actions = drive(new_leader(), (poll("p"), 1.0), (pt.Stop(), 2.0))
    assert not [action for action in actions if isinstance(action, pt.Quit)], "p's work would be lost to this round"
    return state


def finish_round_1(state: Node) -> tuple[Node, list[pt.Action]]:
    assert state.leader_role is not None
    assert state.leader_role.plan is not None
    return drive(
        state,
        (poll("p", sent=state.leader_role.plan.key), 3.0),
        (pt.Sealed(RoundRecord(1, "x1", "", ("c",))), 3.1),
        (pt.Applied(RoundRecord(1, "x1", "", ("c",))), 3.2),
    )


def test_a_leader_that_is_asked_to_stop_ends_its_round_and_goes_and_tells_nobody_that_the_run_is_over() -> None:
    state, actions = finish_round_1(stopped_in_a_round())
    assert [action for action in actions if isinstance(action, pt.Quit)]
    assert state.leader_role is not None
    assert state.leader_role.state.phase is Phase.FINISHED
    assert not round_update(state).is_finished


def test_a_peer_that_is_asked_to_stop_and_knows_no_leader_goes_at_once() -> None:
    state, _ = drive(working(), (pt.Unreachable("c", pt.Poll("p", 1, 0, True, True, (0, 0, 0), 0)), 4.1))
    state = replace(state, tracking=replace(state.tracking, leader=""))
    _, actions = step(state, pt.Stop(), 4.2)
    assert [action for action in actions if isinstance(action, pt.Quit)]


def test_whoever_has_the_last_round_says_so_at_once() -> None:
    last = RoundRecord(1, "x1", "", ("c",))
    over = replace(update(base=last, number=2), is_finished=True)
    state, _ = drive(node("p"), (pt.Tick(), 0.0), (Received("c", update()), 0.1), (Received("c", over), 1.0))
    _, actions = step(state, pt.Applied(last), 1.5)
    told = [action.message for action in actions if isinstance(action, pt.Send)]
    assert [m.applied for m in told if isinstance(m, Poll)] == [1] or any(isinstance(m, pt.Goodbye) for m in told)


@pytest.mark.parametrize("applied", [2, 3])
def test_a_voter_that_is_started_after_the_last_round_ends_where_nobody_leads(applied: int) -> None:
    """The others of its voters went home with the end of the run: it would wait for them for ever."""
    policy = replace(POLICY, last_round=3)
    base = RoundRecord(applied, "2" * 64, "1" * 64, ("c", "p", "q"))
    identity = replace(node("c", trains=False, policy=policy).identity, known=("p", "q"))
    state = begin(identity, HardState(base), PeerState(applied=applied, chain=base.chain), 0.0)
    quits: list[float] = []
    now = 0.0
    while now < 3 * UNLED_SECONDS and not quits:
        now = max(wake_at(state), now + 0.01)
        state, actions = step(state, pt.Tick(), now)
        quits += [now for action in actions if isinstance(action, pt.Quit)]
        for action in actions:
            if isinstance(action, pt.Send):
                state, _ = step(state, pt.Unreachable(action.to, action.message), now)
    if applied == 3:
        assert state.tracking.is_finished
        assert UNLED_SECONDS <= quits[0] < UNLED_SECONDS + 10.0
    else:
        assert not quits, "the run goes on when the others are back"


def led_to_the_end() -> tuple[Node, RoundRecord]:
    """A leader that was elected by q, which has not found its way to it, with the run's last round."""
    policy = replace(POLICY, last_round=3)
    last = RoundRecord(3, "3" * 64, "2" * 64, ("c", "p", "q"))
    state = begin(node("c", policy=policy).identity, HardState(last), PeerState(applied=3, chain=last.chain), 0.0)
    state, _ = step(state, pt.Tick(), state.voter.election_at)
    for is_pre_vote in (True, False):
        vote = VoteReply(1, state.voter.term, True, is_pre_vote, "granted")
        state, _ = step(state, Received("q", vote), state.stepped_at)
    assert state.voter.leads
    return state, last


@pytest.mark.parametrize("lives", [True, False])
def test_a_leader_does_not_leave_a_voter_without_the_last_round_that_still_asks_others(lives: bool) -> None:
    """It asked where nobody answers; meanwhile the run ended, everybody went home, and it waited for ever."""
    state, last = led_to_the_end()
    now = began = state.stepped_at
    quits: list[float] = []
    while now < began + 30.0 and not quits:
        now = max(wake_at(state), now + 0.01)
        state, actions = step(state, pt.Tick(), now)
        quits += [now for action in actions if isinstance(action, pt.Quit)]
        if lives and not quits:
            state, _ = step(state, Received("q", HeartbeatReply(state.voter.term, 2, "", "following")), now)
    if not lives:
        assert quits
        return
    assert not quits
    state, actions = drive(
        state,
        (Received("q", Poll("q", 1, 2, False, True, (0, 0, 0), 0)), now),
        (Received("q", Poll("q", 1, last.round, False, True, (0, 0, 0), 0)), now + 0.1),
    )
    assert [action for action in actions if isinstance(action, pt.Quit)]


def test_shards_go_to_nodes_that_lack_no_more_than_the_round_that_was_decided_just_now() -> None:
    """Once a leader reduced every round after the first alone: nobody has applied a round as the next one opens."""
    state, _ = drive(
        new_leader(),
        *((Received(name, Poll(name, 1, 0, True, True, (0, 0, 0), 0)), 1.0) for name in ("p", "q", "r")),
    )
    assert state.leader_role is not None
    assert state.leader_role.plan is not None
    key = state.leader_role.plan.key
    ready = [(Received(name, Poll(name, 1, 0, True, True, key, 0)), 2.0) for name in ("p", "q", "r")]
    done = [
        (Received(node, pt.ShardDone(key[1], 1, shard, ShardDigest(frozenset("pqr"), f"d{shard}"))), 2.1)
        for shard, node in enumerate(state.leader_role.plan.nodes)
    ]
    state, _ = drive(state, *ready, *done, (pt.Sealed(RoundRecord(1, "x1", "", ("c",))), 2.2))
    assert state.leader_role is not None
    assert state.leader_role.plan is not None
    assert state.leader_role.plan.round == 2
    assert {*state.leader_role.plan.nodes} - {"c"}, "others reduce too"


def test_a_leader_that_trains_counts_its_own_work_as_soon_as_it_is_there() -> None:
    state, _ = step(node("c"), pt.Tick(), 0.0)
    state, _ = step(state, pt.Trained(1, True), 4.0)
    for shard in (0, 1):
        state, _ = step(state, pt.Offered("c", state.voter.term, 1, "", shard, 10), 4.1)
        state, actions = step(state, pt.Uploaded(state.voter.term, 1, shard, SLOTS[shard], True), 4.1)
    assert any(isinstance(action, pt.Average) for action in actions)


# --- a coordinator that votes alone and lost its disk -----------------------------------------------------------------


def ahead() -> Node:
    """A peer that has applied three rounds of a run whose only voter is the coordinator."""
    records = [RoundRecord(round, f"x{round}", f"x{round - 1}" if round > 1 else "", ("c",)) for round in (1, 2, 3)]
    told = [(Received("c", update(term=2, version=2, base=records[-1], number=1)), 0.1)]
    state, _ = drive(node("p"), (pt.Tick(), 0.0), *told, *((pt.Applied(record), 0.2) for record in records))
    assert state.peer.applied == 3
    return state


def test_the_only_voter_is_followed_when_it_was_set_back() -> None:
    state = ahead()
    older = RoundRecord(1, "x1", "", ("c",))
    state, actions = step(
        state, Received("c", update(term=1, version=1, base=older, number=state.tracking.number)), 5.0
    )
    assert [action for action in actions if isinstance(action, pt.FetchState)]
    assert state.tracking.leader == "c"
    state, _ = step(state, pt.Restored(older), 6.0)
    assert (state.peer.applied, state.peer.chain, state.voter.hard_state.base) == (1, "x1", older)


@pytest.mark.parametrize("what", ["an old answer", "other voters", "somebody else"])
def test_nobody_else_takes_back_what_stands(what: str) -> None:
    state = ahead()
    sender, voters = ("d", ("c",)) if what == "somebody else" else ("c", ("c", "d", "e"))
    base = RoundRecord(1, "x1", "", voters if what != "an old answer" else ("c",))
    number = state.tracking.number - 1 if what == "an old answer" else state.tracking.number
    after, actions = step(
        state, Received(sender, replace(update(term=1, base=base, number=number), leader=sender)), 5.0
    )
    assert (after.peer.applied, after.peer.needs_state, after.voter.hard_state.base.round) == (3, False, 3)
    assert not [action for action in actions if isinstance(action, pt.FetchState)]
