"""Loss over rounds, as a line chart in braille dots: two across and four down in a cell."""

import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from tsr_swarm.monitor.view import MUTED, NEWLINE, View

DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # by column, then row, within a cell
_BLANK = 0x2800
HELD_OUT, LOCAL = "bold $text-accent", "$text-secondary"
_X_UNIT = "round"

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """``points`` ascending in x. A bold line is two dots thick; a thin one is dashed, so that colour is not needed."""

    points: Points
    style: str
    is_bold: bool


@dataclass(frozen=True, slots=True)
class Frame:
    """The part of the plane that is shown and the dots it is shown on."""

    left: float
    right: float
    low: float
    high: float
    across: int
    down: int

    def column(self, x: float) -> int:
        return round((x - self.left) / ((self.right - self.left) or 1) * (self.across - 1))

    def row(self, y: float) -> int:
        """0 at the top."""
        return round((self.high - y) / ((self.high - self.low) or 1) * (self.down - 1))


class LossChart(Widget):
    """Held-out loss as a thick line, the mean of the peers' own losses as a dotted one."""

    view: reactive[View] = reactive(View)

    def on_mount(self) -> None:
        legend = (("━ held-out", HELD_OUT), "  ", ("┄ mean local", LOCAL))
        self.border_title = Content.assemble("Loss, nats a token  ", *legend)

    def render(self) -> Content:
        history = self.view.snapshot.history
        held_out = [(float(p.round), p.loss) for p in history if p.loss is not None]
        local = [(float(p.round), p.local_loss) for p in history if p.local_loss is not None]
        if not held_out and not local:
            return Content.styled("The line starts with the first evaluation.", MUTED)
        series = [
            Series(points=held_out, style=HELD_OUT, is_bold=True),
            Series(points=local, style=LOCAL, is_bold=False),
        ]
        return draw_chart(series, self.content_size.width, self.content_size.height)


def draw_chart(lines: Sequence[Series], width: int, height: int) -> Content:
    """Draw ``lines`` on ``width`` x ``height`` cells with both axes. Needs a point, and 20 x 4 cells; else empty."""
    points = [point for line in lines for point in line.points]
    if not points or width < 20 or height < 4:
        return Content("")
    rows = height - 2
    low, high = _padded(min(y for _, y in points), max(y for _, y in points))
    ticks = nice_ticks(low, high, max(2, rows // 2))
    labels = [_tick_text(tick, ticks) for tick in ticks]
    margin = max(len(label) for label in labels) + 2
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    frame = Frame(left, max(right, left + 1), low, high, 2 * (width - margin), 4 * rows)
    at_row = {frame.row(tick) // 4: label for tick, label in zip(ticks, labels, strict=True)}
    cells = _plot(lines, frame)
    result: list[Content] = []
    for row in range(rows):
        label = at_row.get(row)
        axis = f"{label or '':>{margin - 2}} {'┤' if label else '│'}"
        result.append(Content.assemble((axis, MUTED), *_row(cells, row, width - margin)))
    bottom = " " * (margin - 1) + "└" + "─" * (width - margin)
    result.append(Content.styled(bottom, MUTED))
    result.append(Content.styled(" " * margin + _x_labels(frame, width - margin), MUTED))
    return NEWLINE.join(result)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """At most ``count`` + 1 round numbers between ``low`` and ``high``, 1, 2 or 5 times a power of ten apart."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next((power * nice for nice in (1, 2, 5, 10) if span / (power * nice) <= count), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _padded(low: float, high: float) -> tuple[float, float]:
    """The range with a margin; one that is almost a point is widened, or its labels would have no end."""
    least = 1e-3 * max(1.0, abs(low), abs(high))
    pad = 0.04 * (high - low) if high - low > least else max(0.5, 100 * least)
    return low - pad, high + pad


def _tick_text(tick: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{tick:.{digits}f}" if abs(tick) < 1e5 else f"{tick:.4g}"


def _x_labels(frame: Frame, width: int) -> str:
    """Whole numbers under the axis, the unit at its end; a label that would touch the one before it is left out."""
    room = width - len(_X_UNIT) - 1
    text = ""
    for tick in nice_ticks(frame.left, frame.right, max(2, width // 12)):
        label = f"{tick:g}"
        left = min(max(0, frame.column(tick) // 2 - len(label) // 2), width)
        is_clear = left >= len(text) + (1 if text else 0)
        if tick == round(tick) and is_clear and left + len(label) <= room:
            text = text.ljust(left) + label
    return text.ljust(room + 1) + _X_UNIT


def _plot(lines: Sequence[Series], frame: Frame) -> dict[tuple[int, int], tuple[int, str]]:
    """Cells as {(column, row): (dots, style)}; where lines meet, only the bold one shows."""
    cells: dict[tuple[int, int], tuple[int, str]] = {}
    for line in sorted(lines, key=lambda line: line.is_bold):
        for x, y in _dots(line, frame):
            if 0 <= x < frame.across and 0 <= y < frame.down:
                cell = (x // 2, y // 4)
                dots, style = cells.get(cell, (0, line.style))
                kept = dots if style == line.style else 0
                cells[cell] = (kept | DOTS[x % 2][y % 4], line.style)
    return cells


def _dots(line: Series, frame: Frame) -> Iterable[tuple[int, int]]:
    before: int | None = None
    for x, y in _columns(line.points, frame):
        start = y if before is None else before + (1 if y > before else -1 if y < before else 0)
        for dot in range(min(start, y), max(start, y) + 1):
            if line.is_bold:
                yield x, dot
                yield x, dot + 1
            elif x // 2 % 2 == 0:
                yield x, dot
        before = y


def _columns(points: Points, frame: Frame) -> list[tuple[int, int]]:
    """(column, row) for each dot column that ``points`` span: the mean of its points, or a straight line between."""
    columns: dict[int, list[float]] = {}
    for x, y in points:
        columns.setdefault(frame.column(x), []).append(y)
    known = sorted((column, sum(ys) / len(ys)) for column, ys in columns.items())
    result: list[tuple[int, int]] = []
    for (x0, y0), (x1, y1) in itertools.pairwise(known):
        result += [(x, frame.row(y0 + (y1 - y0) * (x - x0) / (x1 - x0))) for x in range(x0, x1)]
    return [*result, *((x, frame.row(y)) for x, y in known[-1:])]


def _row(cells: dict[tuple[int, int], tuple[int, str]], row: int, width: int) -> list[tuple[str, str]]:
    """One row as (text, style) runs."""
    drawn = [cells.get((column, row), (0, "")) for column in range(width)]
    runs = itertools.groupby(drawn, key=operator.itemgetter(1))
    return [("".join(chr(_BLANK + dots) if dots else " " for dots, _ in run), style) for style, run in runs]
