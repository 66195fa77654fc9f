"""Run a command's asynchronous work: logs, signals, the parent's death, and the exit code."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NoReturn

import typer

from tsr_swarm.cli.output import Mode, gap_line, print_aside, set_up_logging
from tsr_swarm.cli.streams import Streams
from tsr_swarm.process.shutdown import Shutdown, run_until_stopped, tie_to_parent
from tsr_swarm.telemetry.writer import CLOSE_SECONDS

Work = Callable[[Shutdown], Awaitable[None]]
LEAVING = "Leaving after this round; Ctrl-C again leaves at once."
OUTPUT_IS_GONE = "The output is closed or full; leaving after this round."


def run_process(mode: Mode, work: Work) -> NoReturn:
    """Run ``work`` until it ends or is stopped. Ends the command with exit code 0, or 130 after a stop.

    Printing and logging never wait for a reader; a closed stdout is a request to stop.
    """
    streams = Streams(partial(gap_line, mode))

    async def work_and_listen(stop: Shutdown) -> None:
        loop = asyncio.get_running_loop()

        def hang_up() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed, too
                loop.call_soon_threadsafe(stop.hang_up)

        streams.when_closed(hang_up)
        try:
            await work(stop)
        finally:
            if stop.graceful.is_set():
                streams.end_seconds = CLOSE_SECONDS

    with streams.installed():
        set_up_logging(mode)
        code = run_until_stopped(work_and_listen, tie_to_parent())
    raise typer.Exit(code)


def run_training(mode: Mode, work: Work) -> NoReturn:
    """Like ``run_process``, for work that finishes its round when it is asked to stop; with plain lines it says so."""

    async def work_and_say(stop: Shutdown) -> None:
        notice = asyncio.create_task(_say_leaving(stop))
        try:
            await work(stop)
        finally:
            notice.cancel()

    run_process(mode, work_and_say if mode is Mode.PLAIN else work)


async def _say_leaving(stop: Shutdown) -> None:
    await stop.graceful.wait()
    if not stop.immediate.is_set():
        print_aside(OUTPUT_IS_GONE if stop.has_hung_up else LEAVING)
