"""Loss against bytes and against time, as PNG: the best of each method, others faint. Needs the extra ``plots``."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tsr_swarm.baselines.registry import METHODS
from tsr_swarm.config.link import Link
from tsr_swarm.errors import RunError
from tsr_swarm.process.machine_limits import disk_errors
from tsr_swarm.simulate.compare import Entry, best_of_methods
from tsr_swarm.simulate.result import Point, RunResult
from tsr_swarm.simulate.run_spec import OWN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BYTES, TIME = "loss-by-bytes.png", "loss-by-time.png"
BLACK = "#000000"  # our own method
# Okabe and Ito (2008): colour-blind people can distinguish them. A method has the same colour in all pictures.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B8000", "#666666")
FAINT: dict[str, Any] = {"color": "#bbbbbb", "linewidth": 0.9, "zorder": 1}  # what is not the best of its method
LEADER = {"linewidth": 0.5, "alpha": 0.4}
LABEL_GAP = 0.042  # between two labels, as a share of the axis
UNITS = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
TOP_SHARE = 0.75  # of the range of losses: the first steps, alike for all methods, are cut off


class _Line(NamedTuple):
    label: str
    colour: str
    is_best: bool  # of its method
    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]


def write_plots(found: Sequence[Entry], link: Link, folder: Path) -> list[Path]:
    """Write both pictures and return their paths. Raises RunError, as without matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        raise RunError("Plots need matplotlib; install it with 'pip install tsr-swarm[plots]'.") from None
    except Exception as error:  # one that is damaged, or was built for another numpy
        raise RunError(f"Plots need matplotlib, which cannot be imported ({error}); install it again.") from error

    def megabytes(point: Point) -> float:
        return point.bytes_total / 1e6

    longest = max(entry.seconds(link) for entry in found)
    # the largest unit of which it has three or more
    unit, seconds = next(((unit, size) for unit, size in UNITS if longest >= 3 * size), UNITS[-1])

    def time(point: Point) -> float:
        return point.seconds(link) / seconds

    title = title_of([run for entry in found for run in entry.runs])
    is_faint = "grey: other settings of a method" if len(best_of_methods(found)) < len(found) else ""
    line = f"{link.up / 1e6:g} Mbit/s up, {link.down / 1e6:g} down, {link.step_seconds:.3g} s a step"
    return [
        _write(
            folder / BYTES,
            _lines(found, megabytes),
            "wire bytes of one peer, sent and received, MB",
            (title, is_faint),
        ),
        _write(
            folder / TIME,
            _lines(found, time),
            f"simulated time, {unit}",
            (title, "; ".join(filter(None, (line, is_faint)))),
        ),
    ]


def title_of(runs: Sequence[RunResult]) -> str:
    """Return what all ``runs`` have in common: the size of the model, peers, steps of each, tokens of all peers."""
    peers, steps = ("/".join(map(str, sorted({run.spec[key] for run in runs}))) for key in ("peers", "steps"))
    tokens = max(run.curve[-1].tokens for run in runs)
    return f"{runs[0].parameters / 1e6:.2g}M parameters, {peers} peers, {steps} steps, {tokens / 1e6:.2g}M tokens"


