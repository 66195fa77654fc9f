"""The run's log at one node, and those of others over loopback: what a monitor waits for, what a new leader copies."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.swarm_rig import Swarm, tiny_config
from tests.telemetry.examples import CLOSED
from tsr_swarm.errors import UnreachableError
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.events import log_relay, run_log
from tsr_swarm.node.events.run_log import RunLog
from tsr_swarm.telemetry import events as ev
from tsr_swarm.telemetry.byte_counter import ByteCounter
from tsr_swarm.telemetry.log import EventLog
from tsr_swarm.transport.base import Caller
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.server import serve
from tsr_swarm.wire.messages import lines_from_proto, lines_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

ME, DEAD = "0" * 32, "d" * 32
TRAFFIC: ev.Traffic = {"sent": {"core": 3}, "received": {"core": 4}}


def closed(round: int) -> ev.RoundClosed:
    nothing: ev.Traffic = {"sent": {}, "received": {}}
    return replace(CLOSED, round=round, loss=None, wire_bytes=nothing, dense_bytes=0, digest=f"{round:064x}")


class Other:
    """The log of another node."""

    def __init__(self, *events: ev.Event) -> None:
        self.log, self.asked = EventLog(lambda: 1.0), list[pb.WatchRequest]()
        for event in events:
            self.log.append(event)

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
            server = serve(other, "127.0.0.1:0", ByteCounter(), stop_seconds=0.1)  # type: ignore[arg-type]
            book.update(peer_id, f"127.0.0.1:{await stack.enter_async_context(server)}")
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
    progress = ev.PeerProgress(peer=ME, name="x", round=3, step=1, steps=300, tokens_per_second=1.0)
    other = Other(closed(1), closed(2), *[progress] * 300)
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
        await asyncio.Event().wait()
        raise AssertionError("it never comes")


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
    progress = ev.PeerProgress(peer=ME, name="x", round=1, step=1, steps=2, tokens_per_second=1.0)
    leader = Other(closed(1), progress, ev.Warned(message="hot"))
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
    monkeypatch.setattr(log_relay, "PACE_SECONDS", 0.2)
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
        rounds=3, first_loss=5.0, last_loss=2.0, wire_bytes=28, dense_bytes=300, digest=third.digest, reason="done"
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
