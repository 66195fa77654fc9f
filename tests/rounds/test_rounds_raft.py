"""Raft's rules: whatever order messages come in, however often and whoever dies, a round has one result."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tsr_swarm.rounds import raft, raft_state
from tsr_swarm.rounds.protocol import Send, Store
from tsr_swarm.rounds.raft import RaftResult

NAMES = ("a", "b", "c", "d", "e")
VOTERS = [("a",), ("a", "b", "c"), ("c", "d", "e"), ("b", "c", "d"), NAMES]
nodes = st.sampled_from(NAMES)


class Voters(RuleBasedStateMachine):
    """Five nodes, a network that loses, doubles and reorders, and voters that change from one to five and back."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.voters: dict[str, raft_state.Voter] = {}
        self.messages: list[tuple[str, str, raft_state.RaftMessage]] = []
        self.fetching: list[tuple[str, raft_state.RoundRecord]] = []
        self.behind: dict[str, str] = {}  # who lacks rounds -> from whom it may learn them
        self.committed: dict[int, raft_state.RoundRecord] = {}
        self.leaders: dict[tuple[int, tuple[str, ...]], str] = {}
        self.votes: dict[tuple[str, int], str] = {}
        self.proposed = 0

    @initialize(voters=st.sampled_from(VOTERS))
    def begin(self, voters: tuple[str, ...]) -> None:
        genesis = raft_state.RoundRecord(voters=voters)
        self.committed[0] = genesis
        self.voters = {name: raft.begin(name, raft_state.HardState(genesis), 0.0) for name in NAMES}

    def take(self, result: RaftResult) -> None:
        """Take over what a voter has become, and what it does."""
        after, actions = result
        name, before = after.me, self.voters[after.me]
        self.voters[name] = after
        self.check(before, after)
        for action in actions:
            match action:
                case Send(to, message):
                    self.messages.append((name, to, message))
                case Store(record):
                    self.fetching.append((name, record))
                case raft_state.CatchUp(_, source):
                    self.behind[name] = source

    def check(self, before: raft_state.Voter, after: raft_state.Voter) -> None:
        old, new, me = before.hard_state, after.hard_state, after.me
        assert new.term >= old.term
        assert new.base.round >= old.base.round
        committed = self.committed.setdefault(new.base.round, new.base)
        assert committed == new.base, f"{me} has {new.base} where {committed} is committed"
        if new.voted_for:
            assert self.votes.setdefault((me, new.term), new.voted_for) == new.voted_for
        if after.leads:
            assert self.leaders.setdefault((after.term, after.voters), me) == me
            assert me in after.voters
        if new.tail is not None:
            assert (new.tail.round, new.tail.parent) == (new.base.round + 1, new.base.chain)

    def receive(self, sender: str, to: str, message: raft_state.RaftMessage) -> None:
        self.take(raft.receive(self.voters[to], sender, message, self.now))

    def learn_round(self, name: str, round: int) -> None:
        self.take((raft.learn(self.voters[name], self.committed[round], self.now), []))

    @precondition(lambda self: self.messages)
    @rule(data=st.data(), again=st.booleans())
    def deliver(self, data: st.DataObject, again: bool) -> None:
        at = data.draw(st.integers(0, len(self.messages) - 1))
        self.receive(*(self.messages[at] if again else self.messages.pop(at)))

    @precondition(lambda self: self.messages)
    @rule(keep=st.integers(0, 10))
    def lose(self, keep: int) -> None:
        del self.messages[keep:]

    @precondition(lambda self: self.fetching)
    @rule(data=st.data())
    def store(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.fetching) - 1))
        name, record = self.fetching.pop(at)
        self.take(raft.accept_stored(self.voters[name], record))

    @rule(name=nodes, seconds=st.sampled_from([0.0, 1.0, 9.0]))
    def wait(self, name: str, seconds: float) -> None:
        self.now += seconds
        self.take(raft.tick(self.voters[name], self.now))

    @rule(name=nodes, voters=st.sampled_from(VOTERS))
    def propose(self, name: str, voters: tuple[str, ...]) -> None:
        voter = self.voters[name]
        if voter.leads and voter.proposal is None:
            base = voter.hard_state.base
            self.proposed += 1
            record = raft_state.RoundRecord(base.round + 1, f"{name}{self.proposed}", base.chain, voters)
            self.take(raft.propose(voter, record, self.now))

    @rule(name=nodes)
    def learn(self, name: str) -> None:
        """Fetch a round from the leader that has said that rounds are missing here."""
        source, base = self.voters.get(self.behind.get(name, "")), self.voters[name].hard_state.base
        if source is not None and source.hard_state.base.round > base.round:
            self.learn_round(name, base.round + 1)

    @rule(name=nodes, loses_bytes=st.booleans())
    def die(self, name: str, loses_bytes: bool) -> None:
        hard_state = self.voters[name].hard_state
        lost = hard_state.tail.chain if loses_bytes and hard_state.tail is not None else ""
        self.voters[name] = raft.begin(name, hard_state, self.now, lost)
        self.fetching = [item for item in self.fetching if item[0] != name]
        self.behind.pop(name, None)

    @rule(here=st.sets(nodes, min_size=2), voters=st.sampled_from(VOTERS), turns=st.integers(1, 4), most=st.booleans())
    def calm(self, here: set[str], voters: tuple[str, ...], turns: int, most: bool) -> None:
        """Some nodes are left alone: they elect, propose and decide, or are cut off in the middle of it."""
        self.messages.clear()
        self.now += 9.0
        for _ in range(30 if most else 2):
            self.now += 0.4
            for name in sorted(here):
                self.take(raft.tick(self.voters[name], self.now))
                self.exchange(here, turns + 60 * most)
        for name in sorted(here):
            self.propose(name, voters)
        self.exchange(here, turns + 60 * most)

    def exchange(self, here: set[str], turns: int) -> None:
        for _ in range(turns):
            for name in sorted(here & self.behind.keys()):
                if self.behind[name] in here:
                    self.learn(name)
            among = [item for item in self.messages if item[0] in here and item[1] in here]
            if not among and not any(name in here for name, _ in self.fetching):
                return
            self.messages = [item for item in self.messages if item not in among]
            for item in among:
                self.receive(*item)
            stored = [item for item in self.fetching if item[0] in here]
            self.fetching = [item for item in self.fetching if item[0] not in here]
            for name, record in stored:
                self.take(raft.accept_stored(self.voters[name], record))

    @invariant()
    def a_round_follows_the_one_before(self) -> None:
        for round, record in self.committed.items():
            if round - 1 in self.committed:
                assert record.parent == self.committed[round - 1].chain

    def teardown(self) -> None:
        """Left alone altogether, the nodes agree and go on."""
        if not self.voters:
            return
        self.messages.clear()
        newest = max(self.committed)
        for name in NAMES:  # they tell each other, as by rounds/protocol.py's Redirect
            for round in range(self.voters[name].hard_state.base.round + 1, newest + 1):
                self.learn_round(name, round)
        for _ in range(3):
            self.calm(set(NAMES), NAMES, 4, True)
        assert max(self.committed) > newest
        assert any(voter.leads for voter in self.voters.values())


