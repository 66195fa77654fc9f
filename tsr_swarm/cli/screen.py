"""The screen over a running command. The command itself runs as a child process; see cli/foreground.py."""

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tsr_swarm.cli.foreground import Feed, run_front
from tsr_swarm.cli.output import Mode, plain_line
from tsr_swarm.cli.process import LEAVING, run_process
from tsr_swarm.cli.status import run_lines
from tsr_swarm.cli.watch import watching
from tsr_swarm.monitor.app import Invite, SwarmMonitor
from tsr_swarm.monitor.sources import PipeSource, Source
from tsr_swarm.monitor.view import View
from tsr_swarm.process.shutdown import Shutdown
from tsr_swarm.process.supervisor import ProcessGroup, own_command
from tsr_swarm.telemetry.events import Event, Left, RunFinished, RunStarted, decode_stamped
from tsr_swarm.telemetry.fold import fold
from tsr_swarm.telemetry.recording import read_history
from tsr_swarm.telemetry.snapshot import SwarmSnapshot
from tsr_swarm.telemetry.text import seconds_text
from tsr_swarm.telemetry.writer import has_hung_up

QUIT_NOTE = "The screen is closed; training goes on. Ctrl-C finishes the round and leaves, twice leaves at once."


def show_coordinator(arguments: Sequence[str], title: str, folder: Path | None, invite: Invite) -> NoReturn:
    """Run ``coordinate`` with these arguments behind a screen. ``folder``: of a run that goes on."""

    async def work(stop: Shutdown) -> None:
        async with ProcessGroup() as family:
            await show_stream(family, "coordinator", arguments, title, stop, folder, invite)

    run_process(Mode.SCREEN, work)


def show_peer(arguments: Sequence[str], coordinator: str) -> NoReturn:
    """Run ``join`` with these arguments behind a screen that shows the whole swarm, as its coordinator tells it."""

    async def work(stop: Shutdown) -> None:
        async with watching(coordinator) as source, ProcessGroup() as family:
            await show_beside(family, "peer", arguments, source, coordinator, stop)

    run_process(Mode.SCREEN, work)


async def show_beside(
    family: ProcessGroup, name: str, arguments: Sequence[str], source: Source, title: str, stop: Shutdown
) -> None:
    """Run a peer's command behind a screen that shows what ``source`` tells of the swarm, and the peer's own news."""
    feed = Feed()
    screen = SwarmMonitor(source, title, QUIT_NOTE, own=PipeSource(feed, time.time))
    await _show(family, name, arguments, Onlooker(feed), screen, stop)


async def show_stream(
    family: ProcessGroup,
    name: str,
    arguments: Sequence[str],
    title: str,
    stop: Shutdown,
    folder: Path | None = None,
    invite: Invite = lambda snapshot: None,
) -> SwarmSnapshot:
    """Run a command behind a screen that shows its own events. Returns what they add up to.

    ``folder``: of the coordinator of a run that goes on; what it has kept of the run so far counts too.
    """
    feed, history = Feed(), SwarmSnapshot() if folder is None else read_history(folder)
    onlooker = Onlooker(feed, history, invite)
    screen = SwarmMonitor(PipeSource(feed, time.time), title, QUIT_NOTE, history=history, invite=invite)
    await _show(family, name, arguments, onlooker, screen, stop)
    return onlooker.snapshot


async def _show(
    family: ProcessGroup,
    name: str,
    arguments: Sequence[str],
    onlooker: "Onlooker",
    screen: SwarmMonitor,
    stop: Shutdown,
) -> None:
    def interrupt() -> str:
        stop.request()
        return "Leaving at once." if stop.now.is_set() else LEAVING

    screen.on_interrupt = interrupt
    command, *rest = arguments
    notice = asyncio.create_task(onlooker.say_leaving(stop))
    try:
        await run_front(
            family=family,
            name=name,
            command=own_command(command, "--json", *rest),
            screen=screen,
            see=onlooker.see,
            closed=onlooker.screen_closed,
            stop=stop,
        )
    finally:
        notice.cancel()
        onlooker.say_the_end()


class Onlooker:
    """Sees every event of the command: sums them up, feeds the screen, and prints them once the screen is closed."""

    def __init__(
        self, feed: Feed, history: SwarmSnapshot | None = None, invite: Invite = lambda snapshot: None
    ) -> None:
        self.snapshot = history or SwarmSnapshot()
        self._feed, self._invite = feed, invite
        self._is_printing = False
        self._end: tuple[float, Event] | None = None

    def see(self, line: bytes) -> None:
        if not self._is_printing:
            self._feed.put(line)
        stamped = decode_stamped(line.decode("utf-8", "replace"))
        if stamped is None:
            return
        self.snapshot = fold(self.snapshot, stamped.time, stamped.event)
        if self._is_printing:
            _print(stamped.time, stamped.event)
            if isinstance(stamped.event, RunStarted):
                self._print_invitation()
        elif isinstance(stamped.event, RunFinished | Left):
            self._end = stamped.time, stamped.event

    def screen_closed(self) -> None:
        self._is_printing = True
        print(QUIT_NOTE, flush=True)
        self._print_invitation()

    def _print_invitation(self) -> None:
        invitation = self._invite(self.snapshot)
        if invitation is not None:
            print("", *invitation.lines, "", sep="\n", flush=True)

    async def say_leaving(self, stop: Shutdown) -> None:
        """Answer Ctrl-C where the screen no longer does."""
        await stop.gently.wait()
        if self._is_printing:
            print(LEAVING, flush=True)

    def say_the_end(self) -> None:
        """What the screen took with it."""
        if self._end is not None:
            _print(*self._end)


def _print(when: float, event: Event) -> None:
    text = plain_line(event, when)
    if text is not None:
        print(text, flush=True)


async def show_source(source: Source, title: str, quit_note: str, stop: Shutdown) -> None:
    """Show a run that goes on elsewhere, or went on once, until the screen is closed. Raises what the source raised."""
    screen = SwarmMonitor(source, title, quit_note)
    stopped = asyncio.create_task(stop.gently.wait())
    stopped.add_done_callback(lambda task: None if task.cancelled() else screen.exit())
    try:
        await screen.take_terminal()
    finally:
        stopped.cancel()
    if screen.failure is not None:
        raise screen.failure
    if has_hung_up(sys.stdout.fileno()):
        stop.hang_up()  # nobody is there to read how it ended
        return
    print(*closing_lines(screen.view(), quit_note), sep="\n")


def closing_lines(view: View, quit_note: str) -> list[str]:
    """What a screen leaves behind that only looked on: ``quit_note`` while the run goes on, else how it ended."""
    if view.snapshot.is_over:
        return run_lines(view.snapshot)
    if view.outage is None or view.outage.seconds is None:
        return [quit_note]
    return [f"The monitor is closed. {view.outage.text} for {seconds_text(view.outage.seconds)}."]
