"""A peer's own warnings on the screen that shows its swarm."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tsr_swarm.errors import RefusedError
from tsr_swarm.monitor.own_warnings import WithOwnWarnings
from tsr_swarm.telemetry.events import Evaluated, Left, Warned, encode


class Elsewhere:
    """A source whose one line waits for ``goes_on``, and which refuses then."""

    trouble = "nobody is there"

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()

    async def lines(self) -> AsyncIterator[str]:
        await self.goes_on.wait()
        yield encode(Evaluated(round=1, loss=2.0), 1.0)
        raise RefusedError("Another run is there.")

    def now(self) -> float:
        return 7.0


async def test_warnings_come_while_the_run_is_silent_and_the_end_is_the_runs() -> None:
    elsewhere = Elsewhere()
    source = WithOwnWarnings(elsewhere)
    lines = source.lines()
    warning = encode(Warned(message="Trying again."), 2.0)
    source.put(b"noise\n")
    source.put(encode(Left(reason="of no concern to others", rounds=1), 2.0).encode())
    source.put(warning.encode())
    assert await anext(lines) == warning
    assert (source.trouble, source.now()) == ("nobody is there", 7.0)
    elsewhere.goes_on.set()
    assert '"evaluated"' in await anext(lines)
    with pytest.raises(RefusedError):
        await anext(lines)
