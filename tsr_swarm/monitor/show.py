"""Give the terminal to a monitor and take it back."""

import asyncio
import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tsr_swarm.monitor.app import SwarmMonitor
from tsr_swarm.monitor.sources import ReplaySource

REPLAY_NOTE = "The replay is closed."
AT_ONCE = math.inf  # a replay's speed that shows the end of the run at once


async def run_monitor(app: SwarmMonitor, log: Path | None = None) -> None:
    """Run ``app`` until it is closed, then print its one line. Raises the SwarmError that made its source give up.

    Whatever else this process writes meanwhile goes to ``log``, or nowhere.
    """
    with private_screen(log):
        await app.run_async()
    if app.failure is not None:
        raise app.failure
    print(app.quit_note)


def run_replay(path: Path, speed: float = 10.0) -> None:
    """Show the recorded run ``path`` at ``speed`` times its pace. Raises RunError, ConfigError."""
    source = ReplaySource(path, speed, time.monotonic)
    asyncio.run(run_monitor(SwarmMonitor(source, f"replay of {path.name}", REPLAY_NOTE)))


@contextlib.contextmanager
def private_screen(log: Path | None = None) -> Iterator[None]:
    """Let only the app reach the terminal.

    A library in C writes to file descriptors 1 and 2, past ``sys.stderr``; they lead to ``log`` while the app, which
    takes ``sys.__stdout__`` and ``sys.__stderr__``, keeps copies of the terminal's.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = sys.__stdout__, sys.__stderr__
    elsewhere = os.open(log or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    with os.fdopen(os.dup(1), "w") as output, os.fdopen(os.dup(2), "w") as errors:
        try:
            os.dup2(elsewhere, 1)
            os.dup2(elsewhere, 2)
            sys.__stdout__, sys.__stderr__ = output, errors  # type: ignore[misc]
            yield
        finally:
            sys.__stdout__, sys.__stderr__ = kept  # type: ignore[misc]
            os.dup2(output.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            os.close(elsewhere)
