"""Faults as text, as a plan, and as what an event sets off."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.local.faults import (
    PHASES,
    STATE,
    ActingRole,
    Back,
    Kill,
    LateJoin,
    LocalPlan,
    due,
    due_with_state,
    moment_of,
)
from tsr_swarm.local.placing import FaultError, plan_local
from tsr_swarm.telemetry.events import Event, PhaseChanged, RoundOpened, Warned


def plan(
    *kills: str, peers: int = 3, rounds: int = 10, joins: tuple[int, ...] = (), env: tuple[str, ...] = ()
) -> LocalPlan:
    return plan_local(peers=peers, rounds=rounds, kills=kills, join_rounds=joins, environment=env)


def opened(round: int) -> Event:
    return RoundOpened(round=round, peers=3, steps=5, lr=0.1, refresh=0)


def moved(round: int, phase: str) -> Event:
    return PhaseChanged(round=round, phase=phase, deadline=None, reason="")


@given(
    who=st.integers(0, 3) | st.sampled_from(ActingRole),
    round=st.integers(1, 10),
    phase=st.sampled_from(PHASES),
    says_phase=st.booleans(),
)
def test_a_kill_is_read_as_it_is_written(who: int | ActingRole, round: int, phase: str, says_phase: bool) -> None:
    name = who.value if isinstance(who, ActingRole) else who or "coordinator"
    text = f"{name}@{round}" + (f"/{phase}" if says_phase else "")
    assert plan(text).faults == (Kill(who=who, round=round, phase=phase if says_phase else "train"),)


@given(st.text(alphabet="0123456789@/-: coordinatrexhgul\n", max_size=24))
def test_any_text_is_a_kill_that_can_happen_or_a_sentence(text: str) -> None:
    try:
        faults = plan(text).faults
    except FaultError as error:
        sentence = str(error)
    else:
        sentence = ""
        [fault] = faults
        assert isinstance(fault, Kill)
        assert isinstance(fault.who, ActingRole) or fault.who <= 3
        assert 1 <= fault.round <= 10
        assert fault.phase in (*PHASES, STATE)
    assert sentence == "" or sentence.endswith(".")


def test_a_kill_with_a_state_waits_for_one_of_that_very_node() -> None:
    faults = plan("2@3/state", "coordinator@5/train").faults
    late = faults[0]
    assert str(late) == "--kill peer-2@3/state"
    fired, rest = due(faults, opened(9), (1, 0))
    assert rest == (late,)
    assert due_with_state(faults, 2, (2, 3)) == ((), faults), "not before its round"
    assert due_with_state(faults, 1, (9, 0)) == ((), faults), "another's state"
    assert due_with_state(faults, 2, (9, 0)) == ((late,), fired)


@pytest.mark.parametrize("who", ["leader", "reducer"])
def test_a_role_takes_no_state(who: str) -> None:
    with pytest.raises(FaultError, match="a role takes no state; name the coordinator or a peer, 1 to 3"):
        plan(f"{who}@3/state")


@given(
    rounds=st.lists(st.integers(1, 10), max_size=4),
    kills=st.dictionaries(st.integers(0, 3), st.tuples(st.integers(1, 10), st.sampled_from(PHASES))),
)
def test_every_fault_is_set_off_once_in_its_own_round_and_phase(
    rounds: list[int], kills: dict[int, tuple[int, str]]
) -> None:
    faults = plan(
        *(f"{who or 'coordinator'}@{round}/{phase}" for who, (round, phase) in kills.items()), joins=tuple(rounds)
    ).faults
    seen: list[tuple[object, int, str]] = []
    left, before = faults, None
    for round in range(1, 11):
        for phase in PHASES:
            event = opened(round) if phase == "train" else moved(round, phase)
            fired, left = due(left, event, before)
            before = moment_of(event)
            seen += [(fault, round, phase) for fault in fired]
    assert left == ()
    assert len(seen) == len(faults)
    assert all(f.round == r and (p == f.phase if isinstance(f, Kill) else p == "train") for f, r, p in seen)  # type: ignore[attr-defined]


@given(
    st.lists(st.tuples(st.integers(1, 10), st.sampled_from(PHASES)), min_size=1, unique=True).map(
        lambda moments: sorted(moments, key=lambda moment: (moment[0], PHASES.index(moment[1])))
    )
)
def test_what_nobody_lived_to_tell_of_is_made_up_for_but_not_what_was_before_the_first_word(
    told: list[tuple[int, str]],
) -> None:
    """A leader dies, and the next one goes on with a later phase, or a later round."""
    faults = plan(*(f"{who}@{who}/{phase}" for who, phase in enumerate(PHASES, start=1)), peers=4).faults
    left, before, fired = faults, None, []
    for round, phase in told:
        now, left = due(left, moved(round, phase), before)
        before = moment_of(moved(round, phase))
        fired += [(fault, (round, PHASES.index(phase))) for fault in now]
    moments = [(round, PHASES.index(phase)) for round, phase in told]
    for fault in faults:
        assert isinstance(fault, Kill)
        moment = (fault.round, PHASES.index(fault.phase))
        first = next((other for other in moments if other >= moment), None)
        is_placed = first is not None and moments[0] <= moment
        assert [at for other, at in fired if other == fault] == ([first] if is_placed else [])


def test_who_was_killed_can_come_back() -> None:
    text = {"kills": ("2@3", "leader@4/commit"), "backs": ("2@5", "leader@4/commit:20s")}
    kills = (Kill(who=2, round=3), Kill(who=ActingRole.LEADER, round=4, phase="commit"))
    backs = (Back(who=2, round=5), Back(who=ActingRole.LEADER, round=4, phase="commit", seconds=20.0))
    made = plan_local(peers=3, rounds=10, **text)
    assert made.faults == kills + backs
    assert [str(fault) for fault in backs] == ["--back peer-2@5/train", "--back leader@4/commit:20s"]
    again = plan_local(peers=3, rounds=10, kills=("2@3", "2@7"), backs=("2@5", "2@9"))
    assert len(again.faults) == 4


def test_whoever_leads_may_be_killed_more_than_once() -> None:
    assert len(plan("leader@3/commit", "leader@5", "reducer@5").faults) == 3


def test_other_events_set_off_nothing() -> None:
    faults = plan("1@2").faults
    assert due(faults, Warned(message="round 2")) == ((), faults)


def test_peers_that_join_late_take_the_next_numbers_in_the_order_of_their_rounds() -> None:
    assert plan(joins=(7, 5)).faults == (LateJoin(who=4, round=5), LateJoin(who=5, round=7))
    assert plan(joins=(7, 5)).joins == 2


def test_a_variable_may_hold_anything() -> None:
    environment = plan(env=("2:A=1", "2:B=x=y:z", "coordinator:C=")).environment
    assert environment == {2: {"A": "1", "B": "x=y:z"}, 0: {"C": ""}}


def test_an_endless_run_has_every_round() -> None:
    assert plan("1@999999999", rounds=0).faults == (Kill(who=1, round=999999999),)


@pytest.mark.parametrize(
    ("kills", "joins", "env", "says"),
    [
        (("4@2",), (), (), "this swarm has peers 1 to 3; write WHO@ROUND[/PHASE], such as 2@3"),
        (("0@2",), (), (), "write WHO@ROUND[/PHASE]"),
        (("2@0",), (), (), "write WHO@ROUND[/PHASE]"),
        (("2@11",), (), (), "the rounds of this run are 1 to 10"),
        (("2@3/lunch",), (), (), "train, exchange, commit, apply"),
        (("2@3", "2@4"), (), (), "kill each once"),
        (("2@3", "2@3"), (), (), "is there twice"),
        (("boss@3",), (), (), "write WHO@ROUND[/PHASE], such as 2@3 or leader@3/commit"),
        (("4@3",), (5,), (), "before that peer joins in round 5"),
        ((), (11,), (), "the rounds of this run are 1 to 10"),
        ((), (0,), (), "the rounds of this run are 1 to 10"),
        ((), (), ("2:OMP",), "write WHO:KEY=VALUE"),
        ((), (), ("9:A=1",), "this swarm has peers 1 to 3"),
    ],
)
def test_a_fault_that_cannot_be_placed_is_refused_with_the_legal_form(
    kills: tuple[str, ...], joins: tuple[int, ...], env: tuple[str, ...], says: str
) -> None:
    with pytest.raises(FaultError) as caught:
        plan(*kills, joins=joins, env=env)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("kills", "back", "says"),
    [
        ((), "2@3", "--back peer-2@3/train needs somebody who was killed before; add --kill 2@ROUND."),
        (("2@4",), "2@3", "add --kill 2@ROUND."),
        (("1@2",), "coordinator@3", "add --kill coordinator@ROUND."),
        (("coordinator@2",), "leader@3", "add --kill leader@ROUND."),
        (("2@2",), "2", "write WHO@ROUND[/PHASE][:SECONDS], such as 2@5 or leader@3/commit:20s."),
        (("2@2",), "4@3", "this swarm has peers 1 to 3"),
        (("2@2",), "2@3:soon", "'soon' is not a time"),
        (("2@2",), "2@30", "the rounds of this run are 1 to 10"),
    ],
)
def test_nobody_comes_back_who_was_not_killed(kills: tuple[str, ...], back: str, says: str) -> None:
    with pytest.raises(FaultError) as caught:
        plan_local(peers=3, rounds=10, kills=kills, backs=[back])
    assert says in str(caught.value)
