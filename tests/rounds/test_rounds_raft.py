"""The voter: whatever order messages come in, however often and whoever dies, a round has one result."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tsr_swarm.rounds import raft
from tsr_swarm.rounds import raft_state as cl
from tsr_swarm.rounds.raft_state import (
    HardState,
    Heartbeat,
    HeartbeatReply,
    RaftRole,
    RoundRecord,
    Voter,
    VoteReply,
    VoteRequest,
)

NAMES = ("a", "b", "c", "d", "e")
VOTERS = [("a",), ("a", "b", "c"), ("c", "d", "e"), ("b", "c", "d"), NAMES]
nodes = st.sampled_from(NAMES)


class Voters(RuleBasedStateMachine):
    """Five nodes, a network that loses, doubles and reorders, and voters that change from one to five and back."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.voters_by_name: dict[str, Voter] = {}
        self.mail: list[tuple[str, str, cl.Message]] = []
        self.fetching: list[tuple[str, RoundRecord]] = []
        self.behind: dict[str, str] = {}  # who misses rounds -> from whom it may learn them
        self.standing: dict[int, RoundRecord] = {}
        self.leaders: dict[tuple[int, tuple[str, ...]], str] = {}
        self.votes: dict[tuple[str, int], str] = {}
        self.made = 0

    @initialize(voters=st.sampled_from(VOTERS))
    def begin(self, voters: tuple[str, ...]) -> None:
        genesis = RoundRecord(voters=voters)
        self.standing[0] = genesis
        self.voters_by_name = {name: raft.begin(name, HardState(genesis), 0.0) for name in NAMES}

    def put(self, name: str, event: cl.Event) -> None:
        before = self.voters_by_name[name]
        after, actions = raft.step(before, event, self.now)
        self.voters_by_name[name] = after
        self.check(before, after)
        for action in actions:
            match action:
                case cl.Send(to, message):
                    self.mail.append((name, to, message))
                case cl.Store(record, _):
                    self.fetching.append((name, record))
                case cl.CatchUp(_, source):
                    self.behind[name] = source

    def check(self, before: Voter, after: Voter) -> None:
        old, new, me = before.hard_state, after.hard_state, after.me
        assert new.term >= old.term
        assert new.base.round >= old.base.round
        stands = self.standing.setdefault(new.base.round, new.base)
        assert stands == new.base, f"{me} has {new.base} where {stands} stands"
        if new.voted_for:
            assert self.votes.setdefault((me, new.term), new.voted_for) == new.voted_for
        if after.leads:
            assert self.leaders.setdefault((after.term, after.voters), me) == me
            assert me in after.voters
        if new.tail is not None:
            assert (new.tail.round, new.tail.parent) == (new.base.round + 1, new.base.chain)

    # --- what may happen ----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.mail)
    @rule(data=st.data(), again=st.booleans())
    def deliver(self, data: st.DataObject, again: bool) -> None:
        at = data.draw(st.integers(0, len(self.mail) - 1))
        sender, to, message = self.mail[at] if again else self.mail.pop(at)
        self.put(to, cl.Received(sender, message))

    @precondition(lambda self: self.mail)
    @rule(keep=st.integers(0, 10))
    def lose(self, keep: int) -> None:
        del self.mail[keep:]

    @precondition(lambda self: self.fetching)
    @rule(data=st.data())
    def store(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.fetching) - 1))
        name, record = self.fetching.pop(at)
        self.put(name, cl.Stored(record))

    @rule(name=nodes, seconds=st.sampled_from([0.0, 1.0, 9.0]))
    def wait(self, name: str, seconds: float) -> None:
        self.now += seconds
        self.put(name, cl.Tick())

    @rule(name=nodes, voters=st.sampled_from(VOTERS))
    def propose(self, name: str, voters: tuple[str, ...]) -> None:
        voter = self.voters_by_name[name]
        if not voter.leads or voter.proposal is not None:
            return
        base = voter.hard_state.base
        self.made += 1
        record = RoundRecord(base.round + 1, f"{name}{self.made}", base.chain, voters)
        self.put(name, cl.Propose(record))

    @rule(name=nodes)
    def learn(self, name: str) -> None:
        """Fetch a round from the leader that has said that rounds are missing here."""
        source, base = self.voters_by_name.get(self.behind.get(name, "")), self.voters_by_name[name].hard_state.base
        if source is not None and source.hard_state.base.round > base.round:
            self.put(name, cl.RoundLearned(self.standing[base.round + 1]))

    @rule(name=nodes, loses_bytes=st.booleans())
    def die(self, name: str, loses_bytes: bool) -> None:
        hard_state = self.voters_by_name[name].hard_state
        lost = hard_state.tail.chain if loses_bytes and hard_state.tail is not None else ""
        self.voters_by_name[name] = raft.begin(name, hard_state, self.now, lost)
        self.fetching = [item for item in self.fetching if item[0] != name]
        self.behind.pop(name, None)

    @rule(here=st.sets(nodes, min_size=2), voters=st.sampled_from(VOTERS), turns=st.integers(1, 4), most=st.booleans())
    def calm(self, here: set[str], voters: tuple[str, ...], turns: int, most: bool) -> None:
        """Some nodes are left alone: they elect, propose and decide, or are cut off in the middle of it."""
        self.mail.clear()
        self.now += 9.0
        for _ in range(30 if most else 2):
            self.now += 0.4
            for name in sorted(here):
                self.put(name, cl.Tick())
                self.exchange(here, turns + 60 * most)
        for name in sorted(here):
            self.propose(name, voters)
        self.exchange(here, turns + 60 * most)

    def exchange(self, here: set[str], turns: int) -> None:
        for _ in range(turns):
            for name in sorted(here & self.behind.keys()):
                if self.behind[name] in here:
                    self.learn(name)
            among = [letter for letter in self.mail if letter[0] in here and letter[1] in here]
            if not among and not any(name in here for name, _ in self.fetching):
                return
            self.mail = [letter for letter in self.mail if letter not in among]
            for sender, to, message in among:
                self.put(to, cl.Received(sender, message))
            stored = [item for item in self.fetching if item[0] in here]
            self.fetching = [item for item in self.fetching if item[0] not in here]
            for name, record in stored:
                self.put(name, cl.Stored(record))

    @invariant()
    def a_round_follows_the_one_before(self) -> None:
        for round, record in self.standing.items():
            if round - 1 in self.standing:
                assert record.parent == self.standing[round - 1].chain

    def teardown(self) -> None:
        """Left alone altogether, the nodes agree and go on."""
        if not self.voters_by_name:
            return
        rounds = max(self.standing)
        self.mail.clear()
        newest = max(self.standing)
        for name in NAMES:  # they tell each other, as by rounds/protocol.py's Redirect
            for round in range(self.voters_by_name[name].hard_state.base.round + 1, newest + 1):
                self.put(name, cl.RoundLearned(self.standing[round]))
        for _ in range(3):
            self.calm(set(NAMES), NAMES, 4, True)
        assert max(self.standing) > rounds
        assert any(voter.leads for voter in self.voters_by_name.values())


