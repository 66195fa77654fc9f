"""The screen over a running command, which runs as a child process, so that nothing it prints can reach the screen.

Closing the screen leaves the command running; its end, when it failed or was asked to stop, closes the screen.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tsr_swarm.cli.monitor import watching
from tsr_swarm.cli.output import Mode, print_aside, print_line
from tsr_swarm.cli.process import LEAVING, run_process
from tsr_swarm.cli.status import run_lines
from tsr_swarm.monitor.app import Invite, SwarmMonitor
from tsr_swarm.monitor.sources import PipeSource, Source
from tsr_swarm.monitor.view import View
from tsr_swarm.node.join_options import JoinOptions
from tsr_swarm.process.shutdown import INTERRUPTED, Shutdown, run_unless
from tsr_swarm.process.supervisor import (
    Child,
    ChildError,
    ProcessGroup,
    child_log,
    failure_of,
    own_command,
    was_interrupted,
)
from tsr_swarm.telemetry.events import MAX_LINE, Event, Left, RunFinished, RunStarted, decode_stamped
from tsr_swarm.telemetry.fold import fold
from tsr_swarm.telemetry.recording import read_history
from tsr_swarm.telemetry.snapshot import SwarmSnapshot
from tsr_swarm.telemetry.text import seconds_text
from tsr_swarm.telemetry.writer import has_hung_up

QUIT_NOTE = "The screen is closed; training goes on. Ctrl-C finishes the round and leaves, twice leaves at once."


def show_coordinator(arguments: Sequence[str], title: str, folder: Path | None, invite: Invite) -> NoReturn:
    """Run ``coordinate`` with these arguments behind a screen. ``folder``: of a run that goes on."""

    async def work(stop: Shutdown) -> None:
        async with ProcessGroup() as group:
            await show_stream(group, "coordinator", arguments, title, stop, folder, invite)

    run_process(Mode.SCREEN, work)


def show_peer(arguments: Sequence[str], options: JoinOptions) -> NoReturn:
    """Run ``join`` with these arguments behind a screen that shows the whole swarm, as one of its nodes reports it."""

    async def work(stop: Shutdown) -> None:
        coordinator, known = options.coordinator, [*arguments]
        if not coordinator:
            from tsr_swarm.node.find_run import look_up_address

            found = await run_unless(stop.graceful, look_up_address(options, print_aside))
            if found is None:
                return
            coordinator = found
            known += ["--coordinator", coordinator]
        async with watching(coordinator) as source, ProcessGroup() as group:
            await show_beside(group, "peer", known, source, coordinator, stop)

    run_process(Mode.SCREEN, work)


async def show_beside(
    group: ProcessGroup, name: str, arguments: Sequence[str], source: Source, title: str, stop: Shutdown
) -> None:
    """Run a peer's command behind a screen of the swarm's events from ``source`` and of the peer's own events."""
    output = CommandOutput()
    screen = SwarmMonitor(source, title, QUIT_NOTE, own=PipeSource(output.feed, time.time))
    await _show(group, name, arguments, output, screen, stop)


