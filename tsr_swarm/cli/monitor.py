"""``tsr-swarm monitor``: look at a run from anywhere."""

from functools import partial

from tsr_swarm.cli.options import Coordinator, Json, Plain
from tsr_swarm.cli.output import Mode, choose_mode, print_line
from tsr_swarm.cli.process import run_process
from tsr_swarm.runtime.lifeline import StopRequest, run_unless_stopped


def monitor(coordinator: Coordinator, plain: Plain = False, json: Json = False) -> None:
    """Watch a run. Closing the monitor changes nothing for it."""
    from tsr_swarm.cli.watching import calling, follow, watching

    mode = choose_mode(plain=plain, json=json)

    async def work(stop: StopRequest) -> None:
        if mode is Mode.SCREEN:
            from tsr_swarm.cli.screen import show_source

            async with calling(coordinator, wait_ms=0) as watch:
                await watch(0)  # a coordinator that is not there is said at once, not on a screen
            async with watching(coordinator) as source:
                await show_source(source, coordinator, "The monitor is closed; training goes on.", stop)
        else:
            async with calling(coordinator) as watch:
                await run_unless_stopped(follow(watch, partial(print_line, mode)), stop)

    run_process(mode, work)
