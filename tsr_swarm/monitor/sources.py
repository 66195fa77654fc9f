"""Where a monitor's lines come from: a recording, a child process, or the nodes of a run elsewhere."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from tsr_swarm.errors import ConfigError, RunError, SwarmError, UnreachableError
from tsr_swarm.telemetry.events import Event, LeaderChanged, PeerJoined, PeerLeft, Stamped, decode_stamped
from tsr_swarm.telemetry.log import SeenLines, Watch
from tsr_swarm.telemetry.recording import read_lines
from tsr_swarm.telemetry.text import reason_text

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]
Dial = Callable[[str], Watch]  # how to watch the node at an address
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 5.0  # seconds between attempts to reach a node again
SILENT_SECONDS = 10.0  # without an answer: a node that lives answers within WAIT_SECONDS, or has to fetch the log first
WAIT_SECONDS = 4.0  # for which a node may hold its answer back until there is news
MOST_ADDRESSES = 64  # of peers, the newest: enough to find one that is alive


@dataclass(frozen=True, slots=True)
class Outage:
    """Why no events arrive: ``text``, a sentence without full stop, or ``short``; for ``seconds``, if that is known."""

    text: str
    short: str
    seconds: float | None = None


RECORD_ENDS = Outage("The record ends here, without the end of the run", "The record ends here")


class Source(Protocol):
    """Gives event lines, and the time by the clock that stamped them."""

    @property
    def outage(self) -> Outage | None:
        """Why no events arrive; None when all is well."""
        ...

    def lines(self) -> AsyncIterator[str]:
        """Lines as they happen. May end; may raise SwarmError when waiting is useless."""
        ...

    def now(self) -> float:
        """Unix seconds by the clock of the run, so that a deadline counts down right whatever the local clock says."""
        ...


class RunClock:
    """Gives the time of the run's clock. The least delay seen between a stamp and its arrival is the offset."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset: float | None = None

    def observe(self, stamped: Stamped | None) -> None:
        """Take in one arriving line; an old line only looks like a long delay."""
        if stamped is not None:
            offset = self._clock() - stamped.time
            is_first = self._offset is None or isinstance(stamped.event, LeaderChanged)  # another leader's clock
            self._offset = offset if self._offset is None or is_first else min(self._offset, offset)

    def now(self) -> float:
        return self._clock() - (self._offset or 0.0)


class ReplaySource:
    """Replays a recorded run at ``speed`` times its pace; ``math.inf`` shows its end at once."""

    def __init__(self, path: Path, speed: float, clock: Clock, sleep: Sleep = asyncio.sleep) -> None:
        """Raises ConfigError unless ``speed`` is above 0."""
        if not speed > 0:
            raise ConfigError(f"The speed {speed:g} is out of range; give a number above 0, such as 10.")
        self._path, self._speed, self._clock, self._sleep = path, speed, clock, sleep
        self._time: float | None = None
        self._next = 0.0
        self._shown_at = 0.0
        self.outage: Outage | None = None

    async def lines(self) -> AsyncIterator[str]:
        """Lines as they were recorded. Raises RunError for a file that cannot be read or holds no events."""
        try:
            for line in read_lines(self._path):
                stamped = decode_stamped(line)
                if stamped is not None:
                    await self._wait_for(stamped.time)
                    yield line
        except OSError as error:
            raise RunError(f"{self._path} cannot be read ({reason_text(error)}); name a recorded run.") from error
        if self._time is None:
            raise RunError(f"{self._path} holds no events; name a file that a run has recorded.")
        self.outage = RECORD_ENDS

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


class PipeSource:
    """Reads the lines that a child process prints. Open its pipe with ``limit=MAX_LINE``: some are long."""

    def __init__(self, reader: asyncio.StreamReader, clock: Clock) -> None:
        self._reader, self._clock = reader, RunClock(clock)
        self.outage: Outage | None = None

    async def lines(self) -> AsyncIterator[str]:
        while True:
            try:
                data = await self._reader.readline()
            except ValueError:  # the line was over the reader's limit, which has thrown it away
                continue
            if not data:
                self.outage = Outage("The run's process has ended", "The process has ended")
                return
            line = data.decode("utf-8", "replace")
            self._clock.observe(decode_stamped(line))
            yield line

    def now(self) -> float:
        return self._clock.now()