TestVoters = Voters.TestCase
TestVoters.settings = settings(
    max_examples=80, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)

# --- by hand ----------------------------------------------------------------------------------------------------------

THREE = ("a", "b", "c")


def new_voter(me: str, base: int = 0, tail_term: int = 0, term: int = 0) -> Voter:
    """One of three voters, which knows round ``base`` to stand and has accepted the next, if it has, in that term."""
    record = RoundRecord(base, f"r{base}", f"r{base - 1}", THREE)
    tail = RoundRecord(base + 1, f"r{base + 1}", f"r{base}", THREE) if tail_term else None
    return raft.begin(me, HardState(record, term=term, tail=tail, tail_term=tail_term), 0.0)


def test_a_voter_that_has_lost_the_bytes_of_its_tail_votes_as_before_and_does_not_stand() -> None:
    """Nobody could fetch what it would propose; without it the others settle that round, if they can."""
    sound = new_voter("a", base=3, tail_term=2, term=2)
    lost = raft.begin("a", sound.hard_state, 0.0, "r4")
    assert lost.hard_state == sound.hard_state
    assert raft.wake_at(sound) < float("inf") == raft.wake_at(lost)
    assert raft.step(lost, cl.Tick(), 1e6) == (lost, [])
    for other in (new_voter("b", base=3), new_voter("b", base=3, tail_term=2), new_voter("b", base=4)):
        assert grants(lost, other) == grants(sound, other)
    assert not grants(lost, new_voter("b", base=3)), "what it accepted may stand"


