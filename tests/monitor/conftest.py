"""A short recorded run: three peers, one of which leaves, three rounds, the fourth in exchange."""

from pathlib import Path

import pytest

from tsr_swarm.telemetry import events as e

NAMES = ("otter", "heron", "lynx")
START = 1_000_000.0


def _joined(number: int, name: str) -> e.PeerJoined:
    return e.PeerJoined(peer=str(number) * 32, name=name, number=number, address="", device="cpu", local_space="core")


def _closed(round: int) -> e.RoundClosed:
    sent, received = {"core": 100_000, "control": 1_000}, {"core": 200_000, "basis": 50_000}
    names = NAMES if round < 3 else NAMES[:2]
    return e.RoundClosed(
        round=round,
        peers=len(names),
        included=len(names),
        late=0,
        loss=5.5 - round,
        local_loss=5.6 - round,
        tokens=1000,
        seconds=12.0,
        wire_bytes={"sent": sent, "received": received},
        per_peer={name: {"sent": {"core": 40_000}, "received": {"core": 80_000}, "overhead": 90} for name in names},
        raw_bytes={"sent": 300_000, "received": 500_000},
        dense_bytes=100_000_000,
        digest="ab" * 32,
    )


def run_events() -> list[e.Event]:
    """The events of the run, in order."""
    start = e.RunStarted(
        run="shakespeare",
        run_id="r1",
        address="192.0.2.1:7700",
        rounds=10,
        min_peers=2,
        parameters=9_400_000,
        k_x=20,
        local_space="core",
        rank="d/2",
        voters=1,
        version="0.1.0",
    )
    events: list[e.Event] = [start, e.Evaluated(round=0, loss=5.5)]
    events += [_joined(number, name) for number, name in enumerate(NAMES, 1)]
    for round in (1, 2, 3):
        events += [e.RoundOpened(round=round, peers=3, steps=20, lr=0.003, refresh=0), _closed(round)]
        if round == 2:
            events.append(e.PeerLeft(peer="3" * 32, name="lynx", reason="no sign of life for 30 s"))
    events.append(e.RoundOpened(round=4, peers=2, steps=20, lr=0.003, refresh=0))
    for number, name in enumerate(NAMES[:2], 1):
        events.append(
            e.PeerProgress(peer=str(number) * 32, name=name, round=4, step=15, steps=20, tokens_per_second=1500.0)
        )
    events.append(e.PayloadReceived(round=4, peer="1" * 32, name="otter", seconds=9.0, wire_bytes=9, local_loss=1.75))
    events.append(e.PhaseChanged(round=4, phase="exchange", deadline=12.0, reason="median + 3 MAD"))
    return events


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
