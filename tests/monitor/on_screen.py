"""A short recorded run, and the monitor open on it: what is on its screen, cell for cell."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from textual.pilot import Pilot

from tests.telemetry.examples import CLOSED, STARTED, joined, opened, progress
from tsr_swarm.monitor.app import SwarmMonitor
from tsr_swarm.monitor.sources import Outage, Source
from tsr_swarm.telemetry import events as e

SMALL, NARROW, WIDE = (60, 20), (80, 24), (120, 40)
SILENT = Outage("No answer from 192.0.2.1:7700", "No answer", 23.0)
NAMES = ("otter", "heron", "lynx")
START = 1_000_000.0


def _closed(round: int) -> e.RoundClosed:
    names = NAMES if round < 3 else NAMES[:2]
    return replace(
        CLOSED,
        round=round,
        peers=len(names),
        included=len(names),
        loss=5.5 - round,
        local_loss=5.6 - round,
        seconds=12.0,
        wire_bytes={"sent": {"core": 100_000, "control": 1_000}, "received": {"core": 200_000, "basis": 50_000}},
        per_peer={name: {"sent": {"core": 40_000}, "received": {"core": 80_000}, "overhead": 90} for name in names},
        raw_bytes={"sent": 300_000, "received": 500_000},
        dense_bytes=100_000_000,
    )


RUN: list[e.Event] = [  # ten seconds apart: three peers, one of which leaves, three rounds, the fourth in exchange
    STARTED,
    e.Evaluated(round=0, loss=5.5),
    *(joined(name, number) for number, name in enumerate(NAMES, 1)),
    *(event for round in (1, 2) for event in (opened(round), _closed(round))),
    e.PeerLeft(peer="id-lynx", name="lynx", reason="no sign of life for 30 s"),
    opened(3),
    _closed(3),
    opened(4),
    *(progress(name, 4, 15, 1500.0) for name in NAMES[:2]),
    e.PayloadReceived(round=4, peer="id-otter", name="otter", seconds=9.0, wire_bytes=9, local_loss=1.75),
    e.PhaseChanged(round=4, phase="exchange", deadline=12.0, reason="median + 3 MAD"),
]
RUN_LINES = [e.encode(event, START + 10 * index) for index, event in enumerate(RUN)]


class ListSource:
    """Gives the lines that a test sets, at a moment that it sets."""

    def __init__(self, lines: list[str], outage: Outage | None = None) -> None:
        self.given, self.time = lines, START + 171
        self.outage = outage

    async def lines(self) -> AsyncIterator[str]:
        for line in self.given:
            yield line

    def now(self) -> float:
        return self.time


@dataclass
class Screen:
    """A monitor that is open."""

    app: SwarmMonitor
    pilot: Pilot[None]
    source: Any

    @property
    def rows(self) -> list[str]:
        return ["".join(part.text for part in strip) for strip in self.app.screen._compositor.render_strips()]

    @property
    def text(self) -> str:
        return "\n".join(self.rows)

    def tile(self, head: str, width: int = 16) -> list[str]:
        """The three lines of the tile whose label is ``head``."""
        lines = self.rows
        row = next(i for i, line in enumerate(lines) if head in line)
        left = lines[row].index(head)
        return [line[left : left + width].strip("│ ") for line in lines[row : row + 3]]

    def row_of(self, text: str) -> str:
        """The first row with ``text`` in it."""
        return next(row for row in self.rows if text in row)

    async def settle(self) -> None:
        """Wait until all is drawn: a pane that learns its size late, on a busy machine, writes its lines then."""
        await self.app.workers.wait_for_complete()
        seen: list[str] = []
        while len(seen) < 3 or len(set(seen[-3:])) > 1:
            await self.pilot.pause()
            seen.append(self.text)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.settle()

    async def redraw(self) -> None:
        """Show what the source says now."""
        self.app.show()
        await self.settle()


@asynccontextmanager
async def monitor(
    size: tuple[int, int],
    *events: e.Event,
    lines: list[str] = RUN_LINES,
    own: Iterable[e.Event] | None = None,
    outage: Outage | None = None,
    source: Source | None = None,
    **options: Any,
) -> AsyncIterator[Screen]:
    """Open the monitor on a run of these ``lines``, then ``events``, and wait until all is drawn."""
    shown = source or ListSource([*lines, *_later(events)], outage)
    of_peer = None if own is None else ListSource(_later(list(own)))
    app = SwarmMonitor(shown, **{"title": "shakespeare"} | options, own=of_peer)
    async with app.run_test(size=size, notifications=True) as pilot:
        screen = Screen(app, pilot, shown)
        await screen.settle()
        yield screen


def _later(events: Sequence[e.Event]) -> list[str]:
    return [e.encode(event, START + 200 + number) for number, event in enumerate(events)]
