"""Copy the run's log from its leader while it is read here: by own people, a monitor, or the next leader."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from tsr_swarm.errors import SwarmError
from tsr_swarm.process.tasks import Signal
from tsr_swarm.telemetry.events import Stamped
from tsr_swarm.telemetry.log import NEWEST, EventLog

READING_SECONDS = 30.0  # after a monitor's last call: it may be held for 20 s, and the next one comes at once
WAIT_SECONDS = 3600.0  # every wait ends after so long, and looks again
PACE_SECONDS = 5.0  # between two calls: of each peer's progress, only the newest is needed
OVERLAP = 250  # events of another leader's log, among which one is looked for that is here
WIDER = 4  # times as many, if there is none: most events are progress of many peers, which voters do not copy

# (after, whether with progress) -> lines and the number of the newest one, of a log elsewhere
Copy = Callable[[int, bool], Awaitable[tuple[list[str], int]]]


class LogSubscribers:
    """Whether anybody reads the log at this node. A voter does: it may have to continue the log as the next leader."""

    def __init__(self, has_people: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """has_people: somebody looks at this very process."""
        self.has_people, self._clock = has_people, clock
        self._is_voter = False
        self._monitor_until = float("-inf")
        self.changed = Signal()

    def set_voter(self, is_voter: bool) -> None:
        self._is_voter = is_voter
        self.changed.notify()

    def add_monitor(self) -> None:
        """Note that a monitor has called just now."""
        self._monitor_until = self._clock() + READING_SECONDS
        self.changed.notify()

    @property
    def has_monitor(self) -> bool:
        """Whether a monitor has called lately."""
        return self._clock() < self._monitor_until

    @property
    def are_people(self) -> bool:
        """Whether people read, who want other peers' progress too."""
        return self.has_people or self.has_monitor

    @property
    def are_any(self) -> bool:
        return self._is_voter or self.are_people

    async def wait(self) -> None:
        while not await self.changed.wait_for(lambda: self.are_any, WAIT_SECONDS):
            pass


async def copy_from_overlap(copy: Copy, log: EventLog, newest: int, with_progress: bool) -> tuple[list[str], int]:
    """Copy the end of another log, whose newest event is ``newest``, from a line on that ``log`` has; else all of it.

    Returns lines and the number of the newest one, as ``copy`` does. All lines before them are here.
    """
    span = OVERLAP
    while True:
        after = max(0, newest - span)
        lines, last = await copy(after, with_progress)
        if not after or any(log.has(line) for line in lines):
            return lines, last
        span *= WIDER


@dataclass(slots=True, eq=False)
class LogRelay:
    """Copies the leader's log into this node's ``log``, and calls ``see`` with each event that was not there."""

    log: EventLog
    see: Callable[[Stamped], None]
    subscribers: LogSubscribers
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _has_history: bool = False  # the whole log of a leader has been copied once
    _has_begun: bool = False
    _newest: int = 0  # up to this number the leader's log is here, without progress
    _complete: int = 0  # and with progress
    _goal: int = 0  # the newest number of its log when this node last had to catch up
    is_current: bool = False  # people who read here see what they would see at the leader

    async def follow(self, copy: Copy) -> None:
        """Copy from a leader until cancelled; call it anew for the next leader.

        A leader that is away or refuses is asked again: its log is for people, and nothing waits for it.
        """
        self._has_begun = self.is_current = False
        self._newest = self._complete = self._goal = 0
        while True:
            self.is_current = self.is_current and self.subscribers.are_people
            await self.subscribers.wait()
            has_more = False
            with suppress(SwarmError):
                has_more = await self._copy(copy, self.subscribers.are_people)
            if not has_more:
                await self.sleep(PACE_SECONDS)

    async def _copy(self, copy: Copy, with_progress: bool) -> bool:
        """Copy once. Returns whether there is more already."""
        if not self._has_begun or (with_progress and not self.is_current):
            _, self._goal = await copy(NEWEST, with_progress)
        after = self._complete if with_progress else self._newest
        if self._has_begun:
            lines, newest = await copy(after, with_progress)
            has_advanced = newest > after
            if newest < after:  # the leader was restarted, and sent everything
                self._newest = self._complete = 0
        else:  # find where the leader's log, which has other numbers, continues this one: all of it can be megabytes
            goal = self._goal if self._has_history else 0
            lines, newest = await copy_from_overlap(copy, self.log, goal, with_progress)
            has_advanced, self._has_begun = bool(lines), True
        self._newest = max(self._newest, newest)
        self._complete = newest if with_progress else self._complete
        for line in lines:
            stamped = self.log.take(line)
            if stamped is not None:
                self.see(stamped)
        self._has_history = self._has_history or self._newest >= self._goal
        is_behind = (self._complete if with_progress else self._newest) < self._goal
        if with_progress and not is_behind:
            self.is_current = True
            self.subscribers.changed.notify()
        return is_behind and has_advanced
