"""A monitor without a screen: every line of a run, from whichever node tells it, up to its end."""

import asyncio
import itertools

from tests.fixtures import run_started
from tests.telemetry.examples import FINISHED, joined, log_of
from tsr_swarm.cli.monitor import follow
from tsr_swarm.errors import UnreachableError
from tsr_swarm.monitor.sources import WatchSource
from tsr_swarm.telemetry.events import Warned
from tsr_swarm.telemetry.log import EventLog, Watch

STARTED = run_started(rounds=1)


async def lines_of(logs: dict[str, EventLog], told: list[str]) -> list[str]:
    """What is followed at "first"; where a log has no more lines its node is gone."""

    def dial(address: str) -> Watch:
        async def watch(after: int) -> tuple[list[str], int]:
            lines, newest = logs[address].since(after, limit=1)
            if not lines:
                raise UnreachableError(f"{address} did not answer.")
            return lines, newest

        return watch

    async def never(seconds: float) -> None:
        await asyncio.Event().wait()

    seen: list[str] = []
    async with asyncio.timeout(60):
        await follow(WatchSource(dial, ["first"], lambda: 1.0, never, told.append), seen.append)
    return seen


async def test_it_ends_with_the_run() -> None:
    log = log_of(STARTED, FINISHED, Warned(message="nobody reads this"))
    assert await lines_of({"first": log}, []) == log.since(0)[0][:2]


async def test_the_end_of_a_run_that_was_resumed_after_it_is_not_the_end() -> None:
    seconds = itertools.count(1.0).__next__
    first = log_of(STARTED, FINISHED, STARTED, Warned(message="more rounds"), FINISHED, clock=seconds)
    first.since = lambda number, limit=0, with_progress=True: EventLog.since(first, number)  # type: ignore[method-assign]
    assert await lines_of({"first": first}, []) == first.since(0)[0]


async def test_it_goes_on_with_another_node_and_says_once_that_one_is_gone() -> None:
    first = log_of(STARTED, joined("otter", address="peer"))
    other = log_of()
    for line in first.since(0)[0]:
        other.take(line)
    other.append(FINISHED)
    told: list[str] = []
    assert await lines_of({"first": first, "peer": other}, told) == other.since(0)[0]
    assert told == ["first did not answer."]
