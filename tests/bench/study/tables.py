"""The tables of a stage as lines of Markdown. A cell of runs that are not done says so. Pure."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from tests.bench.study.candidates import DENSE, DENSE_MUON, OURS
from tests.bench.study.comparison import (
    DOWN,
    RTT,
    UP,
    AtTime,
    Matchup,
    Row,
    at_time,
    best_run,
    by_best_loss,
    by_median_loss,
    dense_bytes,
    home_link,
    loss_of,
    matchups,
    paired_differences,
)
from tests.bench.study.tuning import is_at_edge
from tests.bench.tables import table
from tsr_swarm.config.link import MBIT, Link
from tsr_swarm.simulate.result import RunResult
from tsr_swarm.telemetry.text import seconds_text

PENDING = "pending"
REFERENCES = (DENSE, DENSE_MUON)

# --- cells ------------------------------------------------------------------------------------------------------------


def with_seed_count(text: str, done: int, wanted: int) -> str:
    """Add to ``text`` of how many seeds it is where some are still to come."""
    return text if done >= wanted else f"{text}, {done} of {wanted} seeds" if done else PENDING


def loss_text(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "diverged"


def losses_text(values: Sequence[float], wanted: int) -> str:
    """Median, and the range where there is more than one."""
    if not values:
        return PENDING
    text = loss_text(statistics.median(values))
    if len(values) > 1:
        text += f" ({loss_text(min(values))} to {loss_text(max(values))})"
    return with_seed_count(text, len(values), wanted)


def final_losses_text(row: Row) -> str:
    return losses_text([loss_of(run) for run in row.runs], row.wanted)


def differences_text(values: Sequence[float], wanted: int) -> str:
    """Mean of paired differences, and their range where there is more than one."""
    if not values:
        return PENDING
    if not all(map(math.isfinite, values)):
        return with_seed_count("diverged", len(values), wanted)
    mean = f"{sum(values) / len(values):+.3f}"
    text = mean if len(values) == 1 else f"{mean} ({min(values):+.3f} to {max(values):+.3f})"
    return with_seed_count(text, len(values), wanted)


def megabytes_text(count: float) -> str:
    """Three digits."""
    return f"{count / 1e6:.0f}" if count >= 99.5e6 else f"{count / 1e6:.3g}"


def factor_text(number: float) -> str:
    """``174x``, ``4.0x``, ``0.05x``."""
    return f"{number:.0f}x" if number >= 9.95 else f"{number:.1f}x" if number >= 0.995 else f"{number:.2g}x"


# --- finalists --------------------------------------------------------------------------------------------------------


def finalists(rows: Sequence[Row], k_x: int) -> list[str]:
    """Every finalist, by loss, and dense averaging in half the bytes."""
    head = (
        "method", "rate", "final loss", "MB up", "MB down", "MB in all", "below dense fp32",
        *(f"minus {name}" for name in REFERENCES),
    )  # fmt: skip
    by_name = {row.name: row for row in rows}
    references = [by_name.get(name) for name in REFERENCES]
    lines = [_finalist(row, references, k_x) for row in by_median_loss(rows)]
    return table(head, [*lines, *_bf16(rows, k_x)])


def _finalist(row: Row, references: Sequence[Row | None], k_x: int) -> list[str]:
    if not row.runs:
        return [row.label, *[PENDING] * (6 + len(references))]
    entry = row.entry
    return [
        row.label,
        f"{entry.lr:g}",
        final_losses_text(row),
        *(megabytes_text(count) for count in (entry.sent, entry.received, row.bytes_total)),
        factor_text(dense_bytes(row.runs[0], k_x) / row.bytes_total),
        *(
            "-" if r is row else differences_text(paired_differences(row.runs, r.runs if r else ()), row.wanted)
            for r in references
        ),
    ]


def _bf16(rows: Sequence[Row], k_x: int) -> list[list[str]]:
    done = [row for row in rows if row.runs]
    if not done:
        return []
    half = dense_bytes(done[0].runs[0], k_x) / 4  # of each direction
    counts = [megabytes_text(count) for count in (half, half, 2 * half)]
    return [["dense averaging in bf16 (bytes counted, not run)", "-", "-", *counts, factor_text(2), "-", "-"]]


# --- ours at the bytes of each baseline -------------------------------------------------------------------------------


def operating_points(rows: Sequence[Row]) -> list[str]:
    """At each baseline's bytes, the best of ours that moves no more; then, in words, every baseline that wins."""
    head = ("rival", "its MB", "its loss", "ours", "MB", "loss", "ours minus rival", "lower loss")
    found = matchups(rows)
    lines = table(head, map(_operating_point, found))
    waiting = [row.name for row in rows if not row.is_ours and not row.runs]
    return [*lines, "", *_who_wins(found), *([f"Pending: {'; '.join(waiting)}."] if waiting else [])]


