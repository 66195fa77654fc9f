"""The run's log at one node, and those of others over loopback: what a monitor waits for, what a new leader copies."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.node_context import serving
from tests.swarm_rig import Swarm, tiny_config
from tests.telemetry.examples import CLOSED
from tsr_swarm.errors import PeerError, RefusedError, UnreachableError
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.events import run_log
from tsr_swarm.node.events.run_log import READING_SECONDS, Copy, LogRelay, LogSubscribers, RunLog
from tsr_swarm.telemetry import events as ev
from tsr_swarm.telemetry.byte_counter import ByteCounter
from tsr_swarm.telemetry.log import NEWEST, EventLog
from tsr_swarm.transport.base import Caller
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.wire.messages import lines_from_proto, lines_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

ME, DEAD = "0" * 32, "d" * 32
TICKS = count()
TRAFFIC: ev.Traffic = {"sent": {"core": 3}, "received": {"core": 4}}


def closed(round: int) -> ev.RoundClosed:
    nothing: ev.Traffic = {"sent": {}, "received": {}}
    return replace(CLOSED, round=round, loss=None, wire_bytes=nothing, dense_bytes=0, digest=f"{round:064x}")


def log_of(*events: ev.Event) -> EventLog:
    """A log whose clock ticks with every event, so that no two lines are equal."""
    log = EventLog(lambda: float(next(TICKS)))
    for event in events:
        log.append(event)
    return log


class Other:
    def __init__(self, *events: ev.Event) -> None:
        self.log, self.asked = log_of(*events), list[pb.WatchRequest]()

    async def watch(self, request: pb.WatchRequest, caller: Caller) -> pb.WatchReply:
        self.asked.append(request)
        lines, last = self.log.since(request.after, with_progress=not request.without_progress)
        return lines_to_proto(lines, last)


@asynccontextmanager
async def clients_to(others: Sequence[Other]) -> AsyncIterator[tuple[ClientPool, list[str]]]:
    """Clients, and the peer_ids of ``others``; nobody answers at DEAD."""
    async with AsyncExitStack() as stack:
        book, ids = AddressBook(ME), [f"{number:032x}" for number in range(1, len(others) + 1)]
        book.update(DEAD, "127.0.0.1:1")
        for peer_id, other in zip(ids, others, strict=True):
            book.update(peer_id, await stack.enter_async_context(serving(other)))
        yield await stack.enter_async_context(ClientPool(book)), ids


def run_log_of(*events: ev.Event) -> RunLog:
    log = RunLog(EventLog(lambda: 2.0), lambda event: None)
    for event in events:
        log.emit(event)
    return log


def events_of(log: EventLog) -> list[ev.Event | None]:
    return [ev.decode(line) for line in log.since(0)[0]]


@pytest.mark.parametrize(("has_people", "shown"), [(True, [3, 4, 5]), (False, [3])])
async def test_a_new_leader_copies_the_events_of_closed_rounds_from_others_and_nothing_else(
    has_people: bool, shown: list[int]
) -> None:
    """A process that does not show the run to people of its own does not repeat what other leaders told."""
    void = ev.RoundVoid(round=5, reason="nobody")
    changed = ev.LeaderChanged(peer=ME, name="x", term=1, voters=3, is_safe=True)
    one = Other(closed(2), closed(3), changed, closed(4), ev.Warned(message="hot"), void, closed(5))
    other = Other(closed(4))
    seen: list[ev.Event] = []
    mine = RunLog(EventLog(lambda: 2.0), seen.append, has_people)
    mine.emit(closed(3))
    async with clients_to([one, other]) as (pool, ids):
        await mine.ask([DEAD, *ids, "e" * 32], 9, pool)
    assert mine.log.closed_round == 5
    assert void in events_of(mine.log)
    assert [event.round for event in seen if isinstance(event, ev.RoundClosed)] == shown
    assert len(events_of(mine.log)) == 4
    assert len(seen) == (4 if has_people else 1)
    assert mine.finished("").rounds == 5, "the totals count them"


async def test_what_others_tell_after_the_end_is_not_shown() -> None:
    seen: list[ev.Event] = []
    mine = RunLog(EventLog(lambda: 2.0), seen.append, has_people=True)
    mine.stopped("it was asked to stop")
    async with clients_to([Other(closed(1))]) as (pool, ids):
        await mine.ask(ids, 9, pool)
    assert [type(event) for event in seen] == [ev.RunFinished]


async def test_rounds_that_only_progress_follows_are_copied_too() -> None:
    other = Other(closed(1), closed(2), *[progress(ME, 1)] * 300)
    mine = run_log_of(closed(1))
    async with clients_to([other]) as (pool, ids):
        await mine.ask(ids, 9, pool)
    assert mine.log.closed_round == 2


async def test_a_log_that_comes_in_parts_is_copied_to_its_end() -> None:
    other = Other(*(closed(round) for round in range(1, 8)))
    since = other.log.since
    other.log.since = lambda number, limit=0, with_progress=True: since(number, 1, with_progress)  # type: ignore[method-assign]
    mine = run_log_of()
    async with clients_to([other]) as (pool, ids):
        await mine.ask(ids, 9, pool)
    assert mine.log.closed_round == 7


class Silent(Other):
    async def watch(self, request: pb.WatchRequest, caller: Caller) -> pb.WatchReply:
        return await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("round", [7, 9])
async def test_a_silent_node_is_waited_for_briefly_and_not_once_the_newest_round_is_here(
    monkeypatch: pytest.MonkeyPatch, round: int
) -> None:
    monkeypatch.setattr(run_log, "OTHERS_SECONDS", 3600.0 if round == 7 else 0.2)
    mine = run_log_of()
    async with clients_to([Silent(), Other(closed(6), closed(7))]) as (pool, ids):
        await mine.ask(ids, round, pool)
    assert mine.log.closed_round == 7


async def test_a_monitor_waits_until_the_log_has_come_and_a_node_that_nobody_reads_asks_for_nothing() -> None:
    leader = Other(closed(1), progress(ME, 1), ev.Warned(message="hot"))
    await run_log_of().read()  # no leader is known: there is nothing to wait for
    mine = run_log_of()
    async with clients_to([leader]) as (pool, (peer_id,)):
        mine.follow(peer_id, pool)
        await asyncio.sleep(0)
        assert leader.asked == []
        await mine.read()
        assert events_of(mine.log) == events_of(leader.log)
        assert not any(request.without_progress for request in leader.asked)
        mine.follow("", pool)
        await mine.read()


async def test_a_leader_that_is_away_does_not_keep_a_monitor_waiting_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "COPY_SECONDS", 0.05)
    mine = run_log_of()
    async with clients_to([]) as (pool, _):
        mine.follow(DEAD, pool)
        await mine.read()
        mine.follow("", pool)


async def test_a_monitor_at_a_node_that_neither_leads_nor_votes_sees_the_whole_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_log, "PACE_SECONDS", 0.2)
    config = tiny_config(tmp_path, run={"rounds": 6, "min_peers": 6}, round={"floor_seconds": 30.0, "shards": 3})
    watching, before = list[asyncio.Task[list[str]]](), list[int]()

    async def watch(address: str) -> list[str]:
        """As a monitor does, from round 3 on."""
        seen: list[str] = []
        async with SwarmClient(address, ByteCounter()) as client:
            lines, _ = lines_from_proto(await client.watch(pb.WatchRequest(without_progress=True)))
            before.append(len(lines))
            newest = 0
            with suppress(UnreachableError):  # the run is over, and the node has gone
                while True:
                    reply = await client.watch(pb.WatchRequest(after=newest, wait_ms=15_000 if seen else 0))
                    lines, newest = lines_from_proto(reply)
                    assert lines or seen, "all that was told before is here at once"
                    seen += lines
        return seen

    def on_event(swarm: Swarm, event: ev.Event) -> None:
        if isinstance(event, ev.RoundClosed) and event.round == 3:
            voters = swarm.of(ev.LeaderChanged)[-1].voter_ids.split(",")
            here = {told.peer: told.address for told in swarm.of(ev.PeerJoined)}
            others = sorted(here.keys() - set(voters))
            assert others, "six and the coordinator are more than the voters"
            watching.append(asyncio.create_task(watch(here[others[0]])))

    swarm = await Swarm(tmp_path, config, on_event).start(6, listening=6)
    await swarm.finish()
    seen = await watching[0]
    assert before == [0], "nobody read there"
    assert len(set(seen)) == len(seen)
    told = [event for line in seen if (event := ev.decode(line)) is not None]
    assert isinstance(told[0], ev.RunStarted)
    assert [event.round for event in told if isinstance(event, ev.RoundClosed)][:5] == list(range(1, 6))
    assert isinstance(told[-1], ev.RunFinished), "the end too, though another node led the run to it"
    told = [event for event in told if not isinstance(event, ev.PeerProgress)]
    everything = [event for event in swarm.events if not isinstance(event, ev.PeerProgress)]
    assert told == everything[: len(told)]


def test_the_totals_of_a_run_that_goes_on_are_those_of_the_whole_run() -> None:
    """Killed after round 2: no end was told. Round 2 is told once more, as another leader would."""
    first, second, third = (replace(closed(n), wire_bytes=TRAFFIC, dense_bytes=100) for n in (1, 2, 3))
    before = [ev.Evaluated(round=0, loss=5.0), first, second]
    after = [ev.Evaluated(round=2, loss=3.0), replace(second, digest="b" * 64), third, ev.Evaluated(round=3, loss=2.0)]
    mine = run_log_of()
    mine.restore(ev.Stamped(time=float(number), event=event) for number, event in enumerate(before))
    for event in after:
        mine.emit(event)
    assert events_of(mine.log) == [*before, *after]
    assert mine.finished("done") == ev.RunFinished(
        rounds=3,
        first_loss=5.0,
        last_loss=2.0,
        wire_bytes=28,
        dense_bytes=300,
        digest=third.digest,
        reason="done",
        by_kind={"core": 28},
    )


def test_a_node_that_is_stopped_shows_its_own_people_that_the_run_is_not_over() -> None:
    seen: list[ev.Event] = []
    mine = RunLog(EventLog(lambda: 9.0), seen.append)
    mine.emit(closed(1))
    mine.stopped("it was asked to stop")
    assert seen[-1] == replace(mine.finished("it was asked to stop"), is_stopped=True)
    assert events_of(mine.log) == [closed(1)], "others may go on"


def test_an_end_in_the_recording_of_a_run_that_goes_on_is_not_its_end() -> None:
    end, mine = run_log_of().finished("the run has finished"), run_log_of()
    mine.restore([ev.Stamped(time=1.0, event=end)])
    mine.emit(closed(1))
    assert mine.finished("").rounds == 1


def test_totals_of_rounds_that_another_node_no_longer_keeps_count_once() -> None:
    raw = {"sent": 1, "received": 1}
    sums = ev.EarlierRounds(round=5, rounds=5, wire_bytes=TRAFFIC, per_peer={}, raw_bytes=raw, dense_bytes=500)
    mine = run_log_of()
    told = [closed(1), sums, replace(closed(6), wire_bytes=TRAFFIC, dense_bytes=100), sums]
    mine.restore(ev.Stamped(time=float(number), event=event) for number, event in enumerate(told))
    end = mine.finished("done")
    assert (end.rounds, end.wire_bytes, end.dense_bytes) == (6, 14, 600)


def numbered(number: int) -> ev.Warned:
    return ev.Warned(message=str(number))


def progress(peer: str, step: int) -> ev.PeerProgress:
    return ev.PeerProgress(peer=peer, name=peer, round=1, step=step, steps=20, tokens_per_second=1.0)


def messages(log: EventLog) -> list[int]:
    return [int(event.message) for event in events_of(log) if isinstance(event, ev.Warned)]


class Leader:
    """A leader's log, the calls for it, and how many lines it sent, at most ``limit`` characters at a time."""

    def __init__(self, *events: ev.Event, limit: int = 1 << 20) -> None:
        self.log, self.limit = log_of(*events), limit
        self.asked: list[tuple[int, bool]] = []
        self.sent = 0

    async def copy(self, after: int, with_progress: bool) -> tuple[list[str], int]:
        if after != NEWEST:
            self.asked.append((after, with_progress))
        lines, newest = self.log.since(after, self.limit, with_progress)
        self.sent += len(lines)
        return lines, newest


