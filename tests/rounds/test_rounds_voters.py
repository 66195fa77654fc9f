"""Who votes next: an odd number, the coordinator first, and no change without a reason."""

from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.rounds.voters import MOST, next_voters

names = st.sampled_from("abcdefgh")
voters = st.sets(names, min_size=1, max_size=5)
serving = st.lists(names, unique=True, max_size=8)


@given(voters=voters, serving=serving)
def test_voters_are_an_odd_number_of_those_that_serve(voters: set[str], serving: list[str]) -> None:
    chosen = next_voters(voters, serving, "a")
    if not serving:
        assert chosen == tuple(sorted(voters))
        return
    assert len(chosen) % 2 == 1
    assert len(chosen) <= MOST
    assert set(chosen) <= set(serving)
    assert chosen == tuple(sorted(chosen))


@given(voters=voters, serving=serving)
def test_the_coordinator_votes_wherever_it_serves(voters: set[str], serving: list[str]) -> None:
    if "a" in serving:
        assert "a" in next_voters(voters, serving, "a")


@given(voters=voters, serving=serving)
def test_nobody_is_replaced_that_serves_except_for_the_coordinator_or_by_fewer(
    voters: set[str], serving: list[str]
) -> None:
    chosen = next_voters(voters, serving, "a")
    if not serving:
        return
    newcomers = set(chosen) - voters - {"a"}
    assert not newcomers or voters & set(serving) <= set(chosen)


@given(voters=voters, serving=serving)
def test_asked_again_it_stays(voters: set[str], serving: list[str]) -> None:
    chosen = next_voters(voters, serving, "a")
    assert next_voters(chosen, serving, "a") == chosen


def test_one_alone_two_and_three() -> None:
    assert next_voters(["a"], ["a"], "a") == ("a",)
    assert next_voters(["a"], ["a", "b"], "a") == ("a",)
    assert next_voters(["a"], ["a", "b", "c"], "a") == ("a", "b", "c")
    assert next_voters(["a", "b", "c"], ["b", "c"], "a") == ("b",)
