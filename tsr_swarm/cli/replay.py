"""``tsr-swarm replay``: show a recorded run again."""

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tsr_swarm.cli.monitor import follow
from tsr_swarm.cli.options import Json, Plain, UsageError
from tsr_swarm.cli.output import Mode, choose_mode, print_line
from tsr_swarm.cli.process import catch_up, run_process
from tsr_swarm.monitor.sources import RECORD_ENDS, ReplaySource
from tsr_swarm.process.shutdown import Shutdown, run_unless


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What --record wrote, or --json printed.")],
    speed: Annotated[float, typer.Option(metavar="X", help="Times the run's own pace; inf: its end at once.")] = 1.0,
    plain: Plain = False,
    json: Json = False,
) -> None:
    mode = choose_mode(plain=plain, json=json)
    if not speed > 0:
        raise UsageError(f"--speed {speed:g} is out of range; give a number above 0, such as 10.")
    source = ReplaySource(file, speed, time.time)

    async def work(stop: Shutdown) -> None:
        if mode is Mode.SCREEN:
            from tsr_swarm.cli.screen import show_source

            await show_source(source, f"replay of {file}", "The replay is closed.", stop)
        else:
            await run_unless(stop.graceful, print_all())

    async def print_all() -> None:
        snapshot = await follow(source, partial(print_line, mode))
        if mode is Mode.PLAIN and not snapshot.is_over:
            print(f"{RECORD_ENDS.text}. Last known: {snapshot.state}.")
        await catch_up(is_over=True)

    run_process(mode, work)