@dataclass(frozen=True, slots=True)
class KnownAddresses:
    """Where a run can be watched: at the one or more ``given`` addresses, and at ``joined``, by peer id.

    Those are the addresses of peers that have joined and not left.
    """

    given: tuple[str, ...]
    joined: Mapping[str, str] = field(default_factory=dict)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Each address once, the given ones first."""
        return tuple(dict.fromkeys((*self.given, *self.joined.values())))

    def after_event(self, event: Event) -> "KnownAddresses":
        """The addresses once a peer has joined or left."""
        match event:
            case PeerJoined() if event.address:
                others = {peer: address for peer, address in self.joined.items() if peer != event.peer}
                newest = [*others.items(), (event.peer, event.address)][-MOST_ADDRESSES:]
                return replace(self, joined=dict(newest))
            case PeerJoined() | PeerLeft() if event.peer in self.joined:
                return replace(self, joined={peer: at for peer, at in self.joined.items() if peer != event.peer})
        return self

    def next_after(self, address: str) -> str:
        """The address to ask when ``address`` does not answer: the next in turn, or the first if that one is gone."""
        addresses = self.addresses
        index = addresses.index(address) + 1 if address in addresses else 0
        return addresses[index % len(addresses)]


class WatchSource:
    """Follows a run at one of its nodes, and goes on with another when that one does not answer.

    A line that another node has sent already is left out. ``dial`` gives the watch of an address, which raises
    UnreachableError where no node answers, and RefusedError where another run, or another version of it, is found.
    """

    def __init__(
        self,
        dial: Dial,
        addresses: Sequence[str],
        clock: Clock,
        sleep: Sleep = asyncio.sleep,
        on_silence: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """``on_silence`` gets one sentence each time that no node answers any more."""
        self._dial, self._clock, self._sleep = dial, RunClock(clock), sleep
        self._local_clock, self._on_silence = clock, on_silence
        self._known = KnownAddresses(tuple(addresses))
        self._seen = SeenLines()
        self._address = self._known.given[0]
        self._answered_at: float | None = None  # by the local clock; before the first answer: when it was first asked
        self.is_caught_up = False  # with the newest line, as far as the last answer went
        self._silent: set[str] = set()  # addresses asked since the last answer

    @property
    def outage(self) -> Outage | None:
        """No node answers, or a call has been open for longer than any that is answered."""
        seconds = 0.0 if self._answered_at is None else self._local_clock() - self._answered_at
        if not self._silent and seconds < SILENT_SECONDS:
            return None
        asked = self._silent | {self._address}
        nodes = self._address if len(asked) == 1 else f"any of {len(asked)} nodes"
        return Outage(f"No answer from {nodes}", "No answer", max(0.0, seconds))

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
                if address in self._known.given and not isinstance(error, UnreachableError):
                    raise
                if not self._silent:
                    self._on_silence(str(error))
                tried.add(address)
                self._silent.add(address)
                following = self._known.next_after(address)
                if following in tried:
                    await self._sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                    tried.clear()
                if following != address:
                    self._address, newest = following, 0  # each node numbers its lines by itself
                continue
            self._answered_at, pause = self._local_clock(), FIRST_PAUSE
            tried.clear()
            self._silent.clear()
            new = [line for line in lines if self._take_in(line)]
            for count, line in enumerate(new, 1):
                self.is_caught_up = count == len(new)
                yield line

    def _take_in(self, line: str) -> bool:
        """Take in a line and say whether it is new."""
        stamped = decode_stamped(line)
        event = None if stamped is None else stamped.event
        if not self._seen.is_new(line, event):
            return False
        self._clock.observe(stamped)
        if event is not None:
            self._known = self._known.after_event(event)
        return True

    def now(self) -> float:
        return self._clock.now()
