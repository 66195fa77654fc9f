"""Where a monitor's lines come from: a recording, a child process, or a coordinator elsewhere."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

from tsr_swarm.errors import ConfigError, RunError, UnreachableError
from tsr_swarm.telemetry.events import decode_stamped
from tsr_swarm.telemetry.log import read_lines

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]
Watch = Callable[[int], Awaitable[tuple[list[str], int]]]
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 15.0  # seconds between attempts to reach a coordinator again


class Source(Protocol):
    """Event lines, and the time by the clock that stamped them."""

    @property
    def trouble(self) -> str:
        """Why no news arrives, one sentence; empty when all is well."""
        ...

    def lines(self) -> AsyncIterator[str]:
        """Lines as they happen. May end; may raise SwarmError when waiting is useless."""
        ...

    def now(self) -> float:
        """Unix seconds by the clock of the run, so that a deadline counts down right whatever the local clock says."""
        ...


class RunClock:
    """The run's clock seen from here. The least delay ever seen between stamp and arrival is taken as the offset."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset: float | None = None

    def observe(self, line: str) -> None:
        """Learn from one arriving line; a line from the backlog only looks like a long delay."""
        stamped = decode_stamped(line)
        if stamped is not None:
            offset = self._clock() - stamped.time
            self._offset = offset if self._offset is None else min(self._offset, offset)

    def now(self) -> float:
        return self._clock() - (self._offset or 0.0)


class ReplaySource:
    """A recorded run at ``speed`` times its pace; ``math.inf`` shows its end at once. Raises RunError, ConfigError."""

    trouble = ""

    def __init__(self, path: Path, speed: float, clock: Clock, sleep: Sleep = asyncio.sleep) -> None:
        if not speed > 0:
            raise ConfigError(f"The speed {speed:g} is out of range; give a number above 0, such as 10.")
        self._path, self._speed, self._clock, self._sleep = path, speed, clock, sleep
        self._time: float | None = None
        self._next = 0.0
        self._shown_at = 0.0

    async def lines(self) -> AsyncIterator[str]:
        try:
            for line in read_lines(self._path):
                stamped = decode_stamped(line)
                if stamped is not None:
                    await self._wait_for(stamped.time)
                    yield line
        except OSError as error:
            raise RunError(f"{self._path} cannot be read ({error.strerror}); name a recorded run.") from error
        if self._time is None:
            raise RunError(f"{self._path} holds no events; name a file that a run has recorded.")

    async def _wait_for(self, time: float) -> None:
        before = time if self._time is None else self._time
        self._next = max(before, time)
        await self._sleep((self._next - before) / self._speed)
        self._time, self._shown_at = self._next, self._clock()

    def now(self) -> float:
        """Time of the newest event, running on at the replay's speed up to the next one."""
        if self._time is None:
            return 0.0
        passed = self._clock() - self._shown_at
        return min(self._next, self._time + passed * self._speed) if passed > 0 else self._time


class LineReader(Protocol):
    """As asyncio.StreamReader: a line with its newline, b"" at the end, ValueError for a line over its limit."""

    async def readline(self) -> bytes: ...


class PipeSource:
    """Lines that a child process prints. Open its pipe with ``limit=MAX_LINE``: a large swarm's round is a long one."""

    def __init__(self, reader: LineReader, clock: Clock) -> None:
        self._reader, self._clock = reader, RunClock(clock)
        self.trouble = ""

    async def lines(self) -> AsyncIterator[str]:
        while True:
            try:
                data = await self._reader.readline()
            except ValueError:  # the reader has thrown the long line away
                continue
            if not data:
                self.trouble = "the run's process has ended"
                return
            line = data.decode("utf-8", "replace")
            self._clock.observe(line)
            yield line

    def now(self) -> float:
        return self._clock.now()


class WatchSource:
    """Follows a coordinator through ``watch(after) -> (lines, newest number)``, and tries again when it is away."""

    def __init__(self, watch: Watch, clock: Clock, sleep: Sleep = asyncio.sleep) -> None:
        self._watch, self._clock, self._sleep = watch, RunClock(clock), sleep
        self.trouble = ""

    async def lines(self) -> AsyncIterator[str]:
        newest, pause = 0, FIRST_PAUSE
        while True:
            try:
                lines, newest = await self._watch(newest)
            except UnreachableError as error:
                self.trouble = f"{error} Trying again every {pause:g} s."
                await self._sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            self.trouble, pause = "", FIRST_PAUSE
            for line in lines:
                self._clock.observe(line)
                yield line

    def now(self) -> float:
        return self._clock.now()
