from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.telemetry import examples
from tests.telemetry.examples import APPLIED, FINISHED, LOST, STARTED, closed, joined, leads, opened, progress
from tsr_swarm.config.layout import PayloadKind
from tsr_swarm.telemetry import events as e
from tsr_swarm.telemetry.fold import GONE_PEERS, HISTORY_POINTS, KINDS, LOG_LINES, fold, fold_all, fold_own
from tsr_swarm.telemetry.snapshot import SwarmSnapshot
from tsr_swarm.telemetry.typed_json import MAX_NUMBER


def received(name: str, round: int) -> e.PayloadReceived:
    loss = 2.5 + round
    return e.PayloadReceived(round=round, peer=f"id-{name}", name=name, seconds=1.0, wire_bytes=5, local_loss=loss)


def phase(name: str, deadline: float | None = None, reason: str = "") -> e.PhaseChanged:
    return e.PhaseChanged(round=1, phase=name, deadline=deadline, reason=reason)


def after(*happened: e.Event) -> SwarmSnapshot:
    return fold_all(SwarmSnapshot(), (e.Stamped(time=float(i), event=event) for i, event in enumerate(happened)))


@given(happened=st.lists(st.tuples(examples.ANY_EVENT, st.floats(-MAX_NUMBER, MAX_NUMBER)), max_size=15))
def test_no_order_of_events_raises_or_makes_a_count_negative(happened: list[tuple[e.Event, float]]) -> None:
    snapshot = SwarmSnapshot()
    for event, time in happened:
        before = snapshot
        snapshot = fold(snapshot, time, event)
        assert isinstance(snapshot.state, str)
        assert snapshot.time >= before.time
        assert len(snapshot.log) <= LOG_LINES
        assert min(snapshot.wire_bytes, snapshot.dense_bytes, snapshot.raw_bytes, snapshot.overhead) >= 0
        assert snapshot.tokens_per_second >= 0
        assert all(min(p.up, p.down, p.step, snapshot.lag(p)) >= 0 for p in snapshot.table)
        assert [p.round for p in snapshot.history] == sorted({p.round for p in snapshot.history})


@given(happened=st.lists(examples.ANY_EVENT, max_size=5), event=examples.ANY_EVENT)
def test_folding_does_not_change_the_snapshot_before(happened: list[e.Event], event: e.Event) -> None:
    first = after(*happened)
    copy = replace(first, peers=dict(first.peers), sent=dict(first.sent), received=dict(first.received))
    fold(first, 2.0, event)
    assert first == copy


def test_the_screen_has_a_row_for_every_kind_of_payload() -> None:
    assert set(KINDS) == set(PayloadKind)


def test_bytes_add_up_by_kind_direction_and_peer_and_an_unknown_kind_is_another() -> None:
    snapshot = after(STARTED, joined("otter"), joined("lynx", 2), closed(1), closed(2))
    assert snapshot.sent == {"core": 120, "control": 8}
    assert snapshot.received == {"core": 200}
    assert snapshot.wire_bytes == 328
    assert snapshot.dense_bytes == 32_800
    assert snapshot.overhead == 14
    otter, lynx = snapshot.table
    assert (otter.up, otter.down, lynx.up, lynx.down) == (60, 100, 0, 0)
    other = after(replace(closed(1), wire_bytes={"sent": {"\x1b[31m": 5, "core": 1}, "received": {"other": 2}}))
    assert (other.sent, other.received) == ({"other": 5, "core": 1}, {"other": 2})


def test_a_deadline_is_kept_as_a_moment() -> None:
    exchange = phase("exchange", 12.0, "x")
    assert fold(SwarmSnapshot(), 100.0, exchange).deadline == 112.0
    assert after(exchange, opened(2)).deadline is None


