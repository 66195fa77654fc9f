"""The numbered log of a run: what monitors follow, ``--json`` prints, and recordings hold."""

import asyncio
import contextlib
import logging
import os
import stat
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from tsr_swarm.telemetry.earlier import NONE, with_round
from tsr_swarm.telemetry.events import (
    MAX_COUNT,
    MAX_LINE,
    EarlierRounds,
    Evaluated,
    Event,
    LeaderChanged,
    OwnEvent,
    PeerJoined,
    PeerLeft,
    PeerProgress,
    RoundClosed,
    RunStarted,
    Stamped,
    Warned,
    decode,
    decode_stamped,
    encode,
)
from tsr_swarm.telemetry.seen import Seen
from tsr_swarm.telemetry.text import plural, reason_text
from tsr_swarm.telemetry.writer import BackgroundWriter

Numbered = tuple[int, str]
Watch = Callable[[int], Awaitable[tuple[list[str], int]]]  # (after) -> lines and the newest number, of a log elsewhere
RECORDING_LIMIT = 64 << 20  # bytes that wait for a slow disk
MOST_EVENTS_A_SECOND = 1000  # on average, over a process's life
NEWEST = MAX_COUNT  # asks for no line, and the number of the newest one


class Sink(Protocol):
    """Where lines go as they happen. An OSError ends this sink, never the run."""

    def __call__(self, line: str) -> None: ...


class EventLog:
    """Numbers events from 1 and keeps what somebody who arrives late needs.

    Kept: the newest ``keep`` events, the newest ``keep_rounds`` closed rounds and the totals of those before, the start
    of the run and its first evaluation, who leads, the joining of every peer that is here, and of each peer's progress
    only the newest.
    Append from one thread, the event loop's.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        sinks: Iterable[Sink] = (),
        *,
        keep: int = 4000,
        keep_rounds: int = 2000,
    ) -> None:
        self._clock = clock
        self._sinks = list(sinks)
        self._recent: deque[Numbered] = deque(maxlen=keep)
        self._rounds: deque[Numbered] = deque()
        self._keep_rounds = keep_rounds
        self._earlier = NONE
        self._earlier_number = 0  # of the newest event that its totals hold
        self._pinned: dict[str, Numbered] = {}
        self._progress: dict[str, Numbered] = {}
        self._seen = Seen()
        self._news = asyncio.Event()
        self.last = 0
        self.closed_round = 0  # the newest that was told as closed

    def append(self, event: Event) -> int:
        """Stamp, number, keep and pass on ``event``; returns its number."""
        line = encode(event, self._clock())
        self._seen.is_new(line, event)
        return self._add(event, line)

    def take(self, line: str) -> Stamped | None:
        """Append a line of another node's log as it is. None: it is here already, or it is no news of a run."""
        stamped = decode_stamped(line)
        if stamped is None or isinstance(stamped.event, OwnEvent) or not self._seen.is_new(line, stamped.event):
            return None
        if isinstance(stamped.event, EarlierRounds) and stamped.event.round <= self.closed_round:
            return None
        self._add(stamped.event, line)
        return stamped

    def has(self, line: str) -> bool:
        """Whether this line was appended before."""
        return self._seen.has(line, decode(line))

    def restore(self, recording: Iterable[Stamped]) -> None:
        """Take in an earlier recording of this run without writing it again; numbers go on after it.

        They begin above all that an earlier process can have given: it counted events too that are in no recording,
        and whoever has read there up to its newest number must not miss what comes after it.
        """
        self.last = max(self.last, int(MOST_EVENTS_A_SECOND * self._clock()))
        for stamped in recording:
            line = encode(stamped.event, stamped.time)
            self._seen.is_new(line, stamped.event)
            self._keep(stamped.event, line)

    def since(self, number: int, limit: int = 1 << 20, with_progress: bool = True) -> tuple[list[str], int]:
        """Lines after event ``number``, oldest first, and the number of the newest one returned.

        ``with_progress``: or without what peers said of their progress, most of all lines.

        At most ``limit`` characters at a time, but at least one line. A ``number`` from the future is from before a
        restart: everything is returned; but nothing for NEWEST.
        """
        if number == NEWEST:
            return [], self.last
        after = number if 0 <= number <= self.last else 0
        lines: list[str] = []
        size, newest = 0, after
        for index, line in self._after(after, with_progress):
            size += len(line)
            if lines and size > limit:
                return lines, newest
            lines.append(line)
            newest = index
        return lines, self.last

    async def wait(self, number: int, seconds: float) -> None:
        """Return as soon as there is an event after ``number``, or after ``seconds``."""
        if number == self.last:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._news.wait()

    def _add(self, event: Event, line: str) -> int:
        number = self._keep(event, line)
        self._write(line)
        self._news.set()
        self._news = asyncio.Event()
        return number

    def _keep(self, event: Event, line: str) -> int:
        self.last += 1
        entry = (self.last, line)
        match event:
            case PeerProgress():
                self._progress[event.peer] = entry
                return self.last
            case RunStarted():
                self._forget_peers()
                self._pinned["run"] = entry
            case Evaluated(round=0):
                self._pinned["first evaluation"] = entry
            case LeaderChanged():
                self._pinned["leader"] = entry
            case PeerJoined():
                self._pinned[f"peer {event.peer}"] = entry
            case PeerLeft():
                self._pinned.pop(f"peer {event.peer}", None)
                self._progress.pop(event.peer, None)
            case RoundClosed():
                self.closed_round = max(self.closed_round, event.round)
                self._rounds.append(entry)
            case EarlierRounds():
                self.closed_round = max(self.closed_round, event.round)
                self._earlier, self._earlier_number = event, self.last
                return self.last
        self._recent.append(entry)
        self._sum_up()
        return self.last

    def _sum_up(self) -> None:
        """Of the oldest rounds only the totals are kept, unless they are among the newest events too."""
        while len(self._rounds) > self._keep_rounds and self._rounds[0][0] < self._recent[0][0]:
            number, line = self._rounds.popleft()
            closed = decode(line)
            if isinstance(closed, RoundClosed) and number > self._earlier_number:  # else those totals hold it already
                self._earlier, self._earlier_number = with_round(self._earlier, closed), number

    def _forget_peers(self) -> None:
        """A coordinator that starts again has no peers; they join again."""
        self._pinned = {key: entry for key, entry in self._pinned.items() if not key.startswith("peer ")}
        self._progress.clear()

    def _after(self, number: int, with_progress: bool) -> list[Numbered]:
        """Kept events after ``number`` in order; cheap for a follower who is nearly up to date."""
        recent: list[Numbered] = []
        for entry in reversed(self._recent):
            if entry[0] <= number:
                break
            recent.append(entry)
        progress = self._progress.values() if with_progress else ()
        found = {entry for entry in progress if entry[0] > number} | set(recent)
        if len(recent) == len(self._recent):
            found |= {entry for entry in (*self._rounds, *self._pinned.values()) if entry[0] > number}
            if self._earlier_number > number:
                found.add((self._earlier_number, encode(self._earlier, self._clock())))
        return sorted(found)

    def _write(self, line: str) -> None:
        for sink in list(self._sinks):
            try:
                sink(line)
            except OSError as error:
                self._sinks.remove(sink)
                self.append(
                    Warned(
                        message=f"The event stream stopped writing ({reason_text(error)}); the run goes on without it."
                    )
                )


