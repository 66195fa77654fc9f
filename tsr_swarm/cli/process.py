"""Run a command's asynchronous work: logs, signals, the parent's death, and the exit code."""

from collections.abc import Awaitable, Callable
from typing import NoReturn

import typer

from tsr_swarm.cli.output import Mode, set_up_logging
from tsr_swarm.runtime.lifeline import StopRequest, run_until_stopped, tie_to_parent


def run_process(mode: Mode, work: Callable[[StopRequest], Awaitable[None]]) -> NoReturn:
    """Run ``work`` until it ends or is stopped. Ends the command with exit code 0, or 130 after a stop."""
    set_up_logging(mode)
    raise typer.Exit(run_until_stopped(work, tie_to_parent()))