TRAINING = (STARTED, joined("otter"), joined("lynx", 2), opened(1))
LEFT = e.PeerLeft(peer="id-otter", name="otter", reason="no sign of life for 30 s")
APPLIED_IT = e.DigestReported(round=1, peer="id-otter", name="otter", digest="ab")
STOPPED = replace(FINISHED, reason="it was asked to stop", is_stopped=True)
LAST = (STARTED, joined("otter"), closed(10), phase("finished", reason="all 10 rounds are done"), LEFT)
STATES = [
    ((), "waiting for the first event"),
    ((STARTED,), "waiting for 2 more peers"),
    ((STARTED, joined("otter"), phase("waiting")), "waiting for 1 more peer"),
    ((STARTED, joined("otter"), joined("does not train", 0)), "waiting for 1 more peer"),
    (TRAINING, "round 1: 2 peers training"),
    ((*TRAINING, received("otter", 1), phase("exchange", 5.0)), "round 1: 1 of 2 payloads arrived"),
    ((*TRAINING, phase("apply"), APPLIED_IT), "round 1: 1 of 2 peers applied it"),
    ((STARTED, joined("otter"), opened(3), LEFT), "round 3: no peer is here"),
    (LAST, "all 10 rounds are done"),
    ((STARTED, FINISHED), "finished: 10 rounds done"),
    ((STARTED, opened(1), LOST, FINISHED), "finished: 10 rounds done"),
    ((STARTED, STOPPED), "stopped: it was asked to stop"),
    ((*TRAINING, leads("otter")), "round 1: 2 peers training"),
    ((*TRAINING, leads("otter"), LOST), "otter is lost: another is elected"),
    ((*TRAINING, leads("otter", 1), LOST), "otter is lost: the run waits for it"),
    ((*TRAINING, LOST), "the leader is lost: the run waits for it"),
    ((*TRAINING, joined("heron", 3), leads("otter"), LOST, leads("lynx")), "lynx leads now"),
]


@pytest.mark.parametrize(("happened", "state"), STATES)
def test_the_state_of_the_run_is_in_words(happened: tuple[e.Event, ...], state: str) -> None:
    assert after(*happened).state == state


def test_a_peer_that_did_not_finish_the_last_round_lags() -> None:
    snapshot = after(STARTED, joined("otter"), joined("lynx", 2), opened(1), received("otter", 1), received("lynx", 1))
    snapshot = fold_all(snapshot, (e.Stamped(time=9.0, event=event) for event in (APPLIED_IT, opened(2))))
    assert [snapshot.lag(peer) for peer in snapshot.table] == [0, 1]


def test_old_progress_does_not_undo_a_payload() -> None:
    snapshot = after(STARTED, joined("otter"), opened(1), received("otter", 1), progress("otter", 1, 19, 70.0))
    (otter,) = snapshot.table
    assert (otter.state, otter.tokens_per_second, otter.local_loss) == ("sent", 70.0, 3.5)


def test_a_peer_that_left_counts_no_more_but_stays_in_the_table() -> None:
    snapshot = after(STARTED, joined("otter"), joined("lynx", 2), progress("otter", 1, 3), progress("lynx", 1, 3), LEFT)
    assert len(snapshot.alive) == 1
    assert snapshot.tokens_per_second == 100.0
    assert [(p.name, p.state, p.reason) for p in snapshot.table] == [
        ("lynx", "training", ""),
        ("otter", "left", "no sign of life for 30 s"),
    ]


def test_peers_that_left_long_ago_are_forgotten() -> None:
    names = [f"peer-{index}" for index in range(GONE_PEERS + 5)]
    leaving = [event for n in names for event in (joined(n), e.PeerLeft(peer=f"id-{n}", name=n, reason=""))]
    assert len(after(*leaving).peers) == GONE_PEERS


def test_a_resumed_run_keeps_its_history_and_another_run_starts_from_nothing() -> None:
    happened = (STARTED, joined("otter"), e.Evaluated(round=0, loss=5.0), closed(1))
    resumed = after(*happened, STARTED)
    assert (resumed.first_loss, resumed.loss, resumed.wire_bytes, resumed.peers) == (5.0, 2.0, 164, {})
    other = after(*happened, replace(STARTED, run_id="r2"))
    assert (other.history, other.wire_bytes) == ((), 0)


def test_what_came_before_the_start_of_the_run_counts() -> None:
    assert after(closed(1), STARTED).wire_bytes == 164
    assert after(e.LabReady(mode="namespaces", reason="."), STARTED).lab == "namespaces"


def test_an_evaluation_and_a_closed_round_are_one_point() -> None:
    (point,) = after(e.Evaluated(round=1, loss=2.25), closed(1, loss=None)).history
    assert (point.round, point.loss, point.local_loss) == (1, 2.25, 2.5)