TestVoters = Voters.TestCase
TestVoters.settings = settings(max_examples=80, stateful_step_count=30, suppress_health_check=list(HealthCheck))


THREE = ("a", "b", "c")
GENESIS, FIRST = raft_state.RoundRecord(0, "r0", "r-1", THREE), raft_state.RoundRecord(1, "r1", "r0", THREE)


def new_voter(me: str, base: int = 0, tail_term: int = 0, term: int = 0) -> raft_state.Voter:
    """One of three voters, with round ``base`` committed and, if ``tail_term``, the next accepted in that term."""
    record = raft_state.RoundRecord(base, f"r{base}", f"r{base - 1}", THREE)
    tail = raft_state.RoundRecord(base + 1, f"r{base + 1}", f"r{base}", THREE) if tail_term else None
    return raft.begin(me, raft_state.HardState(record, term=term, tail=tail, tail_term=tail_term), 0.0)


def grants(voter: raft_state.Voter, candidate: raft_state.Voter) -> bool:
    request = raft_state.VoteRequest(9, candidate.me, candidate.hard_state.extent, is_pre_vote=False)
    _, actions = raft.receive(voter, candidate.me, request, 100.0)
    (reply,) = [action.message for action in actions if isinstance(action, Send)]
    assert isinstance(reply, raft_state.VoteReply)
    return reply.granted


def elected(me: str = "a") -> raft_state.Voter:
    state, _ = raft.tick(new_voter(me), 20.0)
    assert state.role is raft_state.RaftRole.PRE_CANDIDATE
    for is_pre_vote in (True, False):
        term = state.term + 1 if is_pre_vote else state.term
        state, _ = raft.receive(state, "b", raft_state.VoteReply(term, state.term, True, is_pre_vote, "granted"), 20.0)
    assert state.leads
    return state