def _operating_point(found: Matchup) -> list[str]:
    baseline, ours, differences = found
    start = [baseline.label, megabytes_text(baseline.bytes_total), final_losses_text(baseline)]
    if ours is None:
        return [*start, "none so small", "-", "-", "-", "not comparable"]
    mine = [ours.name, megabytes_text(ours.bytes_total), final_losses_text(ours)]
    return [*start, *mine, differences_text(differences, baseline.wanted), winner_text(found)]


def winner_text(found: Matchup) -> str:
    """Who has the lower loss, and whether with every seed. Infinite differences are of runs that diverged."""
    differences = found.differences
    if not differences:
        return PENDING
    if any(map(math.isnan, differences)):
        return "neither: both diverged"
    count, ours = len(differences), sum(difference < 0 for difference in differences)
    if ours in (0, count):
        winner = "ours" if ours else "**rival**" if any(differences) else "equal"
    else:
        winner = f"{'ours' if sum(differences) < 0 else '**rival**'} on the mean, ours with {ours} of {count} seeds"
    return with_seed_count(winner, count, found.baseline.wanted)


def _who_wins(found: Sequence[Matchup]) -> list[str]:
    lost = [each for each in found if winner_text(each).startswith("**")]
    named = [f"{each.baseline.label}, {differences_text(each.differences, each.baseline.wanted)}" for each in lost]
    won = sum(winner_text(each).startswith("ours") for each in found)
    small = [each.baseline.label for each in found if each.ours is None]
    lines = [f"Ours has the lower loss at {won} of {len(found)} operating points."] if found else []
    lines += [f"A rival has it at {len(lost)} (ours minus rival, nats): {'; '.join(named)}."] if lost else []
    lines += [f"Nothing of ours among the finalists moves as little as {'; '.join(small)}."] if small else []
    return lines


# --- the same time on a home link -------------------------------------------------------------------------------------


def equal_time(rows: Sequence[Row]) -> list[str]:
    """All finalists at the moment at which ours has done its last step."""
    ours = next((row for row in rows if row.name == OURS), None)
    if ours is None or not ours.runs:
        return [f"Pending: the time is that of '{OURS}', which is not done."]
    link = home_link(ours.runs[0].parameters)
    seconds = ours.entry.seconds(link)
    reached = {row.name: {run.seed: at_time(run, seconds, link) for run in row.runs} for row in rows}

    def median(row: Row) -> float:
        return statistics.median(state.loss for state in reached[row.name].values())

    done = sorted((row for row in rows if row.runs), key=median)
    head = ("method", f"loss after {seconds_text(seconds)}", f"minus {OURS}", "steps done", "time of all steps")
    lines = [_at_equal_time(row, reached[row.name], reached[OURS], link) for row in done]
    lines += [[row.label, *[PENDING] * 4] for row in rows if not row.runs]
    return [*table(head, lines), "", _link_text(link)]


def _at_equal_time(row: Row, mine: Mapping[int, AtTime], ours: Mapping[int, AtTime], link: Link) -> list[str]:
    to_ours = [mine[seed].loss - ours[seed].loss for seed in sorted(mine.keys() & ours.keys())]
    return [
        row.label,
        losses_text([state.loss for state in mine.values()], row.wanted),
        "-" if row.name == OURS else differences_text(to_ours, row.wanted),
        f"{statistics.fmean(state.steps for state in mine.values()):.0f} of {row.runs[0].spec['steps']}",
        seconds_text(row.entry.seconds(link)),
    ]


