"""The run's events at one node: told by itself while it leads, relayed from whoever leads else; and their totals."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

from tsr_swarm.errors import SwarmError
from tsr_swarm.runtime.node.book import Lines
from tsr_swarm.runtime.node.readers import Readers
from tsr_swarm.runtime.node.relay import Copy, Relay, where_it_goes_on
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
    Traffic,
    decode_stamped,
)
from tsr_swarm.telemetry.log import NEWEST, EventLog
from tsr_swarm.wire.lines import lines_from_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

WATCH_MS = 2000
LAST_SECONDS = 8.0  # for the end of a run: its leader waits for reports of the last round
LAST_PACE_SECONDS = 0.05
COPY_SECONDS = 8.0  # how long a monitor waits for the log to come; its call may take two more
OTHERS_SECONDS = 8.0  # for what other voters know, as a new leader begins: a process that has just started is slow
LINGER_SECONDS = 1.0  # after the last event: others keep it too, and one call may be on its way


class RunLog:
    """``see`` hears every event once that comes here, whoever told it; of what ``ask`` learns, see there. Nothing comes
    after run_finished.

    What others tell comes here while somebody reads it: monitors, voters, and this process's own people.
    """

    def __init__(self, log: EventLog, see: Callable[[Event], None], has_people: bool = False) -> None:
        """``has_people``: they look at this process to see the run."""
        self.log, self._see = log, see
        self.has_ended = False
        self._first_loss: float | None = None
        self._last_loss: float | None = None
        self._wire_bytes = self._dense_bytes = self._round = 0
        self._digest = ""
        self.peers: dict[str, PeerJoined] = {}  # who takes part, as far as was told
        self._readers = Readers(has_people)
        self._relay = Relay(log, self._relayed, self._readers, self._pause)
        self._changed = self._readers.changed
        self._is_last = False
        self._following: asyncio.Task[None] | None = None

    def restore(self, recording: Iterable[Stamped]) -> None:
        """Go on after an earlier recording of this run: readers get its lines, and the totals count its rounds."""
        self.log.restore(self._counted(recording))

    def _counted(self, recording: Iterable[Stamped]) -> Iterator[Stamped]:
        for stamped in recording:
            self._count(stamped.event)
            yield stamped

    def emit(self, event: Event) -> None:
        """This node tells it."""
        if self.has_ended:
            return  # peers may still be leaving
        self.log.append(event)
        self._take_in(event)

    def follow(self, leader: str, lines: Lines) -> None:
        """Relay from ``leader`` from now on; "": from nobody."""
        if self._following is not None:
            self._following.cancel()
            self._following = None
        if leader:
            self._following = asyncio.create_task(self._relay.follow(copy_of(leader, lines)))
        self._changed.notify()

    def votes(self, votes: bool) -> None:
        """Whether this node is a voter, and may have to go on with what the leader tells."""
        self._readers.votes(votes)

    async def read(self) -> None:
        """A monitor reads here: return once all is here that the leader has told, or if that takes long."""
        self._readers.called()
        await self._changed.wait_for(lambda: self._following is None or self._relay.is_current, COPY_SECONDS)

    @property
    def is_watched(self) -> bool:
        """Whether a monitor has read here just now."""
        return self._readers.are_monitors

    async def ask(self, others: Iterable[str], round: int, lines: Lines) -> None:
        """Take in which rounds up to ``round`` others know to be told, as far as they answer soon.

        They are no news of this node's: only people who look at this very process to see the run are shown them.
        """
        asked = [asyncio.create_task(self._ask(copy_of(other, lines))) for other in others]
        try:
            async with asyncio.timeout(OTHERS_SECONDS):
                for answer in asyncio.as_completed(asked):
                    await answer
                    if self.log.closed_round >= round:
                        break  # nobody else has to answer: one may be gone without its line being closed
        except TimeoutError:
            pass
        finally:
            for task in asked:
                task.cancel()

    def ends(self) -> None:
        """The run is over: whoever leads tells the rest in a moment, and goes."""
        self._is_last = True
        self._changed.notify()

    async def last_words(self, round: int) -> None:
        """Take in what the leader tells of the rounds up to ``round``, the run's last, if it does so soon."""
        await self._changed.wait_for(lambda: self.has_ended or self.log.closed_round >= round, LAST_SECONDS)

    async def pass_on_the_end(self, reason: str) -> None:
        """The run is over, and another node led it: monitors that read here hear its leader's last word, or ours."""
        if self.is_watched:
            await self._changed.wait_for(lambda: self.has_ended, LAST_SECONDS)
            self.emit(self.finished(reason))
            await asyncio.sleep(LINGER_SECONDS)

    def stopped(self, reason: str) -> None:
        """This node goes, and the run is not over: only who looks at this very process hears that it ends here."""
        self.has_ended = True
        self._see(replace(self.finished(reason), is_stopped=True))

    def finished(self, reason: str) -> RunFinished:
        """The end, with the totals of what was told here."""
        return RunFinished(
            rounds=self._round,
            first_loss=self._first_loss,
            last_loss=self._last_loss,
            wire_bytes=self._wire_bytes,
            dense_bytes=self._dense_bytes,
            digest=self._digest,
            reason=reason,
        )

    async def _ask(self, copy: Copy) -> None:
        with suppress(SwarmError):
            _, newest = await copy(NEWEST, False)
            told, last = await where_it_goes_on(copy, self.log, newest, False)
            self._take_rounds(told)
            while told and last < newest:
                told, last = await copy(last, False)
                self._take_rounds(told)

    def _take_rounds(self, lines: Iterable[str]) -> None:
        for line in lines:
            stamped = decode_stamped(line)
            event = None if stamped is None else stamped.event
            is_of_a_round = isinstance(event, RoundVoid | RoundClosed) and event.round > self.log.closed_round
            if is_of_a_round and (taken := self.log.take(line)) is not None:
                self._relayed(taken, is_shown=self._readers.has_people)

    async def _pause(self, seconds: float) -> None:
        had_people = self._readers.are_people
        await self._changed.wait_for(lambda: self._is_last or (self._readers.are_people and not had_people), seconds)
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
        """Add to the totals, as ``fold`` does for a screen."""
        match event:
            case Evaluated(loss=loss):
                self._last_loss = loss
                if self._first_loss is None:
                    self._first_loss = loss
            case EarlierRounds() if event.round > self._round:
                self._round, self._dense_bytes = event.round, event.dense_bytes
                self._wire_bytes = _both_ways(event.wire_bytes)
            case RoundClosed():
                self._wire_bytes += _both_ways(event.wire_bytes)
                if event.round > self._round:  # else two leaders tell of it, each what it was reported
                    self._dense_bytes += event.dense_bytes
                    self._round, self._digest = event.round, event.digest


def _both_ways(traffic: Traffic) -> int:
    return sum(traffic["sent"].values()) + sum(traffic["received"].values())


def copy_of(peer_id: str, lines: Lines) -> Copy:
    """The log of another node."""

    async def copy(after: int, with_progress: bool) -> tuple[list[str], int]:
        request = pb.WatchRequest(after=after, wait_ms=WATCH_MS, without_progress=not with_progress)
        reply = await (await lines.to(peer_id)).watch(request)
        return lines_from_proto(reply)

    return copy
