"""What a run's folder tells of the run so far: a screen that opens after a restart goes on from there."""

from dataclasses import replace
from pathlib import Path

from tsr_swarm.telemetry.fold import fold_all
from tsr_swarm.telemetry.log import read_recording
from tsr_swarm.telemetry.snapshot import SwarmSnapshot

EVENTS_FILE = "events.jsonl"  # in the coordinator's folder


def read_history(folder: Path) -> SwarmSnapshot:
    """Add up the events that a coordinator has kept in ``folder``; an empty snapshot where it has kept none.

    Losses, bytes and the log are those of the whole run. Who was here, the open round and the address are left out:
    they ended with the process that told them.
    """
    try:
        told = fold_all(SwarmSnapshot(), read_recording(folder / EVENTS_FILE))
    except OSError:
        return SwarmSnapshot()
    return replace(
        told,
        address="",
        peers={},
        leader="",
        is_leaderless=False,
        phase="",
        phase_reason="",
        deadline=None,
        finished=None,
    )
