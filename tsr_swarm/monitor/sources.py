"""Where a monitor's lines come from: a recording, a child process, or the nodes of a run elsewhere."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

from tsr_swarm.errors import ConfigError, RunError, SwarmError, UnreachableError
from tsr_swarm.monitor.places import Places
from tsr_swarm.monitor.trouble import Trouble
from tsr_swarm.telemetry.events import LeaderChanged, Stamped, decode_stamped
from tsr_swarm.telemetry.log import Watch, read_lines
from tsr_swarm.telemetry.seen import Seen

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]
Dial = Callable[[str], Watch]  # how to watch the node at an address
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 5.0  # seconds between attempts to reach a node again
SILENT_SECONDS = 10.0  # without an answer: a node that lives answers within WAIT_SECONDS, or has to fetch the log first
WAIT_SECONDS = 4.0  # for which a node may hold its answer back until there is news
RECORD_ENDS = Trouble("The record ends here, without the end of the run", "The record ends here")


class Source(Protocol):
    """Event lines, and the time by the clock that stamped them."""

    @property
    def trouble(self) -> Trouble | None:
        """Why no news arrives; None when all is well."""
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

    def observe(self, stamped: Stamped | None) -> None:
        """Learn from one arriving line; a line from the backlog only looks like a long delay."""
        if stamped is not None:
            offset = self._clock() - stamped.time
            is_first = self._offset is None or isinstance(stamped.event, LeaderChanged)  # another leader's clock
            self._offset = offset if self._offset is None or is_first else min(self._offset, offset)

    def now(self) -> float:
        return self._clock() - (self._offset or 0.0)


class ReplaySource:
    """A recorded run at ``speed`` times its pace; ``math.inf`` shows its end at once. Raises RunError, ConfigError."""

    def __init__(self, path: Path, speed: float, clock: Clock, sleep: Sleep = asyncio.sleep) -> None:
        if not speed > 0:
            raise ConfigError(f"The speed {speed:g} is out of range; give a number above 0, such as 10.")
        self._path, self._speed, self._clock, self._sleep = path, speed, clock, sleep
        self._time: float | None = None
        self._next = 0.0
        self._shown_at = 0.0
        self.trouble: Trouble | None = None

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
        self.trouble = RECORD_ENDS

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
        self.trouble: Trouble | None = None

    async def lines(self) -> AsyncIterator[str]:
        while True:
            try:
                data = await self._reader.readline()
            except ValueError:  # the reader has thrown the long line away
                continue
            if not data:
                self.trouble = Trouble("The run's process has ended", "The process has ended")
                return
            line = data.decode("utf-8", "replace")
            self._clock.observe(decode_stamped(line))
            yield line

    def now(self) -> float:
        return self._clock.now()


class WatchSource:
    """Follows a run at one of its nodes, and goes on with another when that is away.

    A line that another node has told already is left out. ``dial`` gives the watch of an address; it raises
    UnreachableError where nobody answers, and RefusedError where another run, or another version of it, is found.
    """

    def __init__(
        self,
        dial: Dial,
        addresses: Sequence[str],
        clock: Clock,
        sleep: Sleep = asyncio.sleep,
        on_silence: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """``on_silence`` gets one sentence each time that nobody answers any more."""
        self._dial, self._clock, self._sleep = dial, RunClock(clock), sleep
        self._local_clock, self._on_silence = clock, on_silence
        self._places = Places(tuple(addresses))
        self._seen = Seen()
        self._address = self._places.given[0]
        self._answered_at: float | None = None  # by the local clock; before the first answer: when it was first asked
        self.is_caught_up = False  # with the newest line, as far as the last answer went
        self._silent: set[str] = set()  # who was asked since, and did not answer

    @property
    def trouble(self) -> Trouble | None:
        """Nobody answers; or a call is open for longer than one that has an answer."""
        seconds = 0.0 if self._answered_at is None else self._local_clock() - self._answered_at
        if not self._silent and seconds < SILENT_SECONDS:
            return None
        asked = self._silent | {self._address}
        whom = self._address if len(asked) == 1 else f"any of {len(asked)} nodes"
        return Trouble(f"No answer from {whom}", "No answer", max(0.0, seconds))

    async def lines(self) -> AsyncIterator[str]:
        """Lines as they happen. Raises SwarmError when a node whose address was given refuses to be watched."""
        newest, pause = 0, FIRST_PAUSE
        tried: set[str] = set()
        self._answered_at = self._local_clock()
        while True:
            address = self._address
            try:
                lines, newest = await self._dial(address)(newest)
            except SwarmError as error:
                if address in self._places.given and not isinstance(error, UnreachableError):
                    raise
                if not self._silent:
                    self._on_silence(str(error))
                tried.add(address)
                self._silent.add(address)
                following = self._places.after(address)
                if following in tried:
                    await self._sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                    tried.clear()
                if following != address:
                    self._address, newest = following, 0  # each node numbers its lines itself
                continue
            self._answered_at, pause = self._local_clock(), FIRST_PAUSE
            tried.clear()
            self._silent.clear()
            new = [line for line in lines if self._take_in(line)]
            for left, line in zip(reversed(range(len(new))), new, strict=True):
                self.is_caught_up = not left
                yield line

    def _take_in(self, line: str) -> bool:
        """Learn from a line; whether it is new."""
        stamped = decode_stamped(line)
        event = None if stamped is None else stamped.event
        if not self._seen.is_new(line, event):
            return False
        self._clock.observe(stamped)
        if event is not None:
            self._places = self._places.hear(event)
        return True

    def now(self) -> float:
        return self._clock.now()
