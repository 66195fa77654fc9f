"""Run a command's asynchronous work: logs, signals, the parent's death, and the exit code."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn

import typer

from tsr_swarm.cli.output import Mode, set_up_logging
from tsr_swarm.runtime.lifeline import StopRequest, run_until_stopped, tie_to_parent

Work = Callable[[StopRequest], Awaitable[None]]
LEAVING = "Leaving after this round; Ctrl-C again leaves at once."


def run_process(mode: Mode, work: Work) -> NoReturn:
    """Run ``work`` until it ends or is stopped. Ends the command with exit code 0, or 130 after a stop."""
    set_up_logging(mode)
    raise typer.Exit(run_until_stopped(work, tie_to_parent()))


def run_training(mode: Mode, work: Work) -> NoReturn:
    """Like ``run_process``, for work that finishes its round when it is asked to stop: plain lines then say so."""

    async def work_and_say(stop: StopRequest) -> None:
        notice = asyncio.create_task(_say_leaving(stop))
        try:
            await work(stop)
        finally:
            notice.cancel()

    run_process(mode, work_and_say if mode is Mode.PLAIN else work)


async def _say_leaving(stop: StopRequest) -> None:
    await stop.gently.wait()
    if not stop.now.is_set():
        print(LEAVING, file=sys.stderr, flush=True)
