"""The tables of the search: every candidate at every rate, and what each change to ours does. Pure."""

from collections.abc import Iterator, Mapping, Sequence

from tests.bench.study import cells
from tests.bench.study.candidates import OURS
from tests.bench.study.rows import Row, best_run, dense_bytes, loss_of
from tsr_swarm.simulate.result import RunResult


def search(rows: Sequence[Row], k_x: int) -> list[str]:
    """All candidates, the lowest loss at any of their rates first."""
    rates = sorted({rate for row in rows for rate in row.candidate.rates})
    head = ("method", *(f"rate {rate:g}" for rate in rates), "MB in all", "below dense fp32")
    ordered = sorted(rows, key=lambda row: (not row.runs, loss_of(best_run(row.runs)) if row.runs else 0.0))
    return [*cells.table(head, [_line(row, rates, k_x) for row in ordered]), "", *_edges(rows)]


def _line(row: Row, rates: Sequence[float], k_x: int) -> list[str]:
    by_rate = _by_rate(row)
    best = best_run(row.runs).lr if row.runs else None
    losses = [_loss(row, rate, by_rate.get(rate), rate == best) for rate in rates]
    if not row.runs:
        return [cells.name(row), *losses, cells.PENDING, cells.PENDING]
    total = best_run(row.runs).curve[-1].bytes_total
    dense = dense_bytes(row.runs[0], k_x)
    return [cells.name(row), *losses, cells.megabytes(total), cells.factor(dense / total)]


def _loss(row: Row, rate: float, run: RunResult | None, is_best: bool) -> str:
    if rate not in row.candidate.rates:
        return "-"
    if run is None:
        return cells.PENDING
    return f"**{cells.loss(loss_of(run))}**" if is_best else cells.loss(loss_of(run))


def _edges(rows: Sequence[Row]) -> Iterator[str]:
    """Where the best rate is the lowest or highest tried, a better one may lie beyond."""
    several = [row for row in rows if 1 < len(row.runs) == row.wanted]
    at_edge = [f"{row.name} {best:g}" for row in several if (best := best_run(row.runs).lr) in _ends(row)]
    if at_edge:
        yield f"Best at the lowest or highest of its rates, so that a better one may lie beyond: {'; '.join(at_edge)}."


def _ends(row: Row) -> tuple[float, float]:
    return min(row.candidate.rates), max(row.candidate.rates)


def ablation(rows: Sequence[Row]) -> list[str]:
    """What each change to ours does to its loss and bytes: at the same rate, and the best rates of both."""
    ours = next((row for row in rows if row.name == OURS), None)
    if ours is None or not ours.runs:
        return [f"Pending: {OURS} is not done."]
    head = ("variant", "changes", "minus ours, same rate", "minus ours, best of each", "MB in all", "bytes / ours")
    variants = [row for row in rows if row.is_ours and row is not ours]
    ordered = sorted(variants, key=lambda row: (not row.runs, loss_of(best_run(row.runs)) if row.runs else 0.0))
    return cells.table(head, [_variant(row, ours) for row in ordered])


def _variant(row: Row, ours: Row) -> list[str]:
    start = [row.name, ", ".join(f"`{change}`" for change in row.candidate.overrides)]
    if not row.runs:
        return [*start, *[cells.PENDING] * 4]
    best, best_of_ours = best_run(row.runs), best_run(ours.runs)
    steps_alike = _inner(best) == _inner(best_of_ours)  # a rate of adam says nothing of the same rate of muon
    same = _by_rate(ours).get(best.lr) if steps_alike else None
    return [
        *start,
        "-" if same is None else cells.differences([loss_of(best) - loss_of(same)], 1),
        cells.differences([loss_of(best) - loss_of(best_of_ours)], 1),
        cells.megabytes(best.curve[-1].bytes_total),
        f"{best.curve[-1].bytes_total / best_of_ours.curve[-1].bytes_total:.2f}",
    ]


def _inner(run: RunResult) -> str:
    return str(run.spec["optimizer"]["inner"])


def _by_rate(row: Row) -> Mapping[float, RunResult]:
    return {run.lr: run for run in row.runs}
