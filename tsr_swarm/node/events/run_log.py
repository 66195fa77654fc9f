"""The log of the run at one node: its own events while it leads, copied from the leader otherwise; and their totals."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

from tsr_swarm.errors import SwarmError
from tsr_swarm.node.address_book import ClientPool
from tsr_swarm.node.events.log_relay import Copy, LogRelay, LogSubscribers, copy_from_overlap
from tsr_swarm.telemetry.events import (
    EarlierRounds,
    Evaluated,
    Event,
    PeerJoined,
    PeerLeft,
    RoundClosed,
    RoundVoid,
    RunFinished,
    Stamped,
    decode_stamped,
)
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


class RunLog:
    """The log of the run at one node. ``see`` is called once with every event, whatever node it is of, but see ``ask``.

    Events of other leaders come here only while somebody reads them here: monitors, voters, or this process's people.
    Nothing comes after run_finished.
    """

    def __init__(self, log: EventLog, see: Callable[[Event], None], has_people: bool = False) -> None:
        """has_people: somebody looks at this very process to see the run."""
        self.log, self._see = log, see
        self.has_ended = False
        self.peers: dict[str, PeerJoined] = {}  # those that take part, by the events seen here
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

    def finished(self, reason: str) -> RunFinished:
        """The last event of the run, with the totals of all events here."""
        return RunFinished(
            rounds=self._totals.closed_round,
            first_loss=self._totals.first_loss,
            last_loss=self._totals.loss,
            wire_bytes=self._totals.wire_bytes,
            dense_bytes=self._totals.dense_bytes,
            digest=self._totals.digest,
            reason=reason,
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
            is_of_a_round = isinstance(event, RoundVoid | RoundClosed) and event.round > self.log.closed_round
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
            case PeerJoined():
                self.peers[event.peer] = event
            case PeerLeft(peer=peer):
                self.peers.pop(peer, None)
            case RunFinished():
                self.has_ended = True
        self._changed.notify()
        if is_shown:
            self._see(event)

    def _count(self, event: Event) -> None:
        if isinstance(event, Evaluated | EarlierRounds | RoundClosed):
            self._totals = fold(self._totals, 0.0, event)


def _copy_of(peer_id: str, pool: ClientPool) -> Copy:
    async def copy(after: int, with_progress: bool) -> tuple[list[str], int]:
        request = pb.WatchRequest(after=after, wait_ms=WATCH_MS, without_progress=not with_progress)
        reply = await (await pool.to(peer_id)).watch(request)
        return lines_from_proto(reply)

    return copy
