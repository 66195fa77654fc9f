"""Faults as what an event of the leader sets off."""

from hypothesis import given
from hypothesis import strategies as st

from tests.telemetry.examples import opened
from tsr_swarm.local import faults
from tsr_swarm.local.faults import PHASES, Kill, due, due_with_state, moment_of, name_of, text_of, who_of
from tsr_swarm.telemetry.events import Event, PhaseChanged, Warned


def moved(round: int, phase: str) -> Event:
    return PhaseChanged(round=round, phase=phase, deadline=None, reason="")


def test_a_kill_at_a_state_waits_until_that_node_receives_one() -> None:
    planned = (Kill(who=2, round=3, phase="state"), Kill(who=0, round=5))
    late = planned[0]
    assert str(late) == "--kill peer-2@3/state"
    assert due(planned, opened(9), (1, 0)) == [planned[1]]
    assert due_with_state(planned, 2, (2, 3)) == [], "not before its round"
    assert due_with_state(planned, 1, (9, 0)) == [], "another's state"
    assert due_with_state(planned, 2, (9, 0)) == [late]


@given(
    st.lists(st.tuples(st.integers(1, 10), st.sampled_from(PHASES)), min_size=1, unique=True).map(
        lambda moments: sorted(moments, key=lambda moment: (moment[0], PHASES.index(moment[1])))
    )
)
def test_a_fault_is_due_once_at_its_moment_or_the_next_that_is_announced_but_not_before_the_first(
    told: list[tuple[int, str]],
) -> None:
    """A leader dies, and the next one goes on with a later phase, or a later round."""
    kills = (Kill(who=who, round=who, phase=phase) for who, phase in enumerate(PHASES, start=1))
    planned: tuple[Kill | faults.LateJoin, ...] = (*kills, faults.LateJoin(who=4, round=2))
    before, fired = None, []
    for round, phase in told:
        event = opened(round) if phase == "train" else moved(round, phase)
        fired += [(fault, (round, PHASES.index(phase))) for fault in due(planned, event, before)]
        before = moment_of(event)
    moments = [(round, PHASES.index(phase)) for round, phase in told]
    for fault in planned:
        moment = (fault.round, PHASES.index(fault.phase) if isinstance(fault, Kill) else 0)
        first = next((other for other in moments if other >= moment), None)
        is_placed = first is not None and moments[0] <= moment
        assert [at for other, at in fired if other == fault] == ([first] if is_placed else [])


def test_a_partition_is_due_at_its_phase_and_separates_each_of_one_side_from_each_of_the_other() -> None:
    fault = faults.Partition(sides=(frozenset({0, 1}), frozenset({2, 3})), round=4, phase="commit", seconds=30)
    assert due((fault,), moved(4, "commit")) == [fault]
    assert fault.pairs == {frozenset((a, b)) for a in (0, 1) for b in (2, 3)}


def test_the_text_of_a_fault_on_a_role_names_the_node_that_has_it() -> None:
    assert text_of(Kill(who=faults.ActingRole.LEADER, round=3), 2) == "--kill leader@3/train (peer-2)"
    assert text_of(Kill(who=2, round=3), 2) == "--kill peer-2@3/train"


@given(who=st.integers(0, 10**8), text=st.text(max_size=20))
def test_names_are_read_as_they_are_written(who: int, text: str) -> None:
    assert who_of(name_of(who)) == who
    found = who_of(text)
    assert found is None or name_of(found) == text


def test_other_events_set_off_nothing() -> None:
    assert due((Kill(who=1, round=2),), Warned(message="round 2")) == []
