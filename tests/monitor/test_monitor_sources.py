import asyncio
import math
from pathlib import Path

import pytest

from tsr_swarm.errors import ConfigError, RefusedError, RunError, UnreachableError
from tsr_swarm.monitor.sources import PipeSource, ReplaySource, Source, WatchSource
from tsr_swarm.telemetry.events import Warned, encode


class ManualTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def line(text: str, time: float) -> str:
    return encode(Warned(message=text), time)


async def drain(source: Source) -> list[str]:
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


async def test_between_two_events_the_time_of_a_replay_runs_on_but_not_past_the_next(recorded: Path) -> None:
    time = ManualTime()
    source = ReplaySource(recorded, 2.0, time, time.sleep)
    lines = source.lines()
    await anext(lines)
    start = source.now()
    seen: list[float] = []

    async def watching(seconds: float) -> None:
        time.now += 0.5 * seconds
        seen.append(source.now() - start)
        time.now += 100.0
        seen.append(source.now() - start)

    source._sleep = watching
    await anext(lines)
    assert seen == [5.0, 10.0]


async def test_a_replay_at_once_does_not_wait(recorded: Path, run_lines: list[str]) -> None:
    time = ManualTime()
    assert await drain(ReplaySource(recorded, math.inf, time, time.sleep)) == run_lines
    assert set(time.slept) == {0.0}


async def test_a_file_that_is_no_recording_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("nothing\n")
    with pytest.raises(RunError, match="empty holds no events"):
        await drain(ReplaySource(tmp_path / "empty", math.inf, ManualTime()))
    with pytest.raises(RunError, match=r"missing cannot be read \(No such file"):
        await drain(ReplaySource(tmp_path / "missing", math.inf, ManualTime()))


@pytest.mark.parametrize("speed", [0.0, -1.0, math.nan])
def test_a_speed_that_is_not_above_nothing_is_refused(speed: float) -> None:
    with pytest.raises(ConfigError, match="speed"):
        ReplaySource(Path("run.jsonl"), speed, ManualTime())


async def test_lines_of_a_child_are_read_to_their_end() -> None:
    reader = asyncio.StreamReader(limit=200)
    reader.feed_data(line("a", 1.0).encode() + b"\n" + b"x" * 500 + b"\n" + b"\xff\n" + line("b", 2.0).encode())
    reader.feed_eof()
    source = PipeSource(reader, ManualTime())
    lines = await drain(source)
    assert (lines[0], lines[-1]) == (line("a", 1.0), line("b", 2.0))
    assert source.trouble == "the run's process has ended"


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


async def test_a_watcher_goes_on_after_the_newest_line_and_over_an_absence() -> None:
    time, asked, troubles = ManualTime(), [], []
    answers: list[tuple[list[str], int] | Exception] = [
        (["one", "two"], 2),
        UnreachableError("192.0.2.1:7700 did not answer."),
        UnreachableError("192.0.2.1:7700 did not answer."),
        (["three"], 3),
        RefusedError("The run is over."),
    ]

    async def watch(after: int) -> tuple[list[str], int]:
        asked.append(after)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def sleep(seconds: float) -> None:
        troubles.append(source.trouble)
        await time.sleep(seconds)

    source = WatchSource(watch, time, sleep)
    seen: list[tuple[str, str]] = []

    async def follow() -> None:
        async for text in source.lines():
            seen.append((text, source.trouble))

    with pytest.raises(RefusedError, match="over"):
        await follow()
    assert seen == [("one", ""), ("two", ""), ("three", "")]
    assert asked == [0, 2, 2, 2, 3]
    assert time.slept == [1.0, 2.0]
    assert troubles[0] == "192.0.2.1:7700 did not answer. Trying again every 1 s."
