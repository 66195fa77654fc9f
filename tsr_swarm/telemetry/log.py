"""The numbered log of a run: what monitors follow, ``--json`` prints, and recordings hold."""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping

from tsr_swarm.telemetry import events as e
from tsr_swarm.telemetry.events import Event, Stamped, decode, decode_stamped, encode
from tsr_swarm.telemetry.text import reason_text
from tsr_swarm.telemetry.typed_json import MAX_COUNT

Numbered = tuple[int, str]
Sink = Callable[[str], None]  # takes lines as they happen; an OSError ends this sink, never the run
Watch = Callable[[int], Awaitable[tuple[list[str], int]]]  # (after) -> lines and the newest number, of a log elsewhere
MOST_EVENTS_A_SECOND = 1000  # on average, over a process's life
NEWEST = MAX_COUNT  # asks for no line, and the number of the newest one
KEEP = 8192  # lines of each kind of event: more than the logs of two nodes can be apart
MOST_PEERS = 1000  # whose bytes are kept, the newest: names come from other machines
NO_ROUNDS = e.EarlierRounds(
    round=0,
    rounds=0,
    wire_bytes={"sent": {}, "received": {}},
    per_peer={},
    raw_bytes={"sent": 0, "received": 0},
    dense_bytes=0,
)


