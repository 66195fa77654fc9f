"""Calls that are repeated while nobody can be reached."""

from collections.abc import Callable

import pytest

from tsr_swarm.errors import RefusedError, SwarmError, UnreachableError
from tsr_swarm.transport.retry import LONGEST_PAUSE, retry_while_unreachable


class World:
    """A clock that only sleeping moves, and somebody who can be reached from ``opens`` on."""

    def __init__(self, opens: float, failure: Callable[[str], SwarmError] = UnreachableError) -> None:
        self.now, self.opens, self.failure = 0.0, opens, failure
        self.calls: list[float] = []
        self.said: list[str] = []

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    async def call(self) -> float:
        self.calls.append(self.now)
        if self.now < self.opens:
            raise self.failure("Nobody is there.")
        return self.now

    async def retry(self, seconds: float) -> float:
        return await retry_while_unreachable(
            self.call, seconds, self.said.append, clock=lambda: self.now, sleep=self.sleep
        )


async def test_who_answers_at_once_is_called_once_and_nothing_is_said() -> None:
    world = World(opens=0.0)
    assert await world.retry(60.0) == 0.0
    assert (world.calls, world.said) == ([0.0], [])


async def test_who_comes_later_is_found_within_a_pause_and_one_sentence_says_how_long_is_tried() -> None:
    world = World(opens=30.0)
    assert await world.retry(60.0) <= 30.0 + LONGEST_PAUSE
    assert world.said == ["Nobody is there. Trying again for 1 min 00 s."]


async def test_who_never_comes_is_called_to_the_end_and_the_sentence_says_how_long_it_was_tried() -> None:
    world = World(opens=float("inf"))
    with pytest.raises(UnreachableError, match=r"^Nobody is there\. Tried for 20 s; --wait sets for how long\.$"):
        await world.retry(20.0)
    assert world.calls[-1] == world.now == 20.0


async def test_no_time_to_wait_is_one_call() -> None:
    world = World(opens=1.0)
    with pytest.raises(UnreachableError, match=r"^Nobody is there\.$"):
        await world.retry(0.0)
    assert (world.calls, world.said) == ([0.0], [])


async def test_a_refusal_is_final() -> None:
    world = World(opens=1.0, failure=RefusedError)
    with pytest.raises(RefusedError):
        await world.retry(60.0)
    assert (world.calls, world.said) == ([0.0], [])