async def show_stream(
    group: ProcessGroup,
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
    history = SwarmSnapshot() if folder is None else read_history(folder)
    output = CommandOutput(history, invite)
    screen = SwarmMonitor(PipeSource(output.feed, time.time), title, QUIT_NOTE, history=history, invite=invite)
    await _show(group, name, arguments, output, screen, stop)
    return output.snapshot


class CommandOutput:
    """The events of a command behind a screen: sums them up, feeds the screen, and prints them once it is closed."""

    def __init__(self, history: SwarmSnapshot | None = None, invite: Invite = lambda snapshot: None) -> None:
        self.snapshot = history or SwarmSnapshot()
        self.feed, self._invite = asyncio.StreamReader(limit=2 * MAX_LINE), invite
        self._is_printing = False
        self._end = ""  # the line that tells of it, unless it was printed

    async def read(self, child: Child) -> None:
        """Take the lines that the command prints, to their end."""
        async for line in child.lines():
            if not self._is_printing:
                self.feed.feed_data(line.encode() + b"\n")
            stamped = decode_stamped(line)
            if stamped is not None:
                self.snapshot = fold(self.snapshot, stamped.time, stamped.event)
                self._print_or_keep(line, stamped.event)
        self.feed.feed_eof()

    def _print_or_keep(self, line: str, event: Event) -> None:
        if self._is_printing:
            print_line(Mode.PLAIN, line)
            if isinstance(event, RunStarted):
                self._print_invitation()
        elif isinstance(event, RunFinished | Left):
            self._end = line

    def screen_closed(self) -> None:
        """The screen has been closed and the command still runs."""
        self._is_printing = True
        print(QUIT_NOTE, flush=True)
        self._print_invitation()

    def _print_invitation(self) -> None:
        invitation = self._invite(self.snapshot)
        if invitation is not None:
            print("", *invitation.lines, "", sep="\n", flush=True)

    def say_leaving(self) -> None:
        """Answer Ctrl-C where the screen no longer does."""
        if self._is_printing:
            print(LEAVING, flush=True)

    def print_end(self) -> None:
        """Print the last event, which vanished with the screen."""
        print_line(Mode.PLAIN, self._end)


async def _show(
    group: ProcessGroup,
    name: str,
    arguments: Sequence[str],
    output: CommandOutput,
    screen: SwarmMonitor,
    stop: Shutdown,
) -> None:
    """Run a command, whose lines go to ``output``, and show ``screen``; return when both are done.

    Raises ChildError, with the command's own sentence, when it failed.
    """

    def interrupt() -> str:
        stop.request()
        return "Leaving at once." if stop.immediate.is_set() else LEAVING

    screen.on_interrupt = interrupt
    command, *rest = arguments
    line = own_command(command, "--json", *rest)
    with child_log() as log:
        child = await group.start(name, line, environment=os.environ, stdout=subprocess.PIPE, stderr=log)
        stopping = asyncio.create_task(_forward_stop(stop, child, output))
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(output.read(child))
                showing = tasks.create_task(_show_until_closed(screen, reading, output))
                closing = tasks.create_task(_close_when_over(screen, child, stop))
                showing.add_done_callback(lambda _: closing.cancel())
        finally:
            stopping.cancel()
            output.print_end()
        code = await child.wait()
        if was_interrupted(child, log):
            if not stop.graceful.is_set():
                raise ChildError(f"The {name} was interrupted.", INTERRUPTED)
        elif code != 0:
            raise failure_of(child, log)


async def _show_until_closed(screen: SwarmMonitor, reading: asyncio.Task[None], output: CommandOutput) -> None:
    await screen.take_terminal()
    if not reading.done():
        output.screen_closed()


async def _close_when_over(screen: SwarmMonitor, child: Child, stop: Shutdown) -> None:
    """A run that finished by itself stays on screen until it has been read, or the terminal is closed."""
    if await child.wait() == 0:
        await stop.graceful.wait()
    screen.exit()


async def _forward_stop(stop: Shutdown, child: Child, output: CommandOutput) -> None:
    await stop.graceful.wait()
    output.say_leaving()
    child.interrupt()
    await stop.immediate.wait()
    child.terminate()


async def show_source(source: Source, title: str, quit_note: str, stop: Shutdown) -> None:
    """Show a run from elsewhere, or a recorded one, until the screen is closed. Raises what the source raised."""
    screen = SwarmMonitor(source, title, quit_note)
    stopped = asyncio.create_task(stop.graceful.wait())
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
    """The lines printed once a screen over a run elsewhere is closed: ``quit_note``, or how the run ended."""
    if view.snapshot.is_over:
        return run_lines(view.snapshot)
    if view.outage is None or view.outage.seconds is None:
        return [quit_note]
    return [f"The monitor is closed. {view.outage.text} for {seconds_text(view.outage.seconds)}."]