class RelayRig:
    """A relay into ``log``. ``follow`` stops it when it would wait for the next call, or for somebody to read."""

    def __init__(self, log: EventLog, is_voter: bool = True) -> None:
        self.now, self.log = 0.0, log
        self.seen: list[ev.Stamped] = []
        self.subscribers = LogSubscribers(False, lambda: self.now)
        self.subscribers.set_voter(is_voter)
        self.relay = LogRelay(log, self.seen.append, self.subscribers, self._sleep)
        self.left = 0

    async def _sleep(self, seconds: float) -> None:
        self.left -= 1
        if self.left <= 0:
            raise asyncio.CancelledError

    async def follow(self, copy: Copy, calls: int = 1) -> None:
        self.left = calls
        with pytest.raises(asyncio.CancelledError):
            await self.relay.follow(copy)


@given(
    steps=st.lists(st.sampled_from(["a", "b", "own", "follow a", "follow b"]), max_size=40),
    limit=st.sampled_from([150, 1 << 20]),
)
def test_no_line_is_doubled_and_each_source_keeps_its_order(steps: list[str], limit: int) -> None:
    async def go() -> None:
        leaders, own = {name: Leader(limit=limit) for name in ("a", "b")}, log_of()
        logs = {"own": own} | {name: leader.log for name, leader in leaders.items()}
        rig, numbers = RelayRig(own), count(1)
        for step in [*steps, "follow a", "follow b"]:
            if step.startswith("follow"):
                await rig.follow(leaders[step[-1]].copy, calls=50)
            else:
                logs[step].append(numbered(next(numbers)))
        everything = messages(own)
        assert sorted(everything) == list(range(1, next(numbers)))
        for name in ("a", "b"):
            source = messages(logs[name])
            assert [number for number in everything if number in source] == source
        assert len({ev.encode(seen.event, seen.time) for seen in rig.seen}) == len(rig.seen)

    asyncio.run(go())


