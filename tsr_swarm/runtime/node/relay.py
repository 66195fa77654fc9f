"""The run's log at every node that can be dialled, so that a monitor can go on with another one when one dies."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from tsr_swarm.errors import SwarmError
from tsr_swarm.telemetry.events import Stamped
from tsr_swarm.telemetry.log import NEWEST, EventLog, Watch

PACE_SECONDS = 5.0  # between two calls: of all that peers say of their progress, the newest is enough
OVERLAP_LINES = 250  # of another leader's log, among which there is one that is here


class Relay:
    """Copies what whoever leads tells into this node's ``log``, and hands each event that was not there to ``see``."""

    def __init__(
        self, log: EventLog, see: Callable[[Stamped], None], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._log, self._see, self._sleep = log, see, sleep
        self._has_history = False  # all that a leader kept has been taken once
        self._goal = 0  # up to this number of its log

    async def follow(self, watch: Watch) -> None:
        """Relay from the leader that ``watch`` asks, until cancelled; with the next leader, call it anew.

        One that is away or refuses is asked again: what it says is for people, and nothing waits for it.
        """
        newest: int | None = None
        while True:
            with suppress(SwarmError):
                newest = await self._begin(watch) if newest is None else await self._go_on(watch, newest)
            await self._sleep(PACE_SECONDS)

    async def _begin(self, watch: Watch) -> int:
        """Find where its log, which has numbers of its own, goes on from this one. All of it can be megabytes."""
        _, self._goal = await watch(NEWEST)
        if not self._has_history:
            return await self._go_on(watch, 0)
        lines, newest = await watch(max(0, self._goal - OVERLAP_LINES))
        if lines and not any(self._log.has(line) for line in lines):
            return await self._go_on(watch, 0)
        self._take(lines)
        return newest

    async def _go_on(self, watch: Watch, after: int) -> int:
        lines, newest = await watch(after)
        self._take(lines)
        self._has_history = self._has_history or newest >= self._goal
        return newest

    def _take(self, lines: list[str]) -> None:
        """Append what is new, and show it."""
        for line in lines:
            stamped = self._log.take(line)
            if stamped is not None:
                self._see(stamped)