def recording(path: Path) -> contextlib.AbstractContextManager[Sink]:
    """Append each event to the file ``path``, made with its folder when missing. Raises OSError if it cannot be.

    A pipe or a disk that takes nothing for a long time holds nobody: then lines are missing, and an event says so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return _appending(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOCTTY, 0o666))  # a FIFO opens at once


@contextlib.contextmanager
def _appending(fd: int) -> Iterator[Sink]:
    writer = BackgroundWriter(fd, _gap, limit=RECORDING_LIMIT)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode) and (size := os.fstat(fd).st_size) and os.pread(fd, 1, size - 1) != b"\n":
            writer.put(b"\n")  # a line that a crash cut off must not swallow the next one
        yield lambda line: writer.put(f"{line}\n".encode())
    finally:
        lost = writer.close()
        if lost:
            logging.getLogger(__name__).warning(
                "The last %s of a recording could not be written.", plural(lost, "line")
            )
        else:
            os.close(fd)  # else its thread may still write there


def _gap(count: int) -> bytes:
    sentence = f"{plural(count, 'line')} of this recording could not be written in time."
    return f"{encode(Warned(message=sentence), time.time())}\n".encode()


def read_recording(path: Path) -> Iterator[Stamped]:
    """Events of a recorded run, in order; lines that are none are left out. Raises OSError."""
    for line in read_lines(path):
        stamped = decode_stamped(line)
        if stamped is not None:
            yield stamped


def read_lines(path: Path) -> Iterator[str]:
    """Lines of ``path``, however damaged the file is; none is longer than an event can be."""
    with path.open(encoding="utf-8", errors="replace") as stream:
        while line := stream.readline(MAX_LINE + 1):
            yield line