async def test_from_the_next_leader_only_the_end_of_its_log_is_fetched() -> None:
    first, second, rig = Leader(*map(numbered, range(1000))), Leader(), RelayRig(log_of())
    await RelayRig(second.log).follow(first.copy, calls=2)
    await rig.follow(first.copy, calls=2)
    second.log.append(numbered(1000))
    await rig.follow(second.copy, calls=2)
    assert messages(rig.log) == list(range(1001))
    assert second.sent < 300


async def test_a_node_that_missed_more_than_the_end_fetches_all() -> None:
    first, second, rig = Leader(), Leader(*map(numbered, range(1000))), RelayRig(log_of())
    await rig.follow(first.copy, calls=2)
    await rig.follow(second.copy, calls=3)
    assert messages(rig.log) == list(range(1000))


@pytest.mark.parametrize("steps", [300, 3000])
async def test_events_that_only_progress_follows_are_fetched_from_the_next_leader(steps: int) -> None:
    first, second, rig = Leader(*map(numbered, range(2000))), Leader(), RelayRig(log_of())
    await rig.follow(first.copy, calls=2)
    await RelayRig(second.log).follow(first.copy, calls=2)
    second.log.append(numbered(2000))
    for step in range(steps):
        second.log.append(progress("p", step))
    await rig.follow(second.copy)
    assert messages(rig.log) == list(range(2001))
    assert min(after for after, _ in second.asked) > 0, "not all of it came again"


