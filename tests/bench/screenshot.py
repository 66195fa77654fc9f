"""Draw the monitor's last screen of a recorded run as an SVG of 120 x 40 cells. No clock, so the same file each time.

python -m tests.bench.screenshot [RECORDED_RUN.jsonl [PICTURE.svg]]
"""

import asyncio
import html
import math
import re
import sys
from pathlib import Path

from tests.bench.tables import RESULTS
from tsr_swarm.monitor.app import SwarmMonitor
from tsr_swarm.monitor.chart import DOTS
from tsr_swarm.monitor.sources import ReplaySource

SIZE = (120, 40)

# What Textual writes: a run of cells in one style, stretched to its length by ``textLength``, which librsvg ignores.
_RUN = re.compile(r'<text class="([^"]+)" x="([^"]+)" y="([^"]+)" textLength="[^"]+" clip-path="[^"]+">([^<]*)</text>')
_CLIPS_AND_FONTS = re.compile(r'<clipPath id="[^"]*-line-\d+">.*?</clipPath>\s*|@font-face \{.*?\}\s*', re.DOTALL)
_WIDTH, _HEIGHT, _ASCENT = 12.2, 24.4, 18.5  # of a cell, and from its top to the baseline of its text; pixels
_ARMS = {"─": "lr", "━": "lr", "│": "ud", "╭": "rd", "╮": "ld", "╰": "ru", "╯": "lu", "┤": "lud", "└": "ru"}
_SHAPES = "".join(_ARMS) + "█-▏" + "⠀-⣿"
_PIECE = re.compile(rf"─+|━+|█+|[{_SHAPES}]|[^{_SHAPES}\s]+")

Rectangle = tuple[float, float, float, float]  # left, top, width, height


class Moment(ReplaySource):
    """A record whose end is no outage: the picture is of a moment of the run."""

    @property
    def outage(self) -> None:
        return None

    @outage.setter
    def outage(self, outage: object) -> None:
        pass


async def draw(recorded: Path, size: tuple[int, int] = SIZE) -> str:
    """The SVG text. Raises RunError when ``recorded`` is no recorded run."""
    source = Moment(recorded, math.inf, clock=lambda: 0.0)
    app = SwarmMonitor(source, "tsr-swarm")
    async with app.run_test(size=size) as pilot:
        await app.workers.wait_for_complete()
        if app.failure is not None:
            raise app.failure
        await pilot.pause()
        svg = app.export_screenshot(title="tsr-swarm monitor", simplify=True)
    return _RUN.sub(_redraw, _CLIPS_AND_FONTS.sub("", svg))


def _redraw(run: re.Match[str]) -> str:
    """Place each word by itself, and draw dots, bars and frames as rectangles: so no font moves or replaces them."""
    style, left, baseline, text = run[1], float(run[2]), float(run[3]), html.unescape(run[4])
    words, path = [], ""
    for piece in _PIECE.finditer(text):
        x = left + piece.start() * _WIDTH
        if rectangles := _rectangles(piece[0]):
            path += "".join(_subpath(x + dx, baseline - _ASCENT + dy, w, h) for dx, dy, w, h in rectangles)
        else:
            place = f'x="{x:.6g}" y="{baseline:.6g}" textLength="{len(piece[0]) * _WIDTH:.6g}"'
            words.append(f'<text class="{style}" {place}>{html.escape(piece[0])}</text>')
    return "".join(words) + (f'<path class="{style}" d="{path}"/>' if path else "")


def _subpath(left: float, top: float, width: float, height: float) -> str:
    return f"M{left:.6g} {top:.6g}h{width:.4g}v{height:.4g}h{-width:.4g}z"


def _rectangles(piece: str) -> list[Rectangle]:
    """The parts of a character that is drawn, or of several of the same in a row, from its left; none for text."""
    character, width = piece[0], len(piece) * _WIDTH
    if "⠀" <= character <= "⣿":
        bits = ord(character) - ord("⠀")
        dots = [(x, y) for x, column in enumerate(DOTS) for y, bit in enumerate(column) if bits & bit]
        return [((x + 0.5) * _WIDTH / 2 - 2, (y + 0.5) * _HEIGHT / 4 - 2, 4, 4) for x, y in dots]
    if "█" <= character <= "▏":  # a cell's left eighths, from eight to one
        return [(0, 0, width * (ord("▏") + 1 - ord(character)) / 8, _HEIGHT)]
    thick = 3.0 if character == "━" else 1.5
    x, y = (_WIDTH - thick) / 2, (_HEIGHT - thick) / 2
    arms = {
        "l": (0, y, x + thick, thick),
        "r": (x, y, width - x, thick),
        "u": (x, 0, thick, y + thick),
        "d": (x, y, thick, _HEIGHT - y),
    }
    return [arms[arm] for arm in _ARMS.get(character, "")]


def main() -> None:
    """Read the first argument, write the second."""
    defaults = [RESULTS / "recorded-run.jsonl", RESULTS / "monitor.svg"]
    given = [Path(argument) for argument in sys.argv[1:3]]
    recorded, picture = given + defaults[len(given) :]
    picture.write_text(asyncio.run(draw(recorded)), "utf-8")
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