class EventLog:
    """Numbers events from 1 and keeps what a late reader needs.

    It keeps the newest ``keep`` events, the newest ``keep_rounds`` closed rounds and the totals of those before, the
    start of the run, its first evaluation, its leader, the joining of every peer that is here, and each peer's newest
    progress. Append from one thread, the event loop's.
    """

    def __init__(
        self, clock: Callable[[], float], sinks: Iterable[Sink] = (), *, keep: int = 4000, keep_rounds: int = 2000
    ) -> None:
        self._clock = clock
        self._sinks = list(sinks)
        self._recent: deque[Numbered] = deque(maxlen=keep)
        self._rounds: deque[Numbered] = deque()
        self._keep_rounds = keep_rounds
        self._earlier = NO_ROUNDS
        self._earlier_number = 0  # of the newest event that its totals hold
        self._pinned: dict[str, Numbered] = {}
        self._progress: dict[str, Numbered] = {}
        self._seen = SeenLines()
        self._news = asyncio.Event()
        self.last = 0
        self.closed_round = 0  # the newest one reported as closed

    def append(self, event: Event) -> int:
        """Stamp, number, keep and pass on ``event``; returns its number."""
        line = encode(event, self._clock())
        self._seen.is_new(line, event)
        return self._add(event, line)

    def take(self, line: str) -> Stamped | None:
        """Append a line of another node's log as it is. None: it is here already, or says nothing about the run."""
        stamped = decode_stamped(line)
        if stamped is None or isinstance(stamped.event, e.OwnEvent) or not self._seen.is_new(line, stamped.event):
            return None
        if isinstance(stamped.event, e.EarlierRounds) and stamped.event.round <= self.closed_round:
            return None
        self._add(stamped.event, line)
        return stamped

    def has(self, line: str) -> bool:
        """Whether this line was appended before."""
        return self._seen.has(line, decode(line))

    def restore(self, recording: Iterable[Stamped]) -> None:
        """Take in an earlier recording of this run without writing it again; numbers go on after it.

        They begin above all that an earlier process can have used, which numbered events too that no recording holds:
        a reader that knows its newest number must not miss what comes after.
        """
        self.last = max(self.last, int(MOST_EVENTS_A_SECOND * self._clock()))
        for stamped in recording:
            line = encode(stamped.event, stamped.time)
            self._seen.is_new(line, stamped.event)
            self._keep(stamped.event, line)

    def since(self, number: int, limit: int = 1 << 20, with_progress: bool = True) -> tuple[list[str], int]:
        """Lines after event ``number``, oldest first, and the number of the newest one returned.

        At most ``limit`` characters at a time, but at least one line; without the peers' progress, which is most lines,
        if it is not wanted. A ``number`` from the future is from before a restart: then all lines are returned, but
        none for NEWEST.
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
            case e.PeerProgress():
                self._progress[event.peer] = entry
                return self.last
            case e.RunStarted():
                # A coordinator that starts again has no peers; they join again.
                self._pinned = {key: kept for key, kept in self._pinned.items() if not key.startswith("peer ")}
                self._progress.clear()
                self._pinned["run"] = entry
            case e.Evaluated(round=0):
                self._pinned["first evaluation"] = entry
            case e.LeaderChanged():
                self._pinned["leader"] = entry
            case e.PeerJoined():
                self._pinned[f"peer {event.peer}"] = entry
            case e.PeerLeft():
                self._pinned.pop(f"peer {event.peer}", None)
                self._progress.pop(event.peer, None)
            case e.RoundClosed():
                self.closed_round = max(self.closed_round, event.round)
                self._rounds.append(entry)
            case e.EarlierRounds():
                self.closed_round = max(self.closed_round, event.round)
                self._earlier, self._earlier_number = event, self.last
                return self.last
        self._recent.append(entry)
        self._sum_up()
        return self.last

    def _sum_up(self) -> None:
        """Keep only the totals of the oldest rounds, unless they are among the newest events too."""
        while len(self._rounds) > self._keep_rounds and self._rounds[0][0] < self._recent[0][0]:
            number, line = self._rounds.popleft()
            closed = decode(line)
            if isinstance(closed, e.RoundClosed) and number > self._earlier_number:  # else those totals hold it already
                self._earlier, self._earlier_number = _add_round(self._earlier, closed), number

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
                why = f"The event stream stopped writing ({reason_text(error)}); the run goes on without it."
                self.append(e.Warned(message=why))


class SeenLines:
    """Recognises lines by their text: several nodes report one run, and each line counts once.

    It remembers the newest ``keep`` lines of each kind of event, so that many of one kind push out none of another.
    """

    def __init__(self, keep: int = KEEP) -> None:
        self._keep = keep
        self._lines: dict[type[Event] | None, OrderedDict[int, None]] = {}

    def has(self, line: str, event: Event | None) -> bool:
        return hash(line) in self._lines.get(None if event is None else type(event), ())

    def is_new(self, line: str, event: Event | None) -> bool:
        """Remember ``line``, which encodes ``event``; returns whether it is new."""
        key, kind = hash(line), None if event is None else type(event)
        lines = self._lines.setdefault(kind, OrderedDict())
        is_new = key not in lines
        lines[key] = None
        lines.move_to_end(key)
        if len(lines) > self._keep:
            lines.popitem(last=False)
        if is_new and kind is e.RunStarted:
            self._lines.pop(e.PeerJoined, None)  # a run that starts again has no peers: their joining is new again
        return is_new


def _add_round(earlier: e.EarlierRounds, closed: e.RoundClosed) -> e.EarlierRounds:
    """The totals with ``closed`` added. A round that two leaders report is one round, but has the bytes of both."""
    is_new = closed.round > earlier.round
    raw, more = earlier.raw_bytes, closed.raw_bytes if is_new else NO_ROUNDS.raw_bytes
    return e.EarlierRounds(
        round=max(earlier.round, closed.round),
        rounds=earlier.rounds + is_new,
        wire_bytes=_both(earlier.wire_bytes, closed.wire_bytes),
        per_peer=_with_peers(earlier.per_peer, closed.per_peer),
        raw_bytes={"sent": raw["sent"] + more["sent"], "received": raw["received"] + more["received"]},
        dense_bytes=earlier.dense_bytes + (closed.dense_bytes if is_new else 0),
    )


def _both(first: e.Traffic, second: e.Traffic) -> e.Traffic:
    return {"sent": _sum(first["sent"], second["sent"]), "received": _sum(first["received"], second["received"])}


def _sum(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    return {kind: first.get(kind, 0) + second.get(kind, 0) for kind in (*first, *second)}


def _with_peers(earlier: Mapping[str, e.PeerTraffic], new: Mapping[str, e.PeerTraffic]) -> dict[str, e.PeerTraffic]:
    peers = dict(earlier)
    for name, traffic in new.items():
        known = peers.pop(name, e.PeerTraffic(sent={}, received={}))
        both = _both(known, traffic)
        overhead = known.get("overhead", 0) + traffic.get("overhead", 0)
        peers[name] = {"sent": both["sent"], "received": both["received"], "overhead": overhead}
    return dict(list(peers.items())[-MOST_PEERS:])