async def test_a_leader_that_is_away_or_refuses_is_asked_again() -> None:
    leader, rig = Leader(numbered(1)), RelayRig(log_of())
    errors = [UnreachableError("away"), RefusedError("no"), PeerError("size", "too long")]

    async def copy(after: int, with_progress: bool) -> tuple[list[str], int]:
        if errors:
            raise errors.pop()
        return await leader.copy(after, with_progress)

    await rig.follow(copy, calls=5)
    assert messages(rig.log) == [1]


async def test_lines_that_are_no_events_of_the_run_are_not_relayed() -> None:
    own = [ev.Left(reason="bye", rounds=1), ev.Joined(run="x", name="otter", number=1, address="", round=2)]
    lines = ["damage", "", "[]", *(ev.encode(event, 1.0) for event in own), ev.encode(numbered(4), 1.0)]

    async def copy(after: int, with_progress: bool) -> tuple[list[str], int]:
        return lines, len(lines)

    rig = RelayRig(log_of())
    await rig.follow(copy)
    assert events_of(rig.log) == [numbered(4)]
    assert len(rig.seen) == 1


@given(
    steps=st.lists(
        st.sampled_from(["event", "p", "q", "a monitor calls", "time passes", "votes", "votes no more", "call"]),
        max_size=40,
    ),
    limit=st.sampled_from([150, 1 << 20]),
)
def test_subscribers_get_the_leader_s_log_and_without_them_it_is_not_asked_for(steps: list[str], limit: int) -> None:
    async def go() -> None:
        leader, own = Leader(limit=limit), log_of()
        rig, is_voter, pause = RelayRig(own, is_voter=False), False, asyncio.Event()

        async def sleep(seconds: float) -> None:
            pause.clear()
            await pause.wait()

        rig.relay = LogRelay(own, rig.seen.append, rig.subscribers, sleep)
        task = asyncio.create_task(rig.relay.follow(leader.copy))

        async def call() -> None:
            pause.set()
            for _ in range(100):
                await asyncio.sleep(0)

        for number, step in enumerate(steps):
            match step:
                case "event" | "p" | "q":
                    leader.log.append(numbered(number) if step == "event" else progress(step, number))
                case "a monitor calls":
                    rig.subscribers.add_monitor()
                case "time passes":
                    rig.now += READING_SECONDS
                case "votes" | "votes no more":
                    is_voter = step == "votes"
                    rig.subscribers.set_voter(is_voter)
                case _:
                    before = len(leader.asked)
                    await call()
                    asked = leader.asked[before:]
                    assert bool(asked) <= (is_voter or rig.subscribers.are_people)
                    assert all(with_progress == rig.subscribers.are_people for _, with_progress in asked)
        rig.subscribers.add_monitor()
        for _ in range(2 + len(steps)):  # a line at a time
            await call()
        assert rig.relay.is_current
        lines = own.since(0)[0]
        assert len(set(lines)) == len(lines)
        assert sorted(lines) == sorted(leader.log.since(0)[0])
        assert messages(own) == messages(leader.log)
        assert len(rig.seen) == len({ev.encode(seen.event, seen.time) for seen in rig.seen})
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(go())


