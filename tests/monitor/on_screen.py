"""Helpers of the tests of the screen: a source of given lines, and the text that is on the screen."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from textual.pilot import Pilot

from tsr_swarm.monitor.app import SwarmMonitor
from tsr_swarm.monitor.sources import Outage

SMALL, NARROW, WIDE = (60, 20), (80, 24), (120, 40)
SILENT = Outage("No answer from 192.0.2.1:7700", "No answer", 23.0)


class ListSource:
    """Gives the lines that a test sets, at a moment that it sets."""

    def __init__(self, lines: list[str], now: float = 1_000_171.0) -> None:
        self.given, self.time = lines, now
        self.outage: Outage | None = None

    async def lines(self) -> AsyncIterator[str]:
        for line in self.given:
            yield line

    def now(self) -> float:
        return self.time


def rows(app: SwarmMonitor) -> list[str]:
    """What is on the screen, cell for cell."""
    return ["".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips()]


def screen(app: SwarmMonitor) -> str:
    return "\n".join(rows(app))


async def settle(pilot: Pilot[None], app: SwarmMonitor) -> None:
    """Wait until all is drawn: a pane that learns its size late, on a busy machine, writes its lines then."""
    await app.workers.wait_for_complete()
    seen: list[str] = []
    while len(seen) < 3 or len(set(seen[-3:])) > 1:
        await pilot.pause()
        seen.append(screen(app))


@asynccontextmanager
async def shown(app: SwarmMonitor, size: tuple[int, int], **options: Any) -> AsyncIterator[Pilot[None]]:
    """Open the screen and wait until all is drawn."""
    async with app.run_test(size=size, **options) as pilot:
        await settle(pilot, app)
        yield pilot


def column(app: SwarmMonitor, head: str, width: int = 16) -> list[str]:
    """The three lines of the tile whose label is ``head``."""
    lines = rows(app)
    row = next(i for i, line in enumerate(lines) if head in line)
    left = lines[row].index(head)
    return [line[left : left + width].strip("│ ") for line in lines[row : row + 3]]
