"""Faults as text, as a plan, and as what an event sets off."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.runtime.faults import PHASES, Join, Kill, LocalPlan, due
from tsr_swarm.runtime.placing import FaultError, plan_local
from tsr_swarm.telemetry.events import Event, PhaseChanged, RoundOpened, Warned


def plan(
    *kills: str, peers: int = 3, rounds: int = 10, joins: tuple[int, ...] = (), env: tuple[str, ...] = ()
) -> LocalPlan:
    return plan_local(peers=peers, rounds=rounds, kills=kills, join_rounds=joins, environment=env)


def opened(round: int) -> Event:
    return RoundOpened(round=round, peers=3, steps=5, lr=0.1, refresh=0)


def moved(round: int, phase: str) -> Event:
    return PhaseChanged(round=round, phase=phase, deadline=None, reason="")


@given(who=st.integers(0, 3), round=st.integers(1, 10), phase=st.sampled_from(PHASES), says_phase=st.booleans())
def test_a_kill_is_read_as_it_is_written(who: int, round: int, phase: str, says_phase: bool) -> None:
    text = f"{who or 'coordinator'}@{round}" + (f"/{phase}" if says_phase else "")
    assert plan(text).faults == (Kill(who=who, round=round, phase=phase if says_phase else "train"),)


@given(st.text(alphabet="0123456789@/-: coordinatrexhg\n", max_size=24))
def test_any_text_is_a_kill_that_can_happen_or_a_sentence(text: str) -> None:
    try:
        faults = plan(text).faults
    except FaultError as error:
        sentence = str(error)
    else:
        sentence = ""
        assert all(isinstance(f, Kill) and f.who <= 3 and 1 <= f.round <= 10 and f.phase in PHASES for f in faults)
    assert sentence == "" or sentence.endswith(".")


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
    left = faults
    for round in range(1, 11):
        for phase in PHASES:
            fired, left = due(left, opened(round) if phase == "train" else moved(round, phase))
            seen += [(fault, round, phase) for fault in fired]
    assert left == ()
    assert len(seen) == len(faults)
    assert all(f.round == r and (p == f.phase if isinstance(f, Kill) else p == "train") for f, r, p in seen)  # type: ignore[attr-defined]


def test_other_events_set_off_nothing() -> None:
    faults = plan("1@2").faults
    assert due(faults, Warned(message="round 2")) == ((), faults)


def test_peers_that_join_late_take_the_next_numbers_in_the_order_of_their_rounds() -> None:
    assert plan(joins=(7, 5)).faults == (Join(who=4, round=5), Join(who=5, round=7))
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
