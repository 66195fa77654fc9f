"""A run's log at a node that does not lead: copied while somebody reads it there, every line once."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.errors import PeerError, RefusedError, UnreachableError
from tsr_swarm.node.events.log_relay import READING_SECONDS, Copy, LogRelay, LogSubscribers
from tsr_swarm.telemetry import events as ev
from tsr_swarm.telemetry.log import NEWEST, EventLog


class Network:
    """A relay that is stopped when it would wait for the next call, or for somebody to read."""

    def __init__(self, log: EventLog, votes: bool = True) -> None:
        self.now = 0.0
        self.seen: list[ev.Stamped] = []
        self.subscribers = LogSubscribers(False, lambda: self.now)
        self.subscribers.set_voter(votes)
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


def copy_of(log: EventLog, limit: int = 1 << 20) -> Copy:
    async def copy(after: int, with_progress: bool) -> tuple[list[str], int]:
        return log.since(after, limit, with_progress)

    return copy


def numbered(number: int) -> ev.Warned:
    return ev.Warned(message=str(number))


def messages(lines: list[str]) -> list[int]:
    events = [ev.decode(line) for line in lines]
    return [int(event.message) for event in events if isinstance(event, ev.Warned)]


@given(
    steps=st.lists(st.sampled_from(["a", "b", "own", "follow a", "follow b"]), max_size=40),
    limit=st.sampled_from([150, 1 << 20]),
)
def test_no_line_is_doubled_and_each_source_keeps_its_order(steps: list[str], limit: int) -> None:
    async def go() -> None:
        time = iter(range(10**6))
        logs = {name: EventLog(lambda: float(next(time))) for name in ("a", "b", "own")}
        network, count = Network(logs["own"]), 0
        for step in [*steps, "follow a", "follow b"]:
            name = step[-1] if step.startswith("follow") else step
            if step.startswith("follow"):
                await network.follow(copy_of(logs[name], limit), calls=50)
            else:
                count += 1
                logs[name].append(numbered(count))
        everything = messages(logs["own"].since(0)[0])
        assert sorted(everything) == list(range(1, count + 1))
        for name in ("a", "b"):
            source = messages(logs[name].since(0)[0])
            assert [number for number in everything if number in source] == source
        own = messages([ev.encode(s.event, s.time) for s in network.seen])
        assert len(set(own)) == len(own)

    asyncio.run(go())


async def test_with_the_next_leader_only_the_end_of_its_log_is_fetched() -> None:
    time = iter(range(10**6))
    first, next_, own = (EventLog(lambda: float(next(time)), keep=2000) for _ in range(3))
    for number in range(1000):
        first.append(numbered(number))
    await Network(next_).follow(copy_of(first), calls=2)
    network, fetched = Network(own), 0
    await network.follow(copy_of(first), calls=2)
    next_.append(numbered(1000))

    async def counting(after: int, with_progress: bool) -> tuple[list[str], int]:
        nonlocal fetched
        lines, last = next_.since(after)
        fetched += len(lines)
        return lines, last

    await network.follow(counting, calls=2)
    assert messages(own.since(0)[0]) == list(range(1001))
    assert fetched < 300


async def test_a_node_that_missed_more_than_the_end_fetches_all() -> None:
    time = iter(range(10**6))
    first, next_, own = (EventLog(lambda: float(next(time)), keep=2000) for _ in range(3))
    network = Network(own)
    await network.follow(copy_of(first), calls=2)
    for number in range(1000):
        next_.append(numbered(number))
    await network.follow(copy_of(next_), calls=3)
    assert messages(own.since(0)[0]) == list(range(1000))


@pytest.mark.parametrize("count", [300, 3000])
async def test_what_only_progress_has_followed_is_not_lost_with_the_next_leader(count: int) -> None:
    first, next_ = Leader(), Leader()
    own = EventLog(lambda: 2.0)
    for number in range(2000):
        first.log.append(numbered(number))
    network = Network(own)
    await network.follow(first.copy, calls=2)
    await Network(next_.log).follow(first.copy, calls=2)
    next_.log.append(numbered(2000))
    for step in range(count):
        next_.log.append(progress("p", step))
    await network.follow(next_.copy)
    assert messages(own.since(0)[0]) == list(range(2001))
    assert min(after for after, _ in next_.asked) > 0, "not all of it came again"


async def test_a_leader_that_is_away_or_refuses_is_asked_again() -> None:
    log, source = EventLog(lambda: 1.0), EventLog(lambda: 2.0)
    source.append(numbered(1))
    errors = [UnreachableError("away"), RefusedError("no"), PeerError("size", "too long")]

    async def copy(after: int, with_progress: bool) -> tuple[list[str], int]:
        if errors:
            raise errors.pop()
        return source.since(after)

    await Network(log).follow(copy, calls=5)
    assert messages(log.since(0)[0]) == [1]


async def test_what_is_no_news_of_the_run_is_not_relayed() -> None:
    log = EventLog(lambda: 1.0)
    own = [ev.Left(reason="bye", rounds=1), ev.Joined(run="x", name="otter", number=1, address="", round=2)]
    lines = ["damage", "", "[]", *(ev.encode(event, 1.0) for event in own), ev.encode(numbered(4), 1.0)]

    async def copy(after: int, with_progress: bool) -> tuple[list[str], int]:
        return lines, len(lines)

    network = Network(log)
    await network.follow(copy)
    assert messages(log.since(0)[0]) == [4]
    assert len(log.since(0)[0]) == len(network.seen) == 1


# --- who reads ------------------------------------------------------------------------------------------------------


def progress(peer: str, step: int) -> ev.PeerProgress:
    return ev.PeerProgress(peer=peer, name=peer, round=1, step=step, steps=20, tokens_per_second=1.0)


def told(lines: Sequence[str]) -> list[ev.Event | None]:
    return [ev.decode(line) for line in lines]


class Leader:
    """Its log, and what was asked of it."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self.log, self.asked, self.limit = EventLog(lambda: 1.0), list[tuple[int, bool]](), limit

    async def copy(self, after: int, with_progress: bool) -> tuple[list[str], int]:
        if after != NEWEST:
            self.asked.append((after, with_progress))
        return self.log.since(after, self.limit, with_progress)