def test_a_voter_that_gets_the_bytes_of_its_tail_again_or_another_round_may_stand_again() -> None:
    sound = new_voter("a", base=3, tail_term=2, term=2)
    assert sound.hard_state.tail is not None
    lost = raft.begin("a", sound.hard_state, 0.0, "r4")
    beat = cl.Received("b", Heartbeat(5, sound.hard_state.base, sound.hard_state.tail))
    asked, actions = raft.step(lost, beat, 1.0)
    assert [action for action in actions if isinstance(action, cl.Store)], "its bytes are fetched from who proposes it"
    stored, _ = raft.step(asked, cl.Stored(sound.hard_state.tail), 2.0)
    learned, _ = raft.step(lost, cl.RoundLearned(sound.hard_state.tail), 2.0)
    assert stored.may_campaign
    assert learned.may_campaign
    assert raft.wake_at(stored) < float("inf")


def grants(voter: Voter, candidate: Voter) -> bool:
    request = VoteRequest(9, candidate.me, candidate.hard_state.extent, is_pre_vote=False)
    _, actions = raft.step(voter, cl.Received(candidate.me, request), 100.0)
    (reply,) = [action.message for action in actions if isinstance(action, cl.Send)]
    assert isinstance(reply, VoteReply)
    return reply.granted


@pytest.mark.parametrize(
    ("voter", "candidate", "is_granted"),
    [
        (new_voter("a", 3), new_voter("b", 3), True),
        (new_voter("a", 3, tail_term=2), new_voter("b", 3), False),
        (new_voter("a", 3, tail_term=2), new_voter("b", 3, tail_term=1), False),
        (new_voter("a", 3, tail_term=2), new_voter("b", 3, tail_term=2), True),
        (new_voter("a", 4), new_voter("b", 3, tail_term=5), False),
        # it only learned that the round stands, and may lead all the same
        (new_voter("a", 3, tail_term=2), new_voter("b", 4), True),
        (new_voter("a", 3, tail_term=2), new_voter("b", 5), True),
    ],
)
def test_the_vote_goes_to_who_knows_at_least_as_much(voter: Voter, candidate: Voter, is_granted: bool) -> None:
    assert grants(voter, candidate) is is_granted


def lead(me: str = "a") -> Voter:
    state, _ = raft.step(new_voter(me), cl.Tick(), 20.0)
    assert state.role is RaftRole.PRE_CANDIDATE
    for is_pre_vote, other in ((True, "b"), (False, "b")):
        term = state.term + 1 if is_pre_vote else state.term
        reply = VoteReply(term, state.term, True, is_pre_vote, "granted")
        state, _ = raft.step(state, cl.Received(other, reply), 20.0)
    assert state.leads
    return state


def test_a_leader_that_learns_of_a_round_was_overtaken_and_leads_no_more() -> None:
    state, actions = raft.step(lead(), cl.RoundLearned(RoundRecord(1, "r1", "r0", ("b", "c", "d"))), 21.0)
    assert not state.leads
    assert any(isinstance(action, cl.StepDown) for action in actions)


def test_a_candidate_that_learns_of_a_round_takes_no_votes_that_were_meant_for_the_old_voters() -> None:
    state, _ = raft.step(new_voter("a"), cl.Tick(), 20.0)
    state, _ = raft.step(state, cl.RoundLearned(RoundRecord(1, "r1", "r0", ("a", "d", "e"))), 20.5)
    assert state.role is RaftRole.FOLLOWER
    assert state.granted == frozenset()


def test_a_round_stands_when_a_majority_holds_it_and_not_before() -> None:
    record = RoundRecord(1, "r1", "r0", THREE)
    state, actions = raft.step(lead(), cl.Propose(record), 21.0)
    assert not any(isinstance(action, cl.RoundCommitted) for action in actions)
    state, actions = raft.step(state, cl.Received("b", HeartbeatReply(state.term, 0, "another", "accepted")), 21.1)
    assert not any(isinstance(action, cl.RoundCommitted) for action in actions)
    _, actions = raft.step(state, cl.Received("b", HeartbeatReply(state.term, 0, "r1", "accepted")), 21.2)
    assert cl.RoundCommitted(record) in actions


