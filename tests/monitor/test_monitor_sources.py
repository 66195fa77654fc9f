import asyncio
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.telemetry.examples import joined, leads
from tsr_swarm.errors import ConfigError, RefusedError, RunError, UnreachableError
from tsr_swarm.monitor import sources
from tsr_swarm.monitor.sources import SILENT_SECONDS, KnownAddresses, Outage, PipeSource, ReplaySource, WatchSource
from tsr_swarm.telemetry.events import Event, PeerJoined, PeerLeft, Warned, encode
from tsr_swarm.telemetry.log import EventLog, Watch


class ManualTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self.at_waking: Callable[[float], None] = lambda seconds: None

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        self.at_waking(seconds)


def line(text: str, time: float) -> str:
    return encode(Warned(message=text), time)


def answering(*answers: tuple[list[str], int] | Exception, asked: list[int] | None = None) -> sources.Dial:
    """Dial a node that gives these answers in turn, whatever its address; ``asked`` gets what it was asked for."""
    left = list(answers)

    async def watch(after: int) -> tuple[list[str], int]:
        if asked is not None:
            asked.append(after)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return lambda address: watch


async def drain(source: sources.Source) -> list[str]:
    return [line.strip() async for line in source.lines()]


async def test_a_replay_keeps_the_recorded_pace_at_its_speed(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    lines = [line("a", 100.0), "damage", line("b", 130.0), line("back in time", 120.0), line("c", 131.0)]
    path.write_text("\n".join(lines))
    time = ManualTime()
    source = ReplaySource(path, 10.0, time, time.sleep)
    assert await drain(source) == [text for text in lines if text != "damage"]
    assert time.slept == [0.0, 3.0, 0.0, 0.1]
    assert source.now() == 131.0
    assert source.outage == sources.RECORD_ENDS


async def test_between_two_events_the_time_of_a_replay_runs_on_but_not_past_the_next(recorded: Path) -> None:
    time = ManualTime()
    source = ReplaySource(recorded, 2.0, time, time.sleep)
    lines = source.lines()
    await anext(lines)
    start = source.now()
    seen: list[float] = []

    def watching(seconds: float) -> None:
        time.now -= 0.5 * seconds
        seen.append(source.now() - start)
        time.now += 100.0
        seen.append(source.now() - start)

    time.at_waking = watching
    await anext(lines)
    assert seen == [5.0, 10.0]


async def test_a_file_that_is_no_recording_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("nothing\n")
    with pytest.raises(RunError, match="empty holds no events"):
        await drain(ReplaySource(tmp_path / "empty", math.inf, ManualTime()))
    with pytest.raises(RunError, match=r"missing cannot be read \(No such file"):
        await drain(ReplaySource(tmp_path / "missing", math.inf, ManualTime()))


@pytest.mark.parametrize("speed", [0.0, -1.0, math.nan])
def test_a_speed_that_is_not_above_zero_is_refused(speed: float) -> None:
    with pytest.raises(ConfigError, match="speed"):
        ReplaySource(Path("run.jsonl"), speed, ManualTime())


async def test_lines_of_a_child_are_read_to_their_end() -> None:
    reader = asyncio.StreamReader(limit=200)
    reader.feed_data(line("a", 1.0).encode() + b"\n" + b"x" * 500 + b"\n" + b"\xff\n" + line("b", 2.0).encode())
    reader.feed_eof()
    source = PipeSource(reader, ManualTime())
    lines = await drain(source)
    assert (lines[0], lines[-1]) == (line("a", 1.0), line("b", 2.0))
    assert source.outage.text == "The run's process has ended"


async def test_the_runs_clock_is_learned_from_the_quickest_line() -> None:
    time = ManualTime()
    time.now = 50.0
    reader = asyncio.StreamReader()
    reader.feed_data(f"{line('backlog', 900.0)}\n{line('fresh', 1050.0)}\n{line('slow', 1040.0)}\n".encode())
    reader.feed_eof()
    source = PipeSource(reader, time)
    await drain(source)
    assert source.now() == 1050.0
    time.now = 52.0
    assert source.now() == 1052.0


async def test_a_watcher_goes_on_after_the_newest_line_when_its_node_answers_again() -> None:
    time, asked = ManualTime(), list[int]()
    outages: list[Outage | None] = []
    away = UnreachableError("192.0.2.1:7700 did not answer.")
    over = RefusedError("The run is over.")
    dial = answering((["one", "two"], 2), away, away, (["three"], 3), over, asked=asked)

    time.at_waking = lambda seconds: outages.append(source.outage)
    sentences: list[str] = []
    source = WatchSource(dial, ["192.0.2.1:7700"], time, time.sleep, sentences.append)
    lines = source.lines()
    assert [(await anext(lines), source.outage) for _ in range(3)] == [("one", None), ("two", None), ("three", None)]
    with pytest.raises(RefusedError, match="over"):
        await anext(lines)
    assert asked == [0, 2, 2, 2, 3]
    assert time.slept == [1.0, 2.0]
    assert outages == [Outage("No answer from 192.0.2.1:7700", "No answer", seconds) for seconds in (1.0, 3.0)]
    assert sentences == ["192.0.2.1:7700 did not answer."], "once for each absence"


async def test_a_stopped_node_is_reported_before_the_call_to_it_has_failed() -> None:
    time, asked = ManualTime(), asyncio.Event()

    async def watch(after: int) -> tuple[list[str], int]:
        if after:
            asked.set()
            await asyncio.Event().wait()
        return [line("a", 0.0)], 1

    source = WatchSource(lambda address: watch, ["192.0.2.1:7700"], time, time.sleep)
    lines = source.lines()
    await anext(lines)
    waiting = asyncio.create_task(anext(lines))
    await asked.wait()
    time.now = SILENT_SECONDS - 1
    assert source.outage is None, "a node may hold its answer back until there is news"
    time.now = SILENT_SECONDS + 1
    assert source.outage == Outage("No answer from 192.0.2.1:7700", "No answer", SILENT_SECONDS + 1)
    waiting.cancel()


def at(name: str, address: str) -> PeerJoined:
    return joined(name, address=address)


@given(
    given_=st.lists(st.sampled_from("abc"), min_size=1, max_size=3),
    events=st.lists(
        st.builds(at, st.sampled_from("xyz"), st.sampled_from(["", "a", "d", "e", "f"]))
        | st.builds(lambda peer: PeerLeft(peer=f"id-{peer}", name=peer, reason=""), st.sampled_from("xyz")),
        max_size=20,
    ),
)
def test_every_address_is_asked_in_turn_and_the_given_ones_stay(given_: list[str], events: list[Event]) -> None:
    known = KnownAddresses(tuple(given_))
    for event in events:
        known = known.after_event(event)
    address, asked = given_[0], list[str]()
    for _ in known.addresses:
        asked.append(address)
        address = known.next_after(address)
    assert sorted(asked) == sorted(set(known.addresses))
    assert address == asked[0] == known.next_after("gone")
    newest = {event.peer: event for event in events if isinstance(event, PeerJoined | PeerLeft)}
    assert set(asked) == {*given_, *(event.address for event in newest.values() if isinstance(event, PeerJoined))} - {
        ""
    }


def test_only_the_newest_addresses_of_a_large_swarm_are_kept() -> None:
    known = KnownAddresses(("a",))
    for number in range(3 * sources.MOST_ADDRESSES):
        known = known.after_event(at(str(number), f"192.0.2.1:{number + 1}"))
    assert len(known.joined) == sources.MOST_ADDRESSES
    assert known.addresses[-1] == f"192.0.2.1:{3 * sources.MOST_ADDRESSES}"


class Nodes:
    """The logs of a run at its nodes, by address, which numbers them for itself; those in ``dead`` do not answer."""

    def __init__(self, *addresses: str) -> None:
        self.time = ManualTime()
        self.logs = {address: EventLog(self.time) for address in addresses}
        self.dead: set[str] = set()
        self.refusing: set[str] = set()
        self.asked: list[str] = []

    def dial(self, address: str) -> Watch:
        async def watch(after: int) -> tuple[list[str], int]:
            self.asked.append(address)
            if address in self.refusing:
                raise RefusedError(f"{address} belongs to another run.")
            lines, last = self.logs[address].since(after) if address in self.logs else ([], 0)
            if address in self.dead or not lines:
                raise UnreachableError(f"{address} did not answer.")
            return lines, last

        return watch


async def test_a_watcher_goes_on_with_a_peer_when_its_node_dies_and_shows_no_line_twice() -> None:
    nodes = Nodes("first", "peer")
    nodes.logs["first"].append(at("x", "peer"))
    nodes.logs["first"].append(Warned(message="a"))
    nodes.logs["peer"].append(Warned(message="of its own"))
    for text in nodes.logs["first"].since(0)[0]:
        nodes.logs["peer"].take(text)
    nodes.logs["peer"].append(leads("x"))
    outages: list[Outage | None] = []
    source = WatchSource(nodes.dial, ["first"], nodes.time, nodes.time.sleep)

    lines = source.lines()
    shown = [await anext(lines) for _ in range(2)]
    nodes.dead.add("first")
    shown += [await anext(lines) for _ in range(2)]
    assert nodes.asked == ["first", "first", "peer"]
    assert sorted(shown) == sorted(nodes.logs["peer"].since(0)[0])
    assert nodes.time.slept == []
    assert source.outage is None

    nodes.dead.add("peer")

    def both_are_gone(seconds: float) -> None:
        outages.append(source.outage)
        nodes.dead.clear()
        nodes.logs["first"].append(Warned(message="it is back"))

    nodes.time.at_waking = both_are_gone
    assert "it is back" in await anext(lines)
    assert outages == [Outage("No answer from any of 2 nodes", "No answer", 1.0)]


async def test_an_address_of_a_peer_that_belongs_to_another_run_is_skipped() -> None:
    nodes = Nodes("first", "second")
    nodes.refusing.add("other run")
    nodes.logs["first"].append(at("x", "other run"))
    nodes.logs["second"].append(Warned(message="b"))
    source = WatchSource(nodes.dial, ["first", "second"], nodes.time, nodes.time.sleep)
    lines = source.lines()
    await anext(lines)
    nodes.dead.add("first")
    assert "b" in await anext(lines)
    nodes.dead.add("second")
    nodes.logs["first"].append(Warned(message="c"))

    nodes.time.at_waking = lambda seconds: nodes.dead.clear()
    assert "c" in await anext(lines)
    circle = ["second", "other run", "first"]
    assert nodes.asked == ["first", "first", "second", *circle, "second", *circle]


async def test_another_leader_has_another_clock() -> None:
    time = ManualTime()
    time.now = 50.0
    lines = [line("a", 1050.0), encode(leads("x"), 2049.0), line("b", 2050.0)]
    source = WatchSource(answering((lines, 3)), ["first"], time, time.sleep)
    reader = source.lines()
    assert [await anext(reader) for _ in lines] == lines
    assert source.now() == 2050.0
