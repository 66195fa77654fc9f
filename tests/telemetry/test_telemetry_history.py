"""A run that is stopped, or killed, and goes on is one run: its figures are those of an account that was never cut."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.telemetry import events as e
from tsr_swarm.telemetry.fold import fold, fold_all
from tsr_swarm.telemetry.log import EventLog
from tsr_swarm.telemetry.recording import EVENTS_FILE, read_history
from tsr_swarm.telemetry.snapshot import SwarmSnapshot

STARTED = e.RunStarted(
    run="chat",
    run_id="r1",
    address="192.0.2.1:7700",
    rounds=10,
    min_peers=1,
    parameters=9,
    k_x=2,
    local_space="core",
    rank="d/2",
    voters=1,
    version="0",
)
COUNTS = st.dictionaries(st.sampled_from(["core", "state", "control"]), st.integers(0, 10**9), max_size=3)
TRAFFIC = st.fixed_dictionaries({"sent": COUNTS, "received": COUNTS})
CLOSED = st.builds(
    e.RoundClosed,
    round=st.integers(1, 12),
    peers=st.just(1),
    included=st.just(1),
    late=st.just(0),
    loss=st.none() | st.floats(0, 9),
    local_loss=st.none() | st.floats(0, 9),
    tokens=st.just(1),
    seconds=st.just(1.0),
    wire_bytes=TRAFFIC,
    per_peer=st.dictionaries(st.sampled_from(["otter", "lynx"]), TRAFFIC, max_size=2),
    raw_bytes=st.fixed_dictionaries({"sent": st.integers(0, 9), "received": st.integers(0, 9)}),
    dense_bytes=st.integers(0, 10**12),
    digest=st.sampled_from(["ab", "cd"]),
)
RESTART = st.just(STARTED)
EVENTS = st.lists(
    CLOSED
    | RESTART
    | st.builds(e.Evaluated, round=st.integers(0, 12), loss=st.none() | st.floats(0, 9))
    | st.builds(e.PhaseChanged, round=st.just(1), phase=st.just("train"), deadline=st.just(9.0), reason=st.just("")),
    max_size=30,
)


def figures(s: SwarmSnapshot) -> dict[str, Any]:
    names = "first_loss loss local_loss history sent received raw_bytes dense_bytes overhead rounds_counted digest"
    return {name: getattr(s, name) for name in [*names.split(), "closed_round", "wire_bytes", "started"]}


def stamped(events: list[e.Event]) -> list[e.Stamped]:
    return [e.Stamped(time=float(number), event=event) for number, event in enumerate(events)]


@given(happened=EVENTS, data=st.data())
def test_an_account_that_a_restart_has_cut_comes_to_the_same_figures(
    happened: list[e.Event], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    told = stamped([STARTED, *happened])
    whole = fold_all(SwarmSnapshot(), told)
    cut, folder = data.draw(st.integers(0, len(told))), tmp_path_factory.mktemp("run")
    (folder / EVENTS_FILE).write_text("".join(f"{e.encode(one.event, one.time)}\n" for one in told[:cut]))
    screen = fold_all(read_history(folder), told[cut:])
    assert figures(screen) == figures(whole)

    log = EventLog(lambda: 0.0)
    log.restore(told)
    monitor = fold_all(SwarmSnapshot(), (one for line in log.since(0)[0] if (one := e.decode_stamped(line))))
    assert figures(monitor) == figures(whole)


def totals(s: SwarmSnapshot) -> dict[str, Any]:
    names = ("sent", "received", "raw_bytes", "dense_bytes", "overhead", "rounds_counted", "closed_round")
    return {name: getattr(s, name) for name in names}


@given(happened=EVENTS, keep=st.integers(1, 6), keep_rounds=st.integers(1, 6))
def test_a_monitor_that_comes_when_most_rounds_are_kept_no_more_sees_the_same_totals(
    happened: list[e.Event], keep: int, keep_rounds: int
) -> None:
    told = [STARTED, *happened]
    log = EventLog(lambda: 0.0, keep=keep, keep_rounds=keep_rounds)
    for event in told:
        log.append(event)
    assert totals(read(SwarmSnapshot(), log.since(0)[0])) == totals(fold_all(SwarmSnapshot(), stamped(told)))


@given(closed=st.lists(CLOSED, max_size=30), looks=st.sets(st.integers(0, 30), max_size=3), keep=st.integers(1, 6))
def test_so_does_one_that_looks_seldom_and_one_at_a_node_that_took_the_account_from_another(
    closed: list[e.RoundClosed], looks: set[int], keep: int
) -> None:
    told = [replace(event, round=number) for number, event in enumerate(closed, 1)]
    log, other = EventLog(lambda: 0.0, keep=keep, keep_rounds=keep), EventLog(lambda: 0.0, keep=3, keep_rounds=3)
    reader, newest = SwarmSnapshot(), 0
    for number, event in enumerate(told, 1):
        log.append(event)
        if number in looks or number == len(told):
            lines, newest = log.since(newest)
            reader = read(reader, lines)
            for line in log.since(0)[0]:
                other.take(line)
    for seen in (reader, read(SwarmSnapshot(), other.since(0)[0])):
        assert totals(seen) == totals(fold_all(SwarmSnapshot(), stamped([*told])))


def read(snapshot: SwarmSnapshot, lines: list[str]) -> SwarmSnapshot:
    return fold_all(snapshot, (one for line in lines if (one := e.decode_stamped(line))))


def test_what_ended_with_the_process_is_no_part_of_the_history(tmp_path: Path) -> None:
    joined = e.PeerJoined(peer="1", name="otter", number=1, address="", device="cpu", local_space="core")
    opened = e.RoundOpened(round=1, peers=1, steps=2, lr=0.1, refresh=0)
    late = e.PhaseChanged(round=1, phase="exchange", deadline=9.0, reason="")
    told = [STARTED, joined, opened, late, e.LeaderLost(reason="it does not answer")]
    (tmp_path / EVENTS_FILE).write_text("".join(f"{e.encode(event, 1.0)}\n" for event in told) + '{"event": "round_cl')
    history = read_history(tmp_path)
    assert (history.address, history.peers, history.deadline, history.is_leaderless) == ("", {}, None, False)
    assert history.round == 1
    assert len(history.log) == 5
    assert fold(history, 2.0, STARTED).state == "waiting for 1 more peer"


def test_a_run_without_a_history_starts_from_nothing(tmp_path: Path) -> None:
    assert read_history(tmp_path / "nowhere") == SwarmSnapshot()