def test_a_voter_accepts_only_what_it_has_stored() -> None:
    record = RoundRecord(1, "r1", "r0", THREE)
    state, actions = raft.step(
        new_voter("b"), cl.Received("a", Heartbeat(1, RoundRecord(0, "r0", "r-1", THREE), record)), 1.0
    )
    assert cl.Store(record, "a") in actions
    assert state.hard_state.tail is None
    state, actions = raft.step(state, cl.Stored(record), 1.5)
    assert state.hard_state.tail == record
    assert cl.Send("a", HeartbeatReply(1, 0, "r1", "accepted")) in actions


def test_one_that_was_cut_off_moves_nobodys_term() -> None:
    state = replace(new_voter("c"), election_at=1.0)
    for now in (10.0, 30.0, 50.0):
        state, _ = raft.step(state, cl.Tick(), now)
    assert state.term == 0
    follower, _ = raft.step(
        new_voter("b"), cl.Received("a", Heartbeat(1, RoundRecord(0, "r0", "r-1", THREE), None)), 60.0
    )
    request = VoteRequest(2, "c", state.hard_state.extent, is_pre_vote=True)
    follower, actions = raft.step(follower, cl.Received("c", request), 60.5)
    assert follower.term == 1
    assert actions == [cl.Send("c", VoteReply(2, 1, False, True, "a leads"))]


def test_a_voter_whose_line_to_the_leader_broke_accepts_and_is_asked_again() -> None:
    record = RoundRecord(1, "r1", "r0", THREE)
    beat = Heartbeat(1, RoundRecord(0, "r0", "r-1", THREE), record)
    state, _ = raft.step(new_voter("b"), cl.Received("a", beat), 1.0)
    state, _ = raft.step(state, cl.PeerLost("a"), 1.1)
    state, actions = raft.step(state, cl.Stored(record), 1.2)
    assert state.hard_state.tail == record
    assert actions == []
    _, actions = raft.step(state, cl.Received("a", beat), 2.0)
    assert actions == [cl.Send("a", HeartbeatReply(1, 0, "r1", "accepted"))]


def test_of_two_that_stand_at_once_one_withdraws() -> None:
    low, _ = raft.step(new_voter("a"), cl.Tick(), 20.0)
    high, _ = raft.step(new_voter("b"), cl.Tick(), 20.0)
    low_after, _ = raft.step(low, cl.Received("b", VoteRequest(1, "b", high.hard_state.extent, is_pre_vote=True)), 20.1)
    high_after, _ = raft.step(
        high, cl.Received("a", VoteRequest(1, "a", low.hard_state.extent, is_pre_vote=True)), 20.1
    )
    assert (low_after.role, high_after.role) == (RaftRole.FOLLOWER, RaftRole.PRE_CANDIDATE)


def test_a_leader_that_cannot_be_reached_is_not_waited_for() -> None:
    beat = Heartbeat(1, RoundRecord(0, "r0", "r-1", THREE), None)
    state, _ = raft.step(new_voter("b"), cl.Received("a", beat), 100.0)
    assert raft.step(state, cl.PeerLost("c"), 100.0)[0] == state
    lost, _ = raft.step(state, cl.PeerLost("a"), 100.0)
    assert lost.election_at <= 100.0 + raft.SILENCE_SECONDS < state.election_at
    assert grants(lost, new_voter("c"))


def test_a_leader_of_an_older_term_moves_nobody() -> None:
    state = lead()
    old = Heartbeat(state.term - 1, RoundRecord(0, "r0", "r-1", THREE), RoundRecord(1, "other", "r0", THREE))
    after, actions = raft.step(state, cl.Received("c", old), 21.0)
    assert after == state
    assert actions == [cl.Send("c", HeartbeatReply(state.term, 0, "", f"term {state.term} has begun"))]


def test_a_leader_that_no_majority_answers_leads_no_more() -> None:
    state, now = lead(), 20.0
    while now < 20.0 + 2 * raft.SILENCE_SECONDS + 1:
        now += 1.0
        state, _ = raft.step(state, cl.Tick(), now)
    assert not state.leads


def test_a_voter_that_hears_that_what_it_accepted_stands_has_no_need_to_fetch_it() -> None:
    state = new_voter("b", tail_term=1, term=1)
    tail = state.hard_state.tail
    assert tail is not None
    state, actions = raft.step(state, cl.Received("a", Heartbeat(1, tail, None)), 1.0)
    assert state.hard_state.base == tail
    assert cl.RoundCommitted(tail) in actions
