"""A run that is watched elsewhere, and beside it what this machine's own peer warns of: nobody else tells that."""

import asyncio
from collections.abc import AsyncIterator

from tsr_swarm.monitor.sources import Source
from tsr_swarm.telemetry.events import Warned, decode_stamped


class WithOwnWarnings:
    """A Source: the lines of another, and the warnings among the lines that are put in here."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()  # None: the other source has ended

    @property
    def trouble(self) -> str:
        return self._source.trouble

    def now(self) -> float:
        return self._source.now()

    def put(self, line: bytes) -> None:
        """Take in a line that the peer printed."""
        text = line.decode("utf-8", "replace")
        stamped = decode_stamped(text)
        if stamped is not None and isinstance(stamped.event, Warned):
            self._lines.put_nowait(text)

    async def lines(self) -> AsyncIterator[str]:
        """Lines of both as they happen; raises what the other source raises, and ends with it."""
        pump = asyncio.create_task(self._pump())
        try:
            while (line := await self._lines.get()) is not None:
                yield line
            await pump
        finally:
            pump.cancel()

    async def _pump(self) -> None:
        try:
            async for line in self._source.lines():
                self._lines.put_nowait(line)
        finally:
            self._lines.put_nowait(None)
