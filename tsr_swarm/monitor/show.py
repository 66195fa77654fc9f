"""Give the terminal to a monitor and take it back."""

import math
from pathlib import Path

from tsr_swarm.monitor.app import SwarmMonitor

AT_ONCE = math.inf  # a replay's speed that shows the end of the run at once


async def run_monitor(app: SwarmMonitor, log: Path | None = None) -> None:
    """Run ``app`` until it is closed, then print its one line. Raises the SwarmError that made its source give up."""
    await app.take_terminal(log)
    if app.failure is not None:
        raise app.failure
    print(app.quit_note)
