"""The run's log at a node that does not lead, while it is wanted there: a leader, or a monitor, can go on with it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from tsr_swarm.errors import SwarmError
from tsr_swarm.node.events.readers import LogSubscribers
from tsr_swarm.telemetry.events import Stamped
from tsr_swarm.telemetry.log import NEWEST, EventLog

PACE_SECONDS = 5.0  # between two calls: of all that peers say of their progress, the newest is enough
OVERLAP = 250  # events of another leader's log, among which one is looked for that is here
WIDER = 4  # times as many, if there is none: of what many peers tell, most is progress, which voters do not copy

# (after, whether with progress) -> lines and the newest number, of a log elsewhere
Copy = Callable[[int, bool], Awaitable[tuple[list[str], int]]]


async def where_it_goes_on(copy: Copy, log: EventLog, newest: int, with_progress: bool) -> tuple[list[str], int]:
    """The end of another log, whose newest event is ``newest``, from before a line that ``log`` has; else all of it.

    Returns lines and the number of the newest one, as ``copy`` does. What is here is all that was told before it.
    """
    span = OVERLAP
    while True:
        after = max(0, newest - span)
        lines, last = await copy(after, with_progress)
        if not after or any(log.has(line) for line in lines):
            return lines, last
        span *= WIDER


class LogRelay:
    """Copies what whoever leads tells into this node's ``log``, and hands each event that was not there to ``see``."""

    def __init__(
        self,
        log: EventLog,
        see: Callable[[Stamped], None],
        readers: LogSubscribers,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._log, self._see, self._readers, self._sleep = log, see, readers, sleep
        self._has_history = False  # all that a leader kept has been taken once
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._has_begun = False
        self._newest = self._complete = 0  # up to these numbers of its log all is here, without and with progress
        self._goal = 0  # the newest number of its log as this node last had to catch up
        self.is_current = False  # people who read here see what they would see at the leader

    async def follow(self, copy: Copy) -> None:
        """Relay from the leader that ``copy`` asks, until cancelled; with the next leader, call it anew.

        One that is away or refuses is asked again: what it says is for people, and nothing waits for it.
        """
        self._begin_anew()
        while True:
            self.is_current = self.is_current and self._readers.are_people
            await self._readers.come()
            has_more = False
            with suppress(SwarmError):
                has_more = await self._copy(copy, self._readers.are_people)
            if not has_more:
                await self._sleep(PACE_SECONDS)

    async def _copy(self, copy: Copy, is_for_people: bool) -> bool:
        """Whether more is there already."""
        if not self._has_begun or (is_for_people and not self.is_current):
            _, self._goal = await copy(NEWEST, is_for_people)
        if self._has_begun:
            has_advanced = await self._go_on(copy, self._complete if is_for_people else self._newest, is_for_people)
        else:
            has_advanced = await self._begin(copy, is_for_people)
        self._has_history = self._has_history or self._newest >= self._goal
        is_behind = (self._complete if is_for_people else self._newest) < self._goal
        if is_for_people and not is_behind:
            self.is_current = True
            self._readers.changed.notify()
        return is_behind and has_advanced

    async def _begin(self, copy: Copy, is_for_people: bool) -> bool:
        """Find where its log, which has numbers of its own, goes on from this one. All of it can be megabytes."""
        goal = self._goal if self._has_history else 0
        lines, newest = await where_it_goes_on(copy, self._log, goal, is_for_people)
        self._has_begun = True
        self._take(lines, newest, is_for_people)
        return bool(lines)

    async def _go_on(self, copy: Copy, after: int, is_for_people: bool) -> bool:
        lines, newest = await copy(after, is_for_people)
        if newest < after:  # it was started anew, and told everything
            self._newest = self._complete = 0
        self._take(lines, newest, is_for_people)
        return newest > after

    def _take(self, lines: list[str], newest: int, is_for_people: bool) -> None:
        """Append what is new, and show it."""
        self._newest = max(self._newest, newest)
        self._complete = newest if is_for_people else self._complete
        for line in lines:
            stamped = self._log.take(line)
            if stamped is not None:
                self._see(stamped)
