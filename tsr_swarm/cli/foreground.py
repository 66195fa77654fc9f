"""A command behind a screen: the command runs as a child process, so that nothing it prints can reach the screen.

Closing the screen leaves the command running; its end, when it failed or was asked to stop, closes the screen.
"""

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from tsr_swarm.process.shutdown import INTERRUPTED, Shutdown
from tsr_swarm.process.supervisor import Child, ChildError, ProcessGroup, child_log, failure_of, was_interrupted


class Screen(Protocol):
    """What is shown while the command runs: a Textual app."""

    def take_terminal(self) -> Awaitable[object]:
        """Show it until it is closed."""
        ...

    def exit(self) -> None:
        """Close it."""
        ...


class Feed:
    """Lines put in on one side and read on the other, as from a StreamReader; b"" is the end."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()

    def put(self, line: bytes) -> None:
        self._lines.put_nowait(line)

    async def readline(self) -> bytes:
        line = await self._lines.get()
        if not line:
            self.put(line)  # the end stays the end
        return line


async def run_front(
    *,
    group: ProcessGroup,
    name: str,
    command: Sequence[str],
    screen: Screen,
    see: Callable[[bytes], None],
    closed: Callable[[], None],
    stop: Shutdown,
) -> None:
    """Run ``command`` and show ``screen``; return when both are done.

    ``see`` gets every line that the command prints, and b"" at its end; ``closed`` is called when the screen has been
    closed and the command still runs. Raises ChildError, with the command's own sentence, when it failed.
    """
    with child_log() as log:
        child = await group.start(name, command, environment=os.environ, stdout=subprocess.PIPE, stderr=log)
        asks = asyncio.create_task(_pass_on(stop, child))
        try:
            async with asyncio.TaskGroup() as tasks:
                pump = tasks.create_task(_pump(child, see))
                show = tasks.create_task(_show(screen, pump, closed))
                closer = tasks.create_task(_close_when_over(screen, child, stop))
                show.add_done_callback(lambda _: closer.cancel())
        finally:
            asks.cancel()
        code = await child.wait()
        if was_interrupted(child, log):
            if not stop.graceful.is_set():
                raise ChildError(f"The {name} was interrupted.", INTERRUPTED)
        elif code != 0:
            raise failure_of(child, log)


async def _pump(child: Child, see: Callable[[bytes], None]) -> None:
    while line := await child.output.readline():
        see(line)
    see(b"")


async def _show(screen: Screen, pump: asyncio.Task[None], closed: Callable[[], None]) -> None:
    await screen.take_terminal()
    if not pump.done():
        closed()


async def _close_when_over(screen: Screen, child: Child, stop: Shutdown) -> None:
    """A run that finished by itself stays on screen until it has been read, or the terminal is closed."""
    if await child.wait() == 0:
        await stop.graceful.wait()
    screen.exit()


async def _pass_on(stop: Shutdown, child: Child) -> None:
    await stop.graceful.wait()
    child.interrupt()
    await stop.immediate.wait()
    child.terminate()
