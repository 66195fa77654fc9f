"""``tsr-swarm monitor``: look at a run from anywhere."""

from functools import partial

from tsr_swarm.cli.options import Coordinator, Json, Plain, Wait
from tsr_swarm.cli.output import Mode, choose_mode, print_aside, print_line
from tsr_swarm.cli.process import run_process
from tsr_swarm.process.machine_limits import require_process_room
from tsr_swarm.process.shutdown import Shutdown, run_unless


def monitor(coordinator: Coordinator, wait: Wait = 60.0, plain: Plain = False, json: Json = False) -> None:
    """Watch a run. Closing the monitor changes nothing for it."""
    from tsr_swarm.cli.watch import follow, reach, watching

    mode = choose_mode(plain=plain, json=json)

    require_process_room()

    async def work(stop: Shutdown) -> None:
        await run_unless(stop.graceful, reach(coordinator, wait))  # what keeps it waiting is no matter for a screen
        if stop.graceful.is_set():
            return
        async with watching(coordinator, lambda error: print_aside(f"{error} Trying again.")) as source:
            if mode is Mode.SCREEN:
                from tsr_swarm.cli.screen import show_source

                await show_source(source, coordinator, "The monitor is closed; training goes on.", stop)
            else:
                await run_unless(stop.graceful, follow(source, partial(print_line, mode)))

    run_process(mode, work)
