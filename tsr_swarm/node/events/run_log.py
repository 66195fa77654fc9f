"""The log of the run at one node: its own events while it leads, copied from the leader otherwise; and their totals."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from tsr_swarm.errors import SwarmError
from tsr_swarm.node.address_book import ClientPool
from tsr_swarm.process.tasks import Signal
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.events import Event, Stamped, decode_stamped
from tsr_swarm.telemetry.fold import fold
from tsr_swarm.telemetry.log import NEWEST, EventLog
from tsr_swarm.telemetry.snapshot import SwarmSnapshot
from tsr_swarm.wire.messages import lines_from_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

WATCH_MS = 2000
LAST_SECONDS = 8.0  # for the end of a run: its leader waits for reports of the last round
LAST_PACE_SECONDS = 0.05
COPY_SECONDS = 8.0  # how long a monitor waits for the log to come; its call may take two more
OTHERS_SECONDS = 8.0  # for the other voters' logs, as a new leader begins: a process that has just started is slow
LINGER_SECONDS = 1.0  # after the last event: others keep it too, and one call may be on its way
READING_SECONDS = 30.0  # after a monitor's last call: it may be held for 20 s, and the next one comes at once
WAIT_SECONDS = 3600.0  # every wait ends after so long, and looks again
PACE_SECONDS = 5.0  # between two calls: of each peer's progress, only the newest is needed
OVERLAP = 250  # events of another leader's log, among which one is looked for that is here
WIDER = 4  # times as many, if there is none: most events are progress of many peers, which voters do not copy

# (after, whether with progress) -> lines and the number of the newest one, of a log elsewhere
Copy = Callable[[int, bool], Awaitable[tuple[list[str], int]]]


class RunLog:
    """The log of the run at one node. ``see`` is called once with every event, whatever node it is of, but see ``ask``.

    Events of other leaders come here only while somebody reads them here: monitors, voters, or this process's people.
    Nothing comes after run_finished.
    """

    def __init__(self, log: EventLog, see: Callable[[Event], None], has_people: bool = False) -> None:
        """has_people: somebody looks at this very process to see the run."""
        self.log, self._see = log, see
        self.has_ended = False
        self.peers: dict[str, events.PeerJoined] = {}  # those that take part, by the events seen here
        self._totals = SwarmSnapshot()  # of evaluations and closed rounds alone
        self.subscribers = LogSubscribers(has_people)
        self._relay = LogRelay(log, self._relayed, self.subscribers, self._pause)
        self._changed = self.subscribers.changed
        self._is_last = False
        self._following: asyncio.Task[None] | None = None

    def restore(self, recording: Iterable[Stamped]) -> None:
        """Continue an earlier recording of this run: readers get its lines, and the totals count its rounds."""
        self.log.restore(self._counted(recording))

    def _counted(self, recording: Iterable[Stamped]) -> Iterator[Stamped]:
        for stamped in recording:
            self._count(stamped.event)
            yield stamped

    def emit(self, event: Event) -> None:
        if self.has_ended:
            return  # peers may still be leaving
        self.log.append(event)
        self._take_in(event)

    def follow(self, leader: str, pool: ClientPool) -> None:
        """Copy the log of ``leader`` from now on; "": of nobody."""
        if self._following is not None:
            self._following.cancel()
            self._following = None
        if leader:
            self._following = asyncio.create_task(self._relay.follow(_copy_of(leader, pool)))
        self._changed.notify()

    async def read(self) -> None:
        """Begin a monitor's call: return once the leader's whole log is here, or if that takes long."""
        self.subscribers.add_monitor()
        await self._changed.wait_for(lambda: self._following is None or self._relay.is_current, COPY_SECONDS)

    async def ask(self, others: Iterable[str], round: int, pool: ClientPool) -> None:
        """Copy events of rounds up to ``round`` from the logs of ``others``, as far as they answer soon.

        Other leaders have told them already: only people who look at this very process to see the run are shown them.
        """
        asked = [asyncio.create_task(self._ask(_copy_of(other, pool))) for other in others]
        try:
            async with asyncio.timeout(OTHERS_SECONDS):
                for answer in asyncio.as_completed(asked):
                    await answer
                    if self.log.closed_round >= round:
                        break  # no other answer is needed: a node may have died without closing its connection
        except TimeoutError:
            pass
        finally:
            for task in asked:
                task.cancel()

    def ends(self) -> None:
        """Expect the end of the run: the leader adds its last events in a moment, and leaves."""
        self._is_last = True
        self._changed.notify()

    async def wait_for_round(self, round: int) -> None:
        """Wait a while for the leader's events of ``round``, the run's last."""
        await self._changed.wait_for(lambda: self.has_ended or self.log.closed_round >= round, LAST_SECONDS)

    async def finish_for_monitors(self, reason: str) -> None:
        """Give monitors that read here the end of a run that another node led: its last event, or one of our own."""
        if self.subscribers.has_monitor:
            await self._changed.wait_for(lambda: self.has_ended, LAST_SECONDS)
            self.emit(self.finished(reason))
            await asyncio.sleep(LINGER_SECONDS)

    def stopped(self, reason: str) -> None:
        """Say that this node stops, and the run does not: only to people who look at this very process."""
        self.has_ended = True
        self._see(replace(self.finished(reason), is_stopped=True))

    def finished(self, reason: str) -> events.RunFinished:
        """The last event of the run, with the totals of all events here."""
        return events.RunFinished(
            rounds=self._totals.closed_round,
            first_loss=self._totals.first_loss,
            last_loss=self._totals.loss,
            wire_bytes=self._totals.wire_bytes,
            dense_bytes=self._totals.dense_bytes,
            digest=self._totals.digest,
            reason=reason,
            by_kind=self._totals.by_kind,
        )

    async def _ask(self, copy: Copy) -> None:
        with suppress(SwarmError):
            _, newest = await copy(NEWEST, False)
            lines, last = await copy_from_overlap(copy, self.log, newest, False)
            self._take_rounds(lines)
            while lines and last < newest:
                lines, last = await copy(last, False)
                self._take_rounds(lines)

    def _take_rounds(self, lines: Iterable[str]) -> None:
        for line in lines:
            stamped = decode_stamped(line)
            event = None if stamped is None else stamped.event
            is_of_a_round = (
                isinstance(event, events.RoundVoid | events.RoundClosed) and event.round > self.log.closed_round
            )
            if is_of_a_round and (taken := self.log.take(line)) is not None:
                self._relayed(taken, is_shown=self.subscribers.has_people)

    async def _pause(self, seconds: float) -> None:
        had_people = self.subscribers.are_people
        await self._changed.wait_for(lambda: self._is_last or (self.subscribers.are_people and not had_people), seconds)
        if self._is_last:
            await asyncio.sleep(LAST_PACE_SECONDS)

    def _relayed(self, stamped: Stamped, is_shown: bool = True) -> None:
        if not self.has_ended:
            self._take_in(stamped.event, is_shown)

    def _take_in(self, event: Event, is_shown: bool = True) -> None:
        self._count(event)
        match event:
            case events.PeerJoined():
                self.peers[event.peer] = event
            case events.PeerLeft(peer=peer):
                self.peers.pop(peer, None)
            case events.RunFinished():
                self.has_ended = True
        self._changed.notify()
        if is_shown:
            self._see(event)

    def _count(self, event: Event) -> None:
        if isinstance(event, events.Evaluated | events.EarlierRounds | events.RoundClosed):
            self._totals = fold(self._totals, 0.0, event)


def _copy_of(peer_id: str, pool: ClientPool) -> Copy:
    async def copy(after: int, with_progress: bool) -> tuple[list[str], int]:
        request = pb.WatchRequest(after=after, wait_ms=WATCH_MS, without_progress=not with_progress)
        reply = await (await pool.to(peer_id)).watch(request)
        return lines_from_proto(reply)

    return copy


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