def test_a_very_long_history_keeps_its_start_and_its_end() -> None:
    snapshot = after(*(e.Evaluated(round=r, loss=float(r)) for r in range(HISTORY_POINTS + 10)))
    assert len(snapshot.history) <= HISTORY_POINTS
    assert (snapshot.history[0].round, snapshot.history[-1].round) == (0, HISTORY_POINTS + 9)


def test_names_from_peers_are_harmless() -> None:
    snapshot = after(replace(joined("x"), name="\x1b[2J\u202eevil" + "x" * 10**5, device="a\nb"))
    (peer,) = snapshot.table
    assert peer.name.isprintable()
    assert len(peer.name) == 32
    assert peer.device == "a b"
    assert all(line.text.isprintable() for line in snapshot.log)


def test_a_peers_own_stream_shows_that_it_helps() -> None:
    start = e.Joined(run="shakespeare", name="otter", number=3, address="", round=4)
    snapshot = after(start, progress("otter", 5, 7), APPLIED, replace(APPLIED, round=6, included=False))
    (own,) = snapshot.table
    assert (own.number, own.state, own.up, own.down, own.local_loss) == (3, "applied", 60, 100, 2.5)
    assert (snapshot.rounds_included, snapshot.rounds_counted, snapshot.wire_bytes) == (1, 2, 160)
    assert snapshot.state == "otter: after round 6, its work was in 1 of 2 rounds"


def test_a_finished_run_has_peers_that_are_done_and_a_stopped_one_says_so_in_the_log() -> None:
    over = after(STARTED, joined("otter"), opened(1), progress("otter", 1, 3), FINISHED)
    assert [(peer.state, peer.tokens_per_second) for peer in over.table] == [("done", 0.0)]
    assert (over.missing_peers, over.is_over) == (0, True)
    assert after(*LAST).missing_peers == 0, "a run that is about to finish needs no more peers"
    assert "run stopped after 10 rounds (it was asked to stop)" in after(STARTED, STOPPED).log[-1].text
    unbegun = after(STARTED, replace(STOPPED, rounds=0))
    assert unbegun.log[-1].text == "run stopped before its first round closed (it was asked to stop)"


def test_a_run_that_is_over_is_at_the_last_round_that_closed() -> None:
    end = replace(FINISHED, rounds=1)
    over = after(STARTED, opened(1), closed(1), opened(2), end)
    assert (over.round, over.phase) == (1, "finished")
    assert after(STARTED, opened(1), closed(1), opened(2), replace(end, is_stopped=True)).phase == "stopped"


@given(events=st.lists(examples.ANY_EVENT, min_size=1, max_size=5))
def test_after_any_event_the_state_is_not_waiting_for_the_first_one(events: list[e.Event]) -> None:
    """A record may begin anywhere, and the phase "finished" comes before the end."""
    assert after(*events).state != "waiting for the first event"


def test_without_a_leader_the_speed_is_zero() -> None:
    trains = (STARTED, joined("otter"), leads("otter"), opened(1), progress("otter", 1, 3))
    (peer,) = after(*trains).table
    assert (after(*trains).tokens_per_second, after(*trains).speed(peer)) == (100.0, 100.0)
    assert (after(*trains, LOST).tokens_per_second, after(*trains, LOST).speed(peer)) == (0.0, 0.0)
    assert after(*trains, LOST, leads("lynx"), joined("otter"), progress("otter", 1, 9)).tokens_per_second == 100.0


def test_the_leader_is_known_until_it_is_lost_and_then_the_next_one() -> None:
    led = after(*TRAINING, leads("otter"))
    assert (led.leader, led.is_safe, led.voters) == ("otter", True, 3)
    assert [led.leads(peer) for peer in led.table] == [True, False]
    lost = after(*TRAINING, leads("otter"), LOST)
    assert lost.deadline is None
    assert not any(lost.leads(peer) for peer in lost.table)
    found = after(*TRAINING, joined("heron", 3), leads("otter"), LOST, leads("lynx"))
    states = [(peer.name, peer.state) for peer in found.table]
    assert states == [("lynx", "joining"), ("heron", "joining"), ("otter", "left")]


