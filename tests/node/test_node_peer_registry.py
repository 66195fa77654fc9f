"""Numbers and names of peers: unique among those that are here, and kept over an absence."""

from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.node.peer_registry import Roster

joins = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["otter", "peer-2", "peer-7"]), st.booleans()))


@given(joins=joins)
def test_no_two_peers_that_are_here_share_a_number_or_a_name(joins: list[tuple[int, str, bool]]) -> None:
    roster = Roster()
    for number, name, stays in joins:
        peer = roster.admit(f"{number:032x}", name, "", "cpu", "core")
        peer.is_here = stays
        here = roster.here()
        assert len({other.number for other in here}) == len({other.name for other in here}) == len(here)
        assert all(other.number >= 1 for other in here)


def test_a_peer_gets_the_number_its_name_ends_in_and_keeps_it_over_an_absence() -> None:
    roster = Roster()
    first = roster.admit("a" * 32, "peer-3", "", "cpu", "core")
    assert first.number == 3
    first.is_here = False
    assert roster.admit("b" * 32, "otter", "", "cpu", "core").number == 1
    assert roster.admit("a" * 32, "peer-3", "", "cpu", "core").number == 3
