"""Recorded runs: a run that is stopped, or killed, and goes on has the numbers of one run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.telemetry.examples import CLOSED, LOST, STARTED, joined, log_of, opened
from tsr_swarm.telemetry import events as e
from tsr_swarm.telemetry.fold import fold, fold_all
from tsr_swarm.telemetry.log import EventLog
from tsr_swarm.telemetry.recording import EVENTS_FILE, read_history, read_recording, recording
from tsr_swarm.telemetry.snapshot import SwarmSnapshot

RUN = replace(STARTED, min_peers=1)
COUNTS = st.dictionaries(st.sampled_from(["core", "state", "control"]), st.integers(0, 10**9), max_size=3)
TRAFFIC = st.fixed_dictionaries({"sent": COUNTS, "received": COUNTS})
ROUNDS = st.builds(
    lambda **changes: replace(CLOSED, **changes),
    round=st.integers(1, 12),
    loss=st.none() | st.floats(0, 9),
    local_loss=st.none() | st.floats(0, 9),
    wire_bytes=TRAFFIC,
    per_peer=st.dictionaries(st.sampled_from(["otter", "lynx"]), TRAFFIC, max_size=2),
    raw_bytes=st.fixed_dictionaries({"sent": st.integers(0, 9), "received": st.integers(0, 9)}),
    dense_bytes=st.integers(0, 10**12),
    digest=st.sampled_from(["ab", "cd"]),
)
EVENTS = st.lists(
    ROUNDS
    | st.just(RUN)
    | st.builds(e.Evaluated, round=st.integers(0, 12), loss=st.none() | st.floats(0, 9))
    | st.builds(e.PhaseChanged, round=st.just(1), phase=st.just("train"), deadline=st.just(9.0), reason=st.just("")),
    max_size=30,
)


TOTALS = ["sent", "received", "raw_bytes", "dense_bytes", "overhead", "rounds_counted", "closed_round"]
FIGURES = [*TOTALS, "first_loss", "loss", "local_loss", "history", "digest", "wire_bytes", "started"]


def values(s: SwarmSnapshot, names: list[str]) -> dict[str, Any]:
    return {name: getattr(s, name) for name in names}


def stamped(events: list[e.Event]) -> list[e.Stamped]:
    return [e.Stamped(time=float(number), event=event) for number, event in enumerate(events)]


def read(snapshot: SwarmSnapshot, lines: list[str]) -> SwarmSnapshot:
    return fold_all(snapshot, (one for line in lines if (one := e.decode_stamped(line))))


@given(happened=EVENTS, data=st.data())
def test_a_run_with_a_restart_has_the_same_numbers_as_one_without(
    happened: list[e.Event], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    events = stamped([RUN, *happened])
    whole = fold_all(SwarmSnapshot(), events)
    cut, folder = data.draw(st.integers(0, len(events))), tmp_path_factory.mktemp("run")
    (folder / EVENTS_FILE).write_text("".join(f"{e.encode(one.event, one.time)}\n" for one in events[:cut]))
    screen = fold_all(read_history(folder), events[cut:])
    assert values(screen, FIGURES) == values(whole, FIGURES)

    log = log_of()
    log.restore(events)
    monitor = read(SwarmSnapshot(), log.since(0)[0])
    assert values(monitor, FIGURES) == values(whole, FIGURES)


@given(happened=EVENTS, keep=st.integers(1, 6), keep_rounds=st.integers(1, 6))
def test_a_late_monitor_sees_the_totals_of_rounds_that_are_no_longer_kept(
    happened: list[e.Event], keep: int, keep_rounds: int
) -> None:
    events = [RUN, *happened]
    log = log_of(*events, keep=keep, keep_rounds=keep_rounds)
    late, whole = read(SwarmSnapshot(), log.since(0)[0]), fold_all(SwarmSnapshot(), stamped(events))
    assert values(late, TOTALS) == values(whole, TOTALS)


@given(closed=st.lists(ROUNDS, max_size=30), looks=st.sets(st.integers(0, 30), max_size=3), keep=st.integers(1, 6))
def test_a_monitor_that_reads_seldom_or_at_a_node_that_copied_the_log_sees_the_same_totals(
    closed: list[e.RoundClosed], looks: set[int], keep: int
) -> None:
    events = [replace(event, round=number) for number, event in enumerate(closed, 1)]
    log, other = log_of(keep=keep, keep_rounds=keep), log_of(keep=3, keep_rounds=3)
    reader, newest = SwarmSnapshot(), 0
    for number, event in enumerate(events, 1):
        log.append(event)
        if number in looks or number == len(events):
            lines, newest = log.since(newest)
            reader = read(reader, lines)
            for line in log.since(0)[0]:
                other.take(line)
    for seen in (reader, read(SwarmSnapshot(), other.since(0)[0])):
        assert values(seen, TOTALS) == values(fold_all(SwarmSnapshot(), stamped([*events])), TOTALS)


def test_the_history_leaves_out_what_ended_with_the_process(tmp_path: Path) -> None:
    late = e.PhaseChanged(round=1, phase="exchange", deadline=9.0, reason="")
    events = [RUN, joined("otter"), opened(1), late, LOST]
    whole = "".join(f"{e.encode(event, 1.0)}\n" for event in events)
    (tmp_path / EVENTS_FILE).write_text(whole + '{"event": "round_cl')
    history = read_history(tmp_path)
    assert (history.address, history.peers, history.deadline, history.is_leaderless) == ("", {}, None, False)
    assert history.round == 1
    assert len(history.log) == 5
    assert fold(history, 2.0, RUN).state == "waiting for 1 more peer"


def test_a_run_without_a_history_starts_from_nothing(tmp_path: Path) -> None:
    assert read_history(tmp_path / "nowhere") == SwarmSnapshot()


def test_a_recorded_run_is_read_back_without_damage_and_goes_on_where_a_restored_log_does(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "run.jsonl"
    with recording(path) as sink:
        EventLog(lambda: 10.0, [sink]).append(e.Warned(message="one"))
    with path.open("ab") as stream:
        stream.write(b"\xff\xfe{half a line\n")
    with recording(path) as sink:
        log = EventLog(lambda: 10.0, [sink])
        log.restore(read_recording(path))
        restored = log.last
        assert log.append(e.Warned(message="two")) == restored + 1
    assert list(read_recording(path)) == [e.Stamped(time=10.0, event=e.Warned(message=text)) for text in ("one", "two")]
