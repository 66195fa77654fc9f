"""Cells and rows of Markdown tables. A cell of runs that are not done says so. Pure."""

import math
from collections.abc import Iterable, Sequence

from tests.bench.study.rows import Row, loss_of, middle

PENDING = "pending"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, numbers as text."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)]


def so_far(text: str, done: int, wanted: int) -> str:
    """``text``, and of how many seeds it is where some are still to come."""
    return text if done >= wanted else f"{text}, {done} of {wanted} seeds" if done else PENDING


def name(row: Row) -> str:
    return f"{row.name} (control)" if row.is_control else row.name


def loss(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "diverged"


def losses(values: Sequence[float], wanted: int) -> str:
    """Median, and the range where there is more than one."""
    if not values:
        return PENDING
    median, low, high = middle(values)
    text = loss(median) if len(values) == 1 else f"{loss(median)} ({loss(low)} to {loss(high)})"
    return so_far(text, len(values), wanted)


def final_losses(row: Row) -> str:
    return losses([loss_of(run) for run in row.runs], row.wanted)


def differences(values: Sequence[float], wanted: int) -> str:
    """Mean of paired differences, and their range where there is more than one."""
    if not values:
        return PENDING
    if not all(map(math.isfinite, values)):
        return so_far("diverged", len(values), wanted)
    mean = f"{sum(values) / len(values):+.3f}"
    text = mean if len(values) == 1 else f"{mean} ({min(values):+.3f} to {max(values):+.3f})"
    return so_far(text, len(values), wanted)


def megabytes(count: float) -> str:
    """Three digits."""
    return f"{count / 1e6:.0f}" if count >= 99.5e6 else f"{count / 1e6:.3g}"


def factor(number: float) -> str:
    """``174x``, ``4.0x``, ``0.05x``."""
    return f"{number:.0f}x" if number >= 9.95 else f"{number:.1f}x" if number >= 0.995 else f"{number:.2g}x"