async def test_a_voter_copies_without_progress_and_a_monitor_gets_it_when_it_comes() -> None:
    rig = RelayRig(log_of())
    leader = Leader(numbered(1), progress("p", 3), numbered(2), progress("q", 20))
    await rig.follow(leader.copy)
    assert events_of(rig.log) == [numbered(1), numbered(2)]
    assert not rig.relay.is_current
    rig.subscribers.add_monitor()
    await rig.follow(leader.copy)
    assert set(events_of(rig.log)) == {numbered(1), numbered(2), progress("p", 3), progress("q", 20)}
    assert rig.relay.is_current


async def test_the_log_of_a_restarted_leader_is_copied_from_its_beginning() -> None:
    leader, rig = Leader(*map(numbered, range(5))), RelayRig(log_of())
    rig.subscribers.add_monitor()

    async def copy(after: int, with_progress: bool) -> tuple[list[str], int]:
        if leader.asked:
            leader.log = log_of(numbered(9))
        return await leader.copy(after, with_progress)

    await rig.follow(copy, calls=2)
    assert messages(rig.log) == [0, 1, 2, 3, 4, 9]
    assert rig.relay.is_current


async def test_a_long_history_comes_without_a_pause() -> None:
    leader, rig = Leader(*map(numbered, range(50)), limit=150), RelayRig(log_of())
    await rig.follow(leader.copy)
    assert messages(rig.log) == list(range(50))


async def test_voters_and_recent_monitors_are_subscribers() -> None:
    now = 0.0
    subscribers = LogSubscribers(False, lambda: now)
    assert not subscribers.are_any
    waiting = asyncio.create_task(subscribers.wait())
    await asyncio.sleep(0)
    subscribers.set_voter(False)
    subscribers.set_voter(True)
    await waiting
    assert (subscribers.are_any, subscribers.are_people) == (True, False)
    subscribers.set_voter(False)
    subscribers.add_monitor()
    now = READING_SECONDS - 1
    assert subscribers.are_people
    now = READING_SECONDS
    assert not subscribers.are_any
    assert LogSubscribers(True, lambda: now).are_people