def test_a_leader_that_reports_again_is_not_lost() -> None:
    snapshot = after(STARTED, joined("otter"), joined("lynx", 2), leads("otter"), opened(1), LOST, opened(2))
    assert (snapshot.state, len(snapshot.alive)) == ("round 2: 2 peers training", 2)
    assert len(after(STARTED, joined("otter"), leads("otter"), LOST, leads("otter")).alive) == 1


def test_a_loss_that_several_nodes_notice_is_one_line_of_the_log() -> None:
    log = after(STARTED, leads("otter"), LOST, LOST, leads("lynx"), LOST).log
    assert sum("is lost" in line.text for line in log) == 2


def test_a_round_that_two_leaders_report_is_one_round_with_the_bytes_of_both() -> None:
    snapshot = after(STARTED, closed(1), closed(2), closed(2))
    assert (snapshot.rounds_counted, snapshot.dense_bytes, snapshot.raw_bytes) == (2, 32_800, 600)
    assert snapshot.wire_bytes == 3 * 164


def test_the_coverage_is_that_of_the_newest_report() -> None:
    snapshot = fold(SwarmSnapshot(), 1.0, e.DataCovered(epoch=2, done=3, parts=8, share=0.375))
    assert (snapshot.epoch, snapshot.share) == (2, 0.375)
    assert fold(snapshot, 2.0, e.DataCovered(epoch=3, done=1, parts=1, share=1e9)).share == 1.0


JOINED = e.Joined(run="chat", name="otter", number=1, address="192.0.2.1:7700", round=4)
LED = leads("coordinator", voters=1)
OPENED = opened(5)
FIGURES = "history sent received raw_bytes dense_bytes overhead rounds_counted digest table run round finished"


def own(snapshot: SwarmSnapshot, *events: e.Event) -> SwarmSnapshot:
    for event in events:
        snapshot = fold_own(snapshot, 2.0, event)
    return snapshot


@given(of_run=st.lists(examples.ANY_EVENT, max_size=5), of_peer=st.lists(examples.ANY_EVENT, max_size=5))
def test_events_of_one_peer_change_no_number_of_the_swarm(of_run: list[e.Event], of_peer: list[e.Event]) -> None:
    before = after(*of_run)
    changed = own(before, *of_peer)
    for name in FIGURES.split():
        assert getattr(changed, name) == getattr(before, name)
    assert isinstance(changed.own_text, str)


def test_the_peer_is_one_of_the_swarm_whichever_event_comes_first() -> None:
    for snapshot in (fold(own(after(), JOINED), 1.0, joined("otter")), own(after(joined("otter")), JOINED)):
        (peer,) = fold(snapshot, 3.0, progress("otter", 5, 1)).table
        assert (peer.peer, peer.name, peer.state, snapshot.own_name) == ("id-otter", "otter", "training", "otter")


def test_the_state_of_the_peer_is_in_words() -> None:
    led = after(LED, OPENED)
    assert own(led).own_text == ""
    assert own(led, JOINED).own_text == "this peer trains on"
    for happened in ([LOST], [LOST, APPLIED]):  # which the lost leader itself had closed
        assert own(led, JOINED, *happened).own_text == "this peer waits for coordinator"
    assert own(led, JOINED, LOST, replace(APPLIED, round=6)).own_text == "this peer trains on"
    safe = after(leads("coordinator"))
    assert own(safe, JOINED, LOST).own_text == "this peer waits until another leads"


def test_a_leader_that_the_peer_has_lost_is_lost_until_the_run_goes_on() -> None:
    led = fold(after(LED, OPENED), 1.0, e.PhaseChanged(round=5, phase="exchange", deadline=9.0, reason=""))
    lost = own(led, JOINED, LOST)
    assert (lost.state, lost.deadline) == ("coordinator is lost: the run waits for it", None)
    assert fold(lost, 3.0, OPENED).state == "round 5: no peer is here"


def test_the_log_shows_the_rounds_that_the_peer_missed() -> None:
    assert own(after(), APPLIED).log == ()
    (line,) = own(after(), replace(APPLIED, included=False)).log
    assert line.text.startswith("this peer: round 5 applied")
    assert "without your work" in line.text
