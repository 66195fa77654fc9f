"""The finalists' losses against bytes and against time, as PNG. Needs matplotlib, which is the extra ``plots``."""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.bench.study.candidates import OURS
from tests.bench.study.comparison import DOWN, UP, Row, home_link
from tests.bench.study.tables import REFERENCES
from tsr_swarm.baselines.registry import METHODS
from tsr_swarm.config.link import MBIT
from tsr_swarm.errors import RunError
from tsr_swarm.simulate.plots import BLACK, COLOURS, FAINT, End, dress, label_ends, save, title_of
from tsr_swarm.simulate.result import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY = "#666666"
LABEL_GAP = 0.036  # between two labels, as a share of the axis
TOP_SHARE = 0.6  # of the first loss: what a few steps learn anywhere need not be seen
MINUTE, MB = 60.0, 1e6


class Line(NamedTuple):
    """A finalist's curve: the median over the seeds at each point that all of them have, and their range."""

    name: str
    colour: str
    dashes: str
    width: float
    is_shown: bool  # else faint: not the best of its method
    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]


def pictures(study: str) -> tuple[str, str]:
    """File names of the pictures of a study: against bytes, and against time."""
    return f"{study}-loss-by-bytes.png", f"{study}-loss-by-time.png"


def write_plots(rows: Sequence[Row], folder: Path, study: str) -> list[Path]:
    """Both pictures; none while there is no run. Raises RunError without matplotlib, or where nothing can be put."""
    done = [row for row in rows if row.runs]
    if not done:
        return []
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        raise RunError("Plots need matplotlib; install it with 'pip install tsr-swarm[plots]'.") from None
    link = home_link(done[0].runs[0].parameters)
    title = title_of([run for row in done for run in row.runs])
    marks = "shaded: range over the seeds; dashed: controls, a rival's exchange around Muon; grey: other settings"
    line = f"the 60M shapes on {UP / MBIT:g} Mbit/s up, {DOWN / MBIT:g} down, {link.step_seconds:.2f} s a step"
    shown = best_rows(done)
    by_bytes = [line_of(row, row in shown, lambda point: point.bytes_total / MB) for row in done]
    by_time = [line_of(row, row in shown, lambda point: point.seconds(link) / MINUTE) for row in done]
    bytes_name, time_name = pictures(study)
    return [
        _write(folder / bytes_name, by_bytes, "wire bytes of one peer, sent and received, MB", (title, marks)),
        _write(folder / time_name, by_time, "simulated time, minutes", (title, f"{line}\n{marks}")),
    ]


def best_rows(rows: Sequence[Row]) -> list[Row]:
    """The row of the lowest median loss of each method, and ours at its defaults.

    Controls are apart, and what others are measured against, so that it does not hide a rival of far fewer bytes.
    """
    best: dict[tuple[str, bool, bool], Row] = {}
    for row in sorted(rows, key=lambda row: row.entry.loss):
        best.setdefault((row.candidate.method, row.is_control, row.name in REFERENCES), row)
    return [*best.values(), *(row for row in rows if row.name == OURS)]


def line_of(row: Row, is_shown: bool, x_of: Callable[[Point], float]) -> Line:
    """Points at 0 are left out: the axis is logarithmic."""
    x, y, low, high = [], [], [], []
    for same in zip(*(run.curve for run in row.runs), strict=False):
        losses = [point.loss for point in same if point.loss is not None]
        where = statistics.fmean(map(x_of, same))
        if len(losses) == len(same) and where > 0:
            x.append(where)
            y.append(statistics.median(losses))
            low.append(min(losses))
            high.append(max(losses))
    dashes, width = "--" if row.is_control else "-", 2.6 if row.name == OURS else 1.2
    return Line(row.name, _colour(row), dashes, width, is_shown, x, y, low, high)


def _colour(row: Row) -> str:
    """Of a method, the same as in the pictures of ``simulate``; what others are measured against is grey."""
    if row.name in REFERENCES:
        return GREY
    return BLACK if row.is_ours else COLOURS[list(METHODS).index(row.candidate.method) % len(COLOURS)]


def _write(path: Path, lines: Sequence[Line], x_label: str, heading: tuple[str, str]) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 6.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    shown = [line for line in lines if line.is_shown]
    for line in lines:
        if not line.is_shown:
            axes.plot(line.x, line.y, **FAINT)
    for line in sorted(shown, key=lambda line: line.width):  # the widest on top
        axes.plot(line.x, line.y, line.dashes, color=line.colour, linewidth=line.width)
        axes.plot(line.x[-1:], line.y[-1:], "o", color=line.colour, markersize=2 + line.width)
        axes.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.12, linewidth=0)
    dress(axes, x_label, heading)
    _frame(axes, shown)
    named = (line for line in shown if line.y and math.isfinite(line.y[-1]))
    ends = [End(line.x[-1], line.y[-1], line.name, line.colour, is_bold=line.name == OURS) for line in named]
    label_ends(axes, ends, LABEL_GAP)
    return save(figure, path)


def _frame(axes: "Axes", lines: Sequence[Line]) -> None:
    """Leave out the first losses, where all methods are alike and far above everything else."""
    losses = [loss for line in lines for loss in line.y]
    ends = [line.y[-1] for line in lines if line.y]
    if not losses:
        return
    bottom = min(losses)
    top = max(*ends, bottom + TOP_SHARE * (max(losses) - bottom))
    margin = 0.03 * (top - bottom) or 0.1
    axes.set_ylim(bottom - margin, top + margin)
    inside = [x for line in lines for x, loss in zip(line.x, line.y, strict=True) if loss <= top]
    axes.set_xlim(min(inside) / 1.3, max(inside) * 1.1)
