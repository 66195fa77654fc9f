"""Votes and acceptance: what a voter has promised stays promised."""

from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.rounds.votes import Proposal, VoteRequest, VoterState, accept, has_majority, vote

terms = st.integers(1, 4)
requests = st.builds(
    VoteRequest,
    term=terms,
    candidate=st.sampled_from(["x", "y"]),
    last_term=st.integers(0, 4),
    last_round=st.integers(0, 4),
)
proposals = st.builds(Proposal, term=terms, round=st.integers(1, 4), chain=st.sampled_from(["p", "q"]))


@given(calls=st.lists(requests | proposals, max_size=40))
def test_a_voter_gives_one_vote_a_term_accepts_one_result_a_place_and_never_goes_back(
    calls: list[VoteRequest | Proposal],
) -> None:
    state = VoterState()
    votes: dict[int, str] = {}
    results: dict[tuple[int, int], str] = {}
    for call in calls:
        before = state
        if isinstance(call, VoteRequest):
            state, answer = vote(state, call)
            if answer.granted:
                assert votes.setdefault(call.term, call.candidate) == call.candidate
                assert (call.last_term, call.last_round) >= (before.accepted_term, before.accepted_round)
        else:
            state, answer = accept(state, call)
            if answer.granted:
                assert results.setdefault((call.term, call.round), call.chain) == call.chain
        assert state.term >= before.term
        assert state.accepted_round >= before.accepted_round
        assert answer.granted or answer.reason


@given(call=requests | proposals)
def test_a_repeated_call_gets_the_same_answer(call: VoteRequest | Proposal) -> None:
    def answer(state: VoterState) -> tuple[VoterState, bool]:
        state, reply = vote(state, call) if isinstance(call, VoteRequest) else accept(state, call)
        return state, reply.granted

    once, granted = answer(VoterState())
    assert answer(once) == (once, granted)


def test_an_old_leader_is_refused_once_a_new_term_has_begun() -> None:
    state, _ = vote(VoterState(), VoteRequest(term=2, candidate="x", last_term=0, last_round=0))
    _, answer = accept(state, Proposal(term=1, round=1, chain="p"))
    assert not answer.granted
    assert "term 2 has begun" in answer.reason


@given(voters=st.sets(st.integers(0, 9), min_size=1), a=st.sets(st.integers(0, 9)), b=st.sets(st.integers(0, 9)))
def test_two_majorities_always_share_a_voter(voters: set[int], a: set[int], b: set[int]) -> None:
    names = {str(v) for v in voters}
    first, second = {str(v) for v in a}, {str(v) for v in b}
    if has_majority(first, names) and has_majority(second, names):
        assert first & second & names
