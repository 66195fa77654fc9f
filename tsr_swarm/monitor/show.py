"""Give the terminal to a monitor and take it back."""

import asyncio
import math
import time
from pathlib import Path

from tsr_swarm.monitor.app import SwarmMonitor
from tsr_swarm.monitor.sources import ReplaySource

REPLAY_NOTE = "The replay is closed."
AT_ONCE = math.inf  # a replay's speed that shows the end of the run at once


async def run_monitor(app: SwarmMonitor, log: Path | None = None) -> None:
    """Run ``app`` until it is closed, then print its one line. Raises the SwarmError that made its source give up."""
    await app.take_terminal(log)
    if app.failure is not None:
        raise app.failure
    print(app.quit_note)


def run_replay(path: Path, speed: float = 10.0) -> None:
    """Show the recorded run ``path`` at ``speed`` times its pace. Raises RunError, ConfigError."""
    source = ReplaySource(path, speed, time.monotonic)
    asyncio.run(run_monitor(SwarmMonitor(source, f"replay of {path.name}", REPLAY_NOTE)))
