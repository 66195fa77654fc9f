"""What a peer's own process says, on a screen that follows the whole swarm."""

from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.telemetry import events as e
from tsr_swarm.telemetry.fold import fold, fold_own
from tsr_swarm.telemetry.snapshot import SwarmSnapshot

JOINED = e.Joined(run="chat", name="otter", number=1, address="192.0.2.1:7700", round=4)
SWARM_JOINED = e.PeerJoined(peer="id", name="otter", number=1, address="", device="cpu", local_space="core")
LED = e.LeaderChanged(peer="id-c", name="coordinator", term=1, voters=1, is_safe=False)
OPENED = e.RoundOpened(round=5, peers=1, steps=20, lr=0.1, refresh=0)
FIGURES = ("history", "sent", "received", "raw_bytes", "dense_bytes", "overhead", "rounds_counted", "digest")
LOST = e.LeaderLost(reason="it does not answer")


def applied(included: bool, round: int = 5) -> e.RoundApplied:
    return e.RoundApplied(
        round=round,
        included=included,
        local_loss=2.5,
        tokens=10,
        seconds=1.0,
        digest="ab",
        wire_bytes={"sent": {"core": 30}, "received": {"core": 50}},
        overhead=3,
    )


def swarm(*events: e.Event) -> SwarmSnapshot:
    snapshot = SwarmSnapshot()
    for event in events:
        snapshot = fold(snapshot, 1.0, event)
    return snapshot


def own(snapshot: SwarmSnapshot, *events: e.Event) -> SwarmSnapshot:
    for event in events:
        snapshot = fold_own(snapshot, 2.0, event)
    return snapshot


@given(data=st.data())
def test_nothing_that_it_says_changes_a_figure_of_the_swarm(
    data: st.DataObject, any_event: st.SearchStrategy[e.Event]
) -> None:
    before = swarm(*data.draw(st.lists(any_event, max_size=5)))
    after = own(before, *data.draw(st.lists(any_event, max_size=5)))
    for name in FIGURES:
        assert getattr(after, name) == getattr(before, name)
    assert (after.table, after.run, after.round, after.finished) == (
        before.table,
        before.run,
        before.round,
        before.finished,
    )
    assert isinstance(after.own_text, str)


def test_the_peer_is_one_of_the_swarm_whichever_is_told_first() -> None:
    progress = e.PeerProgress(peer="id", name="otter", round=5, step=1, steps=2, tokens_per_second=1.0)
    for snapshot in (fold(own(swarm(), JOINED), 1.0, SWARM_JOINED), own(swarm(SWARM_JOINED), JOINED)):
        (peer,) = fold(snapshot, 3.0, progress).table
        assert (peer.peer, peer.name, peer.state, snapshot.own_name) == ("id", "otter", "training", "otter")


def test_what_it_does_is_told_in_words() -> None:
    led = swarm(LED, OPENED)
    assert own(led).own_text == ""
    assert own(led, JOINED).own_text == "this peer trains on"
    assert own(led, JOINED, LOST).own_text == "this peer waits for coordinator"
    assert own(led, JOINED, LOST, applied(True, round=6)).own_text == "this peer trains on"
    safe = swarm(e.LeaderChanged(peer="id-c", name="coordinator", term=1, voters=3, is_safe=True))
    assert own(safe, JOINED, LOST).own_text == "this peer waits until another leads"


def test_a_round_that_the_lost_leader_had_closed_is_no_sign_of_another() -> None:
    assert own(swarm(LED, OPENED), JOINED, LOST, applied(True)).own_text == "this peer waits for coordinator"


def test_a_leader_that_the_peer_has_lost_is_lost_until_the_swarm_says_otherwise() -> None:
    led = fold(swarm(LED, OPENED), 1.0, e.PhaseChanged(round=5, phase="exchange", deadline=9.0, reason=""))
    lost = own(led, JOINED, LOST)
    assert (lost.state, lost.deadline) == ("coordinator is lost: the run waits for it", None)
    assert fold(lost, 3.0, OPENED).state == "round 5: no peer is here"


def test_a_round_that_its_work_was_in_is_no_line_and_one_that_it_missed_is() -> None:
    assert own(swarm(), applied(True)).log == ()
    (line,) = own(swarm(), applied(False)).log
    assert line.text.startswith("this peer: round 5 applied")
    assert "without your work" in line.text