def _lines(found: Sequence[Entry], x_of: Callable[[Point], float]) -> list[_Line]:
    """Return each entry's median and range over its seeds, at the points that all of them have."""
    lines = []
    best = best_of_methods(found)
    for entry in sorted(found, key=lambda entry: entry.label):
        index = list(METHODS).index(entry.method) if entry.method != OWN else -1
        colour = COLOURS[index % len(COLOURS)] if index >= 0 else BLACK
        points = zip(*(run.curve for run in entry.runs), strict=False)
        x, y, low, high = [], [], [], []
        for same in points:
            losses = sorted(point.loss for point in same if point.loss is not None)
            where = sum(x_of(point) for point in same) / len(same)
            if len(losses) == len(same) and where > 0:
                x.append(where)
                y.append((losses[(len(losses) - 1) // 2] + losses[len(losses) // 2]) / 2)
                low.append(losses[0])
                high.append(losses[-1])
        if x:
            lines.append(_Line(entry.label, colour, entry in best, x, y, low, high))
    return lines


def _write(path: Path, lines: Sequence[_Line], x_label: str, heading: tuple[str, str]) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    best = [line for line in lines if line.is_best]
    for line in lines:
        if not line.is_best:
            axes.plot(line.x, line.y, **FAINT)
    for line in best:
        width = 2.4 if line.colour == BLACK else 1.6
        axes.plot(line.x, line.y, color=line.colour, linewidth=width, marker="o", markersize=2.5)
        axes.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.15, linewidth=0)
    dress(axes, x_label, heading, marks=(1.0, 2.0, 5.0))
    _frame(axes, best)
    label_ends(axes, [End(line.x[-1], line.y[-1], line.label, line.colour) for line in best])
    return save(figure, path)


def dress(axes: "Axes", x_label: str, heading: tuple[str, str], marks: tuple[float, ...] = (1.0,)) -> None:
    """Draw loss upwards, a logarithmic axis with ``marks`` in each decade, a light grid; title and note above."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=marks, numticks=20))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(x_label)
    axes.set_ylabel("held-out loss, nats a token")
    title, note = heading
    axes.set_title(f"{title}\n{note}" if note else title, loc="left", fontsize=9, color="#444444")
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save(figure: "Figure", path: Path) -> Path:
    """Write the picture. Raises RunError."""
    with disk_errors(f"{path} cannot be written", "name another folder"):
        figure.savefig(path)
    return path


def _frame(axes: "Axes", lines: Sequence[_Line]) -> None:
    """Leave out the first losses, where all methods are alike and far above everything else."""
    losses = [loss for line in lines for loss in line.y]
    if not losses:
        return
    bottom = min(losses)
    top = max(*(line.y[-1] for line in lines), bottom + TOP_SHARE * (max(losses) - bottom))
    margin = 0.05 * (top - bottom) or 0.1
    axes.set_ylim(bottom - margin, top + margin)
    inside = [where for line in lines for where, loss in zip(line.x, line.y, strict=True) if loss <= top]
    entered = [where for line in lines for where in _crossings(line, top + margin)]
    axes.set_xlim(min([*inside, *entered]) / 1.1, max(inside) * 1.1)


def _crossings(line: _Line, height: float) -> Iterator[float]:
    """Yield the x at which a line falls below ``height``: it is straight on an axis that is logarithmic in x."""
    for (x0, y0), (x1, y1) in pairwise(zip(line.x, line.y, strict=True)):
        if y0 > height >= y1:
            yield x0 * float((x1 / x0) ** ((y0 - height) / (y0 - y1)))


class End(NamedTuple):
    """Where a line ends, and what is written there."""

    x: float
    y: float
    label: str
    colour: str
    is_bold: bool = False


def label_ends(axes: "Axes", ends: Sequence[End], gap: float = LABEL_GAP) -> None:
    """Write each label at the right edge, at the height of its line's end, in its colour, with a thin leader to it."""
    bottom, top = axes.get_ylim()
    wanted = sorted(ends, key=lambda end: end.y)
    heights = spread([(end.y - bottom) / (top - bottom) for end in wanted], gap)
    for end, height in zip(wanted, heights, strict=True):
        axes.annotate(
            end.label,
            xy=(end.x, end.y),
            xytext=(1.02, height),
            textcoords="axes fraction",
            color=end.colour,
            fontsize=9,
            fontweight="bold" if end.is_bold else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": end.colour, "relpos": (0, 0.5), "shrinkA": 0} | LEADER,
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending ``heights`` as little as keeps them ``gap`` apart and, if they fit, between 0 and 1.

    Those that would touch share their middle.
    """
    groups: list[tuple[float, int]] = []  # middle, count
    for height in heights:
        groups.append(_inside(height, 1, gap))
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < gap * (groups[-1][1] + groups[-2][1]) / 2:
            (high, more), (low, count) = groups.pop(), groups.pop()
            groups.append(_inside((high * more + low * count) / (more + count), more + count, gap))
    return [middle + gap * (index - (count - 1) / 2) for middle, count in groups for index in range(count)]


def _inside(middle: float, count: int, gap: float) -> tuple[float, int]:
    half = min(0.5, gap * (count - 1) / 2)
    return min(max(middle, half), 1 - half), count
