"""A run's log at a node that does not lead: copied while somebody reads it there, every line once."""

import asyncio
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.errors import PeerError, RefusedError, UnreachableError
from tsr_swarm.node.events.log_relay import READING_SECONDS, Copy, LogRelay, LogSubscribers
from tsr_swarm.telemetry import events as ev
from tsr_swarm.telemetry.log import NEWEST, EventLog


def log_of(*events: ev.Event, keep: int = 4000) -> EventLog:
    """A log whose clock ticks with every event, so that no two lines are equal."""
    times = count()
    log = EventLog(lambda: float(next(times)), keep=keep)
    for event in events:
        log.append(event)
    return log


def numbered(number: int) -> ev.Warned:
    return ev.Warned(message=str(number))


def progress(peer: str, step: int) -> ev.PeerProgress:
    return ev.PeerProgress(peer=peer, name=peer, round=1, step=step, steps=20, tokens_per_second=1.0)


def events_in(log: EventLog) -> list[ev.Event | None]:
    return [ev.decode(line) for line in log.since(0)[0]]


def messages(log: EventLog) -> list[int]:
    return [int(event.message) for event in events_in(log) if isinstance(event, ev.Warned)]


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


class Rig:
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
        times = count()
        leaders = {name: Leader(limit=limit) for name in ("a", "b")}
        own = EventLog(lambda: float(next(times)))
        for leader in leaders.values():
            leader.log = EventLog(lambda: float(next(times)))
        logs = {"own": own} | {name: leader.log for name, leader in leaders.items()}
        rig, numbers = Rig(own), count(1)
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
    first, second, rig = Leader(*map(numbered, range(1000))), Leader(), Rig(log_of())
    await Rig(second.log).follow(first.copy, calls=2)
    await rig.follow(first.copy, calls=2)
    second.log.append(numbered(1000))
    await rig.follow(second.copy, calls=2)
    assert messages(rig.log) == list(range(1001))
    assert second.sent < 300


async def test_a_node_that_missed_more_than_the_end_fetches_all() -> None:
    first, second, rig = Leader(), Leader(*map(numbered, range(1000))), Rig(log_of())
    await rig.follow(first.copy, calls=2)
    await rig.follow(second.copy, calls=3)
    assert messages(rig.log) == list(range(1000))


@pytest.mark.parametrize("steps", [300, 3000])
async def test_events_that_only_progress_follows_are_fetched_from_the_next_leader(steps: int) -> None:
    first, second, rig = Leader(*map(numbered, range(2000))), Leader(), Rig(log_of())
    await rig.follow(first.copy, calls=2)
    await Rig(second.log).follow(first.copy, calls=2)
    second.log.append(numbered(2000))
    for step in range(steps):
        second.log.append(progress("p", step))
    await rig.follow(second.copy)
    assert messages(rig.log) == list(range(2001))
    assert min(after for after, _ in second.asked) > 0, "not all of it came again"


async def test_a_leader_that_is_away_or_refuses_is_asked_again() -> None:
    leader, rig = Leader(numbered(1)), Rig(log_of())
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

    rig = Rig(log_of())
    await rig.follow(copy)
    assert events_in(rig.log) == [numbered(4)]
    assert len(rig.seen) == 1


# --- subscribers ----------------------------------------------------------------------------------------------------


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
        rig, is_voter, pause = Rig(own, is_voter=False), False, asyncio.Event()

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
    rig = Rig(log_of())
    leader = Leader(numbered(1), progress("p", 3), numbered(2), progress("q", 20))
    await rig.follow(leader.copy)
    assert events_in(rig.log) == [numbered(1), numbered(2)]
    assert not rig.relay.is_current
    rig.subscribers.add_monitor()
    await rig.follow(leader.copy)
    assert set(events_in(rig.log)) == {numbered(1), numbered(2), progress("p", 3), progress("q", 20)}
    assert rig.relay.is_current


async def test_the_log_of_a_restarted_leader_is_copied_from_its_beginning() -> None:
    leader, rig = Leader(*map(numbered, range(5))), Rig(log_of())
    rig.subscribers.add_monitor()

    async def copy(after: int, with_progress: bool) -> tuple[list[str], int]:
        if leader.asked:
            leader.log = log_of(numbered(9))
        return await leader.copy(after, with_progress)

    await rig.follow(copy, calls=2)
    assert messages(rig.log) == [0, 1, 2, 3, 4, 9]
    assert rig.relay.is_current


async def test_a_long_history_comes_without_a_pause() -> None:
    leader, rig = Leader(*map(numbered, range(50)), limit=150), Rig(log_of())
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
