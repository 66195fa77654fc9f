"""Which events of the processes of a local swarm are news of the run."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures import run_started
from tests.telemetry import examples
from tests.telemetry.examples import FINISHED, LOST
from tsr_swarm.local.faults import COORDINATOR, ActingRole, name_of
from tsr_swarm.local.run_view import RunView
from tsr_swarm.telemetry.events import Event, Joined, LeaderChanged, Warned

ALL = frozenset(range(4))
STARTED = run_started(address="c:1")


def leads(who: int, term: int, *voters: int) -> Event:
    ids = ",".join(f"id-{name_of(voter)}" for voter in voters)
    return replace(examples.leads(name_of(who), len(voters)), term=term, voter_ids=ids)


def joined(who: int, address: str = "") -> Event:
    return examples.joined(name_of(who), who, address)


def opened(round: int, *reducers: int) -> Event:
    return replace(examples.opened(round), reducers=",".join(map(name_of, reducers)))


def after(*told: tuple[int, Event], running: frozenset[int] = ALL) -> tuple[RunView, list[bool]]:
    """The view after these events, and which of them were news."""
    view, news = RunView(), []
    for who, event in told:
        view, is_news = view.update(who, event, running)
        news.append(is_news)
    return view, news


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 5) | st.none()).map(
            lambda said: (said[0], Warned(message="x") if said[1] is None else leads(said[0], said[1], 0, 1, 2))
        ),
        max_size=20,
    )
)
def test_only_events_of_the_leader_of_the_newest_term_are_news(told: list[tuple[int, Event]]) -> None:
    leader, newest = COORDINATOR, 0
    _, news = after(*told)
    for (who, event), is_news in zip(told, news, strict=True):
        if isinstance(event, LeaderChanged) and event.term >= newest:
            leader, newest = who, event.term
            assert is_news
        else:
            assert is_news == (who == leader and isinstance(event, Warned))


def test_what_the_coordinator_relays_is_no_news() -> None:
    view, news = after(
        (0, leads(0, 1, 0, 1, 2)), (1, leads(1, 2, 0, 1, 2)), (0, leads(1, 2, 0, 1, 2)), (0, opened(2)), (1, opened(2))
    )
    assert news == [True, True, False, False, True]
    assert view.leader == 1


def test_what_a_process_says_of_itself_is_no_news_of_the_run() -> None:
    own = Joined(run="r", name="peer-1", number=1, address="", round=1)
    assert after((0, own), (1, leads(1, 2, 1)), (1, own))[1] == [False, True, False]


def test_after_the_end_nothing_is_news() -> None:
    _, news = after((0, FINISHED), (1, leads(1, 2, 1)), (1, FINISHED))
    assert news == [True, False, False]


def test_a_peer_that_is_cut_off_loses_a_leader_that_the_others_have() -> None:
    assert after((2, LOST))[1] == [False]
    assert after((2, LOST), (1, LOST), running=frozenset({1, 2, 3}))[1] == [True, False], "the leader is gone"
    assert after((0, LOST))[1] == [True], "it says so itself"


def test_roles_are_found_among_those_who_are_there() -> None:
    view, _ = after((0, opened(1, 2, 1, 0)))
    assert view.find(ActingRole.LEADER, ALL) == 0
    assert view.find(ActingRole.LEADER, {1, 2}) is None
    assert view.find(ActingRole.REDUCER, ALL) == 1
    assert view.find(ActingRole.REDUCER, {0, 2}) == 2
    assert view.find(ActingRole.REDUCER, {0, 3}) is None
    assert view.find(3, {0}) == 3
    led, _ = after((1, leads(1, 2, 0, 1, 2)), (1, opened(1, 2)))
    assert led.find(ActingRole.REDUCER, {0, 1}) is None


def test_a_new_peer_contacts_the_leader_or_else_somebody_who_is_alive() -> None:
    view, _ = after((0, STARTED), (0, joined(1, "p:1")), (0, joined(2)), (1, leads(1, 2, 0, 1)))
    assert view.contact(ALL) == "p:1"
    assert view.contact({0, 2}) == "c:1"
    assert view.contact({2}) == "p:1", "nobody is: the last known address of the leader"
    assert after((0, STARTED))[0].contact({0}) == "c:1"


def test_a_majority_of_the_voters_has_to_be_left() -> None:
    alone = RunView()
    assert alone.can_lead({0, 1})
    assert not alone.can_lead({1, 2, 3})
    view, _ = after((0, joined(1)), (0, joined(2)), (0, leads(0, 1, 0, 1, 2)))
    assert view.can_lead({0, 1})
    assert view.can_lead({1, 2})
    assert not view.can_lead({0, 3})
    assert view.voters_left({0, 3}) == (1, 3)


def test_an_unknown_voter_may_be_alive() -> None:
    view, _ = after((0, leads(0, 1, 0, 1, 2)))
    assert view.voters_left({0}) == (3, 3)