def _link_text(link: Link) -> str:
    return (
        f"The time is that of all steps of '{OURS}'. Line: {UP / MBIT:g} Mbit/s up, {DOWN / MBIT:g} down, "
        f"{1e3 * RTT:g} ms a round trip, {link.step_seconds:.2f} s a local step; nothing is sent while a peer trains. "
        "These are the 60M shapes, where one dense fp32 exchange takes as long as 200 local steps: a byte of this "
        f"small model is taken for {UP / link.up:.0f}, so that its dense exchange takes as long. "
        "All runs have the learning rate's schedule of all their steps: one that is cut off early has not come down "
        "from its high rate, and one made for fewer steps would end lower."
    )


# --- the search -------------------------------------------------------------------------------------------------------


def search(rows: Sequence[Row], k_x: int) -> list[str]:
    """All candidates at every rate, the lowest loss at any of their rates first."""
    rates = sorted({rate for row in rows for rate in (*row.candidate.rates, *(run.lr for run in row.runs))})
    head = ("method", *(f"rate {rate:g}" for rate in rates), "MB in all", "below dense fp32")
    return [*table(head, [_searched(row, rates, k_x) for row in by_best_loss(rows)]), "", *_edges(rows)]


def _searched(row: Row, rates: Sequence[float], k_x: int) -> list[str]:
    by_rate = {run.lr: run for run in row.runs}
    best = best_run(row.runs) if row.runs else None
    losses = []
    for rate in rates:
        if rate in by_rate:
            loss = loss_text(loss_of(by_rate[rate]))
            losses.append(f"**{loss}**" if by_rate[rate] is best else loss)
        else:
            losses.append(PENDING if rate in row.candidate.rates else "-")
    if best is None:
        return [row.label, *losses, PENDING, PENDING]
    total = best.curve[-1].bytes_total
    return [row.label, *losses, megabytes_text(total), factor_text(dense_bytes(row.runs[0], k_x) / total)]


def _edges(rows: Sequence[Row]) -> Iterator[str]:
    """Name the rows whose best rate is the lowest or highest tried: a better one may lie beyond."""
    listed = [row for row in rows if {run.lr for run in row.runs} >= set(row.candidate.rates)]
    at_edge = [
        f"{row.name} {best_run(row.runs).lr:g}"
        for row in listed
        if is_at_edge({run.lr: loss_of(run) for run in row.runs})
    ]
    if at_edge:
        yield f"Best at the lowest or highest of its rates, so that a better one may lie beyond: {'; '.join(at_edge)}."


def ablation(rows: Sequence[Row]) -> list[str]:
    """What each change to ours does to its loss and bytes: at the same rate, and the best rates of both."""
    ours = next((row for row in rows if row.name == OURS), None)
    if ours is None or not ours.runs:
        return [f"Pending: {OURS} is not done."]
    head = ("variant", "changes", "minus ours, same rate", "minus ours, best of each", "MB in all", "bytes / ours")
    variants = [row for row in rows if row.is_ours and row is not ours]
    return table(head, [_variant(row, ours) for row in by_best_loss(variants)])


def _variant(row: Row, ours: Row) -> list[str]:
    start = [row.name, ", ".join(f"`{change}`" for change in row.candidate.overrides)]
    if not row.runs:
        return [*start, *[PENDING] * 4]
    best, best_of_ours = best_run(row.runs), best_run(ours.runs)
    steps_alike = _inner(best) == _inner(best_of_ours)  # a rate of adam says nothing of the same rate of muon
    same = {run.lr: run for run in ours.runs}.get(best.lr) if steps_alike else None
    return [
        *start,
        "-" if same is None else differences_text([loss_of(best) - loss_of(same)], 1),
        differences_text([loss_of(best) - loss_of(best_of_ours)], 1),
        megabytes_text(best.curve[-1].bytes_total),
        f"{best.curve[-1].bytes_total / best_of_ours.curve[-1].bytes_total:.2f}",
    ]


def _inner(run: RunResult) -> str:
    return str(run.spec["optimizer"]["inner"])