def test_a_voter_that_has_lost_the_bytes_of_its_tail_votes_as_before_and_does_not_stand() -> None:
    """Nobody could fetch what it would propose; without it the others settle that round, if they can."""
    sound = new_voter("a", base=3, tail_term=2, term=2)
    lost = raft.begin("a", sound.hard_state, 0.0, "r4")
    assert lost.hard_state == sound.hard_state
    assert raft.wake_at(sound) < float("inf") == raft.wake_at(lost)
    assert raft.tick(lost, 1e6) == (lost, [])
    for other in (new_voter("b", base=3), new_voter("b", base=3, tail_term=2), new_voter("b", base=4)):
        assert grants(lost, other) == grants(sound, other)
    assert not grants(lost, new_voter("b", base=3)), "what it accepted may be committed"


def test_a_voter_that_gets_the_bytes_of_its_tail_again_or_another_round_may_stand_again() -> None:
    base, tail = raft_state.RoundRecord(3, "r3", "r2", THREE), raft_state.RoundRecord(4, "r4", "r3", THREE)
    lost = raft.begin("a", new_voter("a", base=3, tail_term=2, term=2).hard_state, 0.0, "r4")
    asked, actions = raft.receive(lost, "b", raft_state.Heartbeat(5, base, tail), 1.0)
    assert Store(tail, (), ("b",)) in actions, "its bytes are fetched from who proposes it"
    stored, _ = raft.accept_stored(asked, tail)
    for voter in (stored, raft.learn(lost, tail, 2.0)):
        assert voter.may_campaign
        assert raft.wake_at(voter) < float("inf")


@pytest.mark.parametrize(
    ("voter", "candidate", "is_granted"),
    [
        (new_voter("a", 3), new_voter("b", 3), True),
        (new_voter("a", 3, tail_term=2), new_voter("b", 3), False),
        (new_voter("a", 3, tail_term=2), new_voter("b", 3, tail_term=1), False),
        (new_voter("a", 3, tail_term=2), new_voter("b", 3, tail_term=2), True),
        (new_voter("a", 4), new_voter("b", 3, tail_term=5), False),
        # it only learned that the round is committed, and may lead all the same
        (new_voter("a", 3, tail_term=2), new_voter("b", 4), True),
        (new_voter("a", 3, tail_term=2), new_voter("b", 5), True),
    ],
)
def test_the_vote_goes_to_a_candidate_that_knows_at_least_as_much(
    voter: raft_state.Voter, candidate: raft_state.Voter, is_granted: bool
) -> None:
    assert grants(voter, candidate) is is_granted


def test_a_leader_or_candidate_that_learns_of_a_round_gives_up_and_its_votes_are_void() -> None:
    """Others were elected, and the votes that it has were for the old voters."""
    for state in (elected(), raft.tick(new_voter("a"), 20.0)[0]):
        state = raft.learn(state, raft_state.RoundRecord(1, "r1", "r0", ("a", "d", "e")), 21.0)
        assert state.role is raft_state.RaftRole.FOLLOWER
        assert state.votes == frozenset()


def test_a_round_is_committed_when_a_majority_holds_it_and_not_before() -> None:
    state, actions = raft.propose(elected(), FIRST, 21.0)
    assert raft_state.RoundCommitted(FIRST) not in actions
    state, actions = raft.receive(state, "b", raft_state.HeartbeatReply(state.term, 0, "another", "accepted"), 21.1)
    assert raft_state.RoundCommitted(FIRST) not in actions
    _, actions = raft.receive(state, "b", raft_state.HeartbeatReply(state.term, 0, "r1", "accepted"), 21.2)
    assert raft_state.RoundCommitted(FIRST) in actions


@pytest.mark.parametrize("reaches_leader", [True, False])
def test_a_voter_accepts_only_what_it_has_stored_and_says_so_once_it_reaches_the_leader(reaches_leader: bool) -> None:
    beat, accepted = (
        raft_state.Heartbeat(1, GENESIS, FIRST),
        Send("a", raft_state.HeartbeatReply(1, 0, "r1", "accepted")),
    )
    state, actions = raft.receive(new_voter("b"), "a", beat, 1.0)
    assert Store(FIRST, (), ("a",)) in actions
    assert state.hard_state.tail is None
    state, actions = raft.accept_stored(state if reaches_leader else raft.give_up_leader(state, "a", 1.1), FIRST)
    assert state.hard_state.tail == FIRST
    assert actions == ([accepted] if reaches_leader else [])
    assert raft.receive(state, "a", beat, 2.0)[1] == [accepted]


