"""A short recorded run: three peers, one of which leaves, three rounds, the fourth in exchange."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.telemetry.examples import CLOSED, STARTED, joined, opened
from tsr_swarm.telemetry import events as e

NAMES = ("otter", "heron", "lynx")
START = 1_000_000.0


def _closed(round: int) -> e.RoundClosed:
    names = NAMES if round < 3 else NAMES[:2]
    counts = replace(
        CLOSED, round=round, peers=len(names), included=len(names), loss=5.5 - round, local_loss=5.6 - round
    )
    return replace(
        counts,
        seconds=12.0,
        wire_bytes={"sent": {"core": 100_000, "control": 1_000}, "received": {"core": 200_000, "basis": 50_000}},
        per_peer={name: {"sent": {"core": 40_000}, "received": {"core": 80_000}, "overhead": 90} for name in names},
        raw_bytes={"sent": 300_000, "received": 500_000},
        dense_bytes=100_000_000,
    )


def run_events() -> list[e.Event]:
    """The events of the run, in order."""
    events: list[e.Event] = [STARTED, e.Evaluated(round=0, loss=5.5)]
    events += [joined(name, number) for number, name in enumerate(NAMES, 1)]
    for round in (1, 2, 3):
        events += [opened(round), _closed(round)]
        if round == 2:
            events.append(e.PeerLeft(peer="id-lynx", name="lynx", reason="no sign of life for 30 s"))
    events.append(opened(4))
    events += [
        e.PeerProgress(peer=f"id-{name}", name=name, round=4, step=15, steps=20, tokens_per_second=1500.0)
        for name in NAMES[:2]
    ]
    sent = e.PayloadReceived(round=4, peer="id-otter", name="otter", seconds=9.0, wire_bytes=9, local_loss=1.75)
    return [*events, sent, e.PhaseChanged(round=4, phase="exchange", deadline=12.0, reason="median + 3 MAD")]


@pytest.fixture
def run_lines() -> list[str]:
    """The run as it was recorded, ten seconds from event to event."""
    return [e.encode(event, START + 10 * index) for index, event in enumerate(run_events())]


@pytest.fixture
def recorded(tmp_path: Path, run_lines: list[str]) -> Path:
    """The file of the recorded run."""
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join(run_lines) + "\n")
    return path
