from dataclasses import replace

import pytest
from hypothesis import given

from tests.telemetry.examples import ANY_EVENT, CLOSED, FINISHED, LOST, joined, leads, progress
from tsr_swarm.telemetry import events as e
from tsr_swarm.telemetry.plain import describe, is_alert

HOSTILE = "\x1b[31mot\nter\u202e"
FAULT = e.FaultPlaced(fault="--stop peer-2@3/train:20s", is_over=False)
STATE = e.StateReceived(round=5, bytes=3_000_000, seconds=1.5, donors=3)
COVERED = e.DataCovered(epoch=1, done=3, parts=8, share=0.375)
SURVIVES = "the run survives the loss of"
ONE_LATE = replace(CLOSED, peers=4, included=3, late=1)
LINES: list[tuple[e.Event, str | None]] = [
    (CLOSED, "round 1 closed in 3.0 s: loss 2.000 (local 2.500), 2 of 2 peers, 164 B, 100x less than dense"),
    (ONE_LATE, "round 1 closed in 3.0 s: loss 2.000 (local 2.500), 3 of 4 peers, 1 late, 164 B, 100x less than dense"),
    (e.PeerLeft(peer="ab", name="otter", reason="asked to"), "peer otter left: asked to"),
    (joined("otter", 2), "peer 2 otter joined (cpu, core, client-only)"),
    (progress("otter", 1, 1), None),
    (e.PhaseChanged(round=1, phase="commit", deadline=None, reason=""), None),
    (
        e.PhaseChanged(round=3, phase="exchange", deadline=12.0, reason="median + 3 MAD"),
        "round 3 exchange, closes in 12 s (median + 3 MAD)",
    ),
    (
        e.DigestMismatch(round=2, peer="ab", name="otter", expected="a" * 64, digest="b" * 64),
        "ERROR round 2: otter has weights bbbbbbbbbbbb, expected aaaaaaaaaaaa",
    ),
    (e.LabReady(mode="proxy", reason="As asked."), "lab (proxy): As asked."),
    (
        FINISHED,
        "run finished after 10 rounds (10 rounds done): loss 5.000 to 2.000, 9 B on the wire where dense training "
        "needs 99 B (11x)",
    ),
    (
        replace(FINISHED, by_kind={"sketch": 4, "gradient": 1, "core": 3, "dense": 1}),
        "run finished after 10 rounds (10 rounds done): loss 5.000 to 2.000, 9 B on the wire, of it 5 B sketches and "
        "3 B cores, where dense training needs 99 B (11x)",
    ),
    (FAULT, "--stop peer-2@3/train:20s begins"),
    (replace(FAULT, is_over=True), "--stop peer-2@3/train:20s is over"),
    (STATE, "state after round 5 received: 3.00 MB from 3 donors in 1.5 s, 2.00 MB a second"),
    (
        replace(STATE, seconds=2, donors=1, found_bytes=1_000_000),
        "state after round 5 received: 3.00 MB from 1 donor in 2.0 s, 1.00 MB a second, 1.00 MB were here already",
    ),
    (replace(STATE, bytes=0, seconds=0), "state after round 5 received: 0 B from 3 donors in 0.0 s"),
    (e.CatchingUp(missed=20, takes_state=False, reason="less"), "missed 20 rounds, replays them: less"),
    (leads("otter", 1), "otter leads: a single point of failure: if it goes, the run waits for it"),
    (leads("otter", 3), f"otter leads: 3 voters, {SURVIVES} 1 of them"),
    (leads("otter", 5), f"otter leads: 5 voters, {SURVIVES} 2 of them"),
    (LOST, "the leader is lost: no word for 6 s"),
    (COVERED, "epoch 1, 37 % of the data"),
    (
        replace(COVERED, part=5, was="otter", now=HOSTILE),
        "part 5 of the data passes from otter to [31mot ter: epoch 1, 37 % of the data",
    ),
    (
        e.PayloadRefused(round=1, peer="ab", name=HOSTILE, reason="length", message="too\x07 long"),
        "round 1: refused [31mot ter (length): too long",
    ),
]


@given(event=ANY_EVENT)
def test_every_event_is_one_harmless_line_or_none(event: e.Event) -> None:
    line = describe(event)
    assert line is None or (line and line.isprintable())


@pytest.mark.parametrize(("event", "line"), LINES)
def test_an_event_is_told_in_one_line(event: e.Event, line: str | None) -> None:
    assert describe(event) == line


def test_lost_or_differing_work_and_a_lost_leader_are_alerts() -> None:
    alerts = {type(event) for event, _ in LINES if is_alert(event)}
    assert alerts == {e.DigestMismatch, e.PayloadRefused, e.LeaderLost}