def test_a_voter_that_was_cut_off_moves_nobodys_term() -> None:
    state = replace(new_voter("c"), election_at=1.0)
    for now in (10.0, 30.0, 50.0):
        state, _ = raft.tick(state, now)
    assert state.term == 0
    follower, _ = raft.receive(new_voter("b"), "a", raft_state.Heartbeat(1, GENESIS, None), 60.0)
    request = raft_state.VoteRequest(2, "c", state.hard_state.extent, is_pre_vote=True)
    follower, actions = raft.receive(follower, "c", request, 60.5)
    assert follower.term == 1
    assert actions == [Send("c", raft_state.VoteReply(2, 1, False, True, "a leads"))]


def test_of_two_candidates_at_once_one_withdraws() -> None:
    low, high = (raft.tick(new_voter(name), 20.0)[0] for name in ("a", "b"))
    for voter, other, role in (
        (low, high, raft_state.RaftRole.FOLLOWER),
        (high, low, raft_state.RaftRole.PRE_CANDIDATE),
    ):
        request = raft_state.VoteRequest(1, other.me, other.hard_state.extent, is_pre_vote=True)
        assert raft.receive(voter, other.me, request, 20.1)[0].role is role


def test_a_leader_that_cannot_be_reached_is_not_waited_for() -> None:
    state, _ = raft.receive(new_voter("b"), "a", raft_state.Heartbeat(1, GENESIS, None), 100.0)
    assert raft.give_up_leader(state, "c", 100.0) == state
    lost = raft.give_up_leader(state, "a", 100.0)
    assert lost.election_at <= 100.0 + raft.SILENCE_SECONDS < state.election_at
    assert grants(lost, new_voter("c"))


def test_a_leader_of_an_older_term_moves_nobody() -> None:
    state = elected()
    old = raft_state.Heartbeat(state.term - 1, GENESIS, raft_state.RoundRecord(1, "other", "r0", THREE))
    reply = raft_state.HeartbeatReply(state.term, 0, "", f"term {state.term} has begun")
    assert raft.receive(state, "c", old, 21.0) == (state, [Send("c", reply)])


def test_a_leader_that_no_majority_answers_leads_no_more() -> None:
    state, now = elected(), 20.0
    while now < 20.0 + 2 * raft.SILENCE_SECONDS + 1:
        now += 1.0
        state, _ = raft.tick(state, now)
    assert not state.leads


def test_a_voter_need_not_fetch_a_committed_round_that_it_had_accepted() -> None:
    state, actions = raft.receive(new_voter("b", tail_term=1, term=1), "a", raft_state.Heartbeat(1, FIRST, None), 1.0)
    assert state.hard_state.base == FIRST
    assert raft_state.RoundCommitted(FIRST) in actions


voter_names = st.sampled_from("abcdefgh")


@given(voters=st.sets(voter_names, min_size=1, max_size=5), serving=st.lists(voter_names, unique=True, max_size=8))
def test_voters_are_an_odd_number_of_serving_nodes_and_change_seldom(voters: set[str], serving: list[str]) -> None:
    chosen = raft_state.next_voters(voters, serving, "a")
    assert chosen == tuple(sorted(chosen))
    assert raft_state.next_voters(chosen, serving, "a") == chosen
    if not serving:
        assert set(chosen) == voters
        return
    assert len(chosen) % 2 == 1
    assert len(chosen) <= raft_state.MOST_VOTERS
    assert set(chosen) <= set(serving)
    assert "a" in chosen or "a" not in serving, "the coordinator votes wherever it serves"
    if set(chosen) - voters - {"a"}:
        assert voters & set(serving) <= set(chosen), "only the coordinator, or fewer voters, replace one that serves"


def test_one_two_and_three_nodes() -> None:
    assert raft_state.next_voters(["a"], ["a"], "a") == ("a",)
    assert raft_state.next_voters(["a"], ["a", "b"], "a") == ("a",)
    assert raft_state.next_voters(["a"], ["a", "b", "c"], "a") == ("a", "b", "c")
    assert raft_state.next_voters(["a", "b", "c"], ["b", "c"], "a") == ("b",)