@given(
    steps=st.lists(
        st.sampled_from(["tells", "p", "q", "a monitor calls", "time passes", "votes", "votes no more", "call"]),
        max_size=40,
    ),
    limit=st.sampled_from([150, 1 << 20]),
)
def test_whoever_reads_sees_what_the_leader_told_and_nobody_else_costs_anything(steps: list[str], limit: int) -> None:
    async def go() -> None:
        leader, own = Leader(limit), EventLog(lambda: 2.0)
        network, votes = Network(own, votes=False), False
        pause = asyncio.Event()

        async def sleep(seconds: float) -> None:
            pause.clear()
            await pause.wait()

        network.relay = LogRelay(own, network.seen.append, network.subscribers, sleep)
        task = asyncio.create_task(network.relay.follow(leader.copy))

        async def settle() -> None:
            for _ in range(100):
                await asyncio.sleep(0)

        for count, step in enumerate(steps):
            match step:
                case "tells":
                    leader.log.append(numbered(count))
                case "p" | "q":
                    leader.log.append(progress(step, count))
                case "a monitor calls":
                    network.subscribers.add_monitor()
                case "time passes":
                    network.now += READING_SECONDS
                case "votes" | "votes no more":
                    votes = step == "votes"
                    network.subscribers.set_voter(votes)
                case _:
                    before = len(leader.asked)
                    pause.set()
                    await settle()
                    asked = leader.asked[before:]
                    assert bool(asked) <= (votes or network.subscribers.are_people)
                    assert all(with_progress == network.subscribers.are_people for _, with_progress in asked)
        network.subscribers.add_monitor()
        for _ in range(2 + len(steps)):  # a line at a time
            pause.set()
            await settle()
        assert network.relay.is_current
        lines = own.since(0)[0]
        assert len(set(lines)) == len(lines)
        assert sorted(lines) == sorted(leader.log.since(0)[0])
        assert messages(lines) == messages(leader.log.since(0)[0])
        assert len(network.seen) == len({ev.encode(seen.event, seen.time) for seen in network.seen})
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(go())


async def test_a_voter_copies_without_progress_and_a_monitor_gets_it_when_it_comes() -> None:
    leader, own = Leader(), EventLog(lambda: 2.0)
    for event in (numbered(1), progress("p", 3), numbered(2), progress("q", 20)):
        leader.log.append(event)
    network = Network(own)
    await network.follow(leader.copy)
    assert told(own.since(0)[0]) == [numbered(1), numbered(2)]
    assert not network.relay.is_current
    network.subscribers.add_monitor()
    await network.follow(leader.copy)
    assert set(told(own.since(0)[0])) == {numbered(1), numbered(2), progress("p", 3), progress("q", 20)}
    assert network.relay.is_current


async def test_the_log_of_a_leader_that_was_started_anew_is_taken_from_its_beginning() -> None:
    leader, own = Leader(), EventLog(lambda: 2.0)
    for number in range(5):
        leader.log.append(numbered(number))
    network = Network(own)
    network.subscribers.add_monitor()

    async def copy(after: int, with_progress: bool) -> tuple[list[str], int]:
        if leader.asked:
            leader.log = EventLog(lambda: 3.0)
            leader.log.append(numbered(9))
        return await leader.copy(after, with_progress)

    await network.follow(copy, calls=2)
    assert messages(own.since(0)[0]) == [0, 1, 2, 3, 4, 9]
    assert network.relay.is_current


async def test_a_long_history_comes_without_a_pause() -> None:
    leader, own = Leader(limit=150), EventLog(lambda: 2.0)
    for number in range(50):
        leader.log.append(numbered(number))
    await Network(own).follow(leader.copy)
    assert messages(own.since(0)[0]) == list(range(50))


async def test_readers_come_and_go() -> None:
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
