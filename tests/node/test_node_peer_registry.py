"""Numbers and names of peers: unique among those that are here, and kept over an absence."""

from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.node.peer_registry import KEPT_REPORTS, Roster

joins = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["otter", "peer-2", "peer-7"]), st.booleans()))


@given(joins=joins)
def test_no_two_peers_that_are_here_share_a_number_or_a_name(joins: list[tuple[int, str, bool]]) -> None:
    roster = Roster()
    for number, name, stays in joins:
        peer = roster.admit(f"{number:032x}", name)
        peer.is_here = stays
        here = roster.here()
        assert len({other.number for other in here}) == len({other.name for other in here}) == len(here)
        assert all(other.number >= 1 for other in here)


def test_a_peer_gets_the_number_its_name_ends_in_and_keeps_it_over_an_absence() -> None:
    roster = Roster()
    first = roster.admit("a" * 32, "peer-3")
    assert first.number == 3
    first.is_here = False
    assert roster.admit("b" * 32, "otter").number == 1
    assert roster.admit("a" * 32, "peer-3").number == 3


@given(wishes=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.booleans()), max_size=12))
def test_nodes_that_train_have_their_own_numbers_and_others_have_none(wishes: list[tuple[int, int, bool]]) -> None:
    roster = Roster()
    for who, number, trains in wishes:
        peer = roster.admit(f"{who:032x}", "otter", trains=trains, number=number)
        assert peer.trains == trains
        numbers = [other.number for other in roster.here() if other.trains]
        assert len(set(numbers)) == len(numbers)
        assert min(numbers, default=1) >= 1
        assert all(other.number == 0 for other in roster.here() if not other.trains)


def test_a_number_that_an_earlier_leader_gave_is_kept_unless_somebody_has_it() -> None:
    roster = Roster()
    assert roster.admit("a" * 32, "peer-3", number=8).number == 8
    assert roster.admit("b" * 32, "heron", number=8).number == 1
    assert roster.admit("c" * 32, "peer-3").number == 3
    assert roster.admit("d" * 32, "coordinator", trains=False, number=5).number == 0


def test_of_the_reports_of_a_peer_only_the_newest_rounds_are_remembered() -> None:
    peer = Roster().admit("a" * 32, "otter")
    peer.reported.extend(range(1000))
    assert len(peer.reported) == KEPT_REPORTS
