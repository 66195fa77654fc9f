"""``tsr-swarm monitor``: look at a run from anywhere."""

import sys

from tsr_swarm.cli.options import Coordinator, Json, Plain
from tsr_swarm.cli.output import Mode, choose_mode, line_printer
from tsr_swarm.cli.process import run_process
from tsr_swarm.runtime.lifeline import StopRequest, run_unless_stopped
from tsr_swarm.telemetry.log import NEWEST


def monitor(coordinator: Coordinator, plain: Plain = False, json: Json = False) -> None:
    """Watch a run. Closing the monitor changes nothing for it."""
    from tsr_swarm.cli.watching import calling, follow, watching

    mode = choose_mode(plain=plain, json=json)

    async def work(stop: StopRequest) -> None:
        async with calling(coordinator) as watch:
            await watch(NEWEST)  # a coordinator that is not there ends the command at once
        async with watching(coordinator, lambda error: print(f"{error} Trying again.", file=sys.stderr)) as source:
            if mode is Mode.SCREEN:
                from tsr_swarm.cli.screen import show_source

                await show_source(source, coordinator, "The monitor is closed; training goes on.", stop)
            else:
                await run_unless_stopped(follow(source, line_printer(mode, stop.request)), stop)

    run_process(mode, work)
