"""The tables of the finalists: losses and bytes, and who wins at a rival's bytes. Pure."""

import math
from collections.abc import Sequence

from tests.bench.study import cells
from tests.bench.study.candidates import DENSE
from tests.bench.study.rows import Duel, Row, dense_bytes, duels, paired

DENSE_MUON = "dense averaging, Muon"
REFERENCES = (DENSE, DENSE_MUON)


def finalists(rows: Sequence[Row], k_x: int) -> list[str]:
    """Every finalist, by loss, and dense averaging in half the bytes."""
    head = (
        "method", "rate", "final loss", "MB up", "MB down", "MB in all", "below dense fp32",
        *(f"minus {name}" for name in REFERENCES),
    )  # fmt: skip
    by_name = {row.name: row for row in rows}
    lines = [_finalist(row, [by_name.get(name) for name in REFERENCES], k_x) for row in by_loss(rows)]
    return cells.table(head, [*lines, *_bf16(rows, k_x)])


def _finalist(row: Row, references: Sequence[Row | None], k_x: int) -> list[str]:
    if not row.runs:
        return [cells.name(row), *[cells.PENDING] * (6 + len(references))]
    entry = row.entry
    return [
        cells.name(row),
        f"{entry.lr:g}",
        cells.final_losses(row),
        *(cells.megabytes(count) for count in (entry.sent, entry.received, row.bytes_total)),
        cells.factor(dense_bytes(row.runs[0], k_x) / row.bytes_total),
        *(
            "-" if r is row else cells.differences(paired(row.runs, r.runs if r else ()), row.wanted)
            for r in references
        ),
    ]


def _bf16(rows: Sequence[Row], k_x: int) -> list[list[str]]:
    done = [row for row in rows if row.runs]
    if not done:
        return []
    half = dense_bytes(done[0].runs[0], k_x) / 4  # of each direction
    counts = [cells.megabytes(count) for count in (half, half, 2 * half)]
    return [["dense averaging in bf16 (bytes counted, not run)", "-", "-", *counts, cells.factor(2), "-", "-"]]


def operating_points(rows: Sequence[Row]) -> list[str]:
    """At each rival's bytes, the best of ours that moves no more; then, in words, every rival that wins."""
    head = ("rival", "its MB", "its loss", "ours", "MB", "loss", "ours minus rival", "lower loss")
    found = duels(rows)
    lines = cells.table(head, [_duel(duel) for duel in found])
    waiting = [row.name for row in rows if not row.is_ours and not row.runs]
    return [*lines, "", *_who_wins(found), *([f"Pending: {'; '.join(waiting)}."] if waiting else [])]


def _duel(duel: Duel) -> list[str]:
    rival, ours, differences = duel
    start = [cells.name(rival), cells.megabytes(rival.bytes_total), cells.final_losses(rival)]
    if ours is None:
        return [*start, "none so small", "-", "-", "-", "not comparable"]
    mine = [ours.name, cells.megabytes(ours.bytes_total), cells.final_losses(ours)]
    return [*start, *mine, cells.differences(differences, rival.wanted), verdict(duel)]


def verdict(duel: Duel) -> str:
    """Who has the lower loss, and whether with every seed. Infinite differences are of runs that diverged."""
    found = duel.differences
    if not found:
        return cells.PENDING
    if any(map(math.isnan, found)):
        return "neither: both diverged"
    ours = sum(difference < 0 for difference in found)
    if ours in (0, len(found)):
        winner = "ours" if ours else "**rival**" if any(found) else "equal"
        return cells.so_far(winner, len(found), duel.rival.wanted)
    winner = "ours" if sum(found) < 0 else "**rival**"
    return cells.so_far(f"{winner} on the mean, ours with {ours} of {len(found)} seeds", len(found), duel.rival.wanted)


def _who_wins(found: Sequence[Duel]) -> list[str]:
    lost = [duel for duel in found if verdict(duel).startswith("**")]
    said = [f"{cells.name(duel.rival)}, {cells.differences(duel.differences, duel.rival.wanted)}" for duel in lost]
    won = sum(verdict(duel).startswith("ours") for duel in found)
    small = [cells.name(duel.rival) for duel in found if duel.ours is None]
    lines = [f"Ours has the lower loss at {won} of {len(found)} operating points."] if found else []
    lines += [f"A rival has it at {len(lost)} (ours minus rival, nats): {'; '.join(said)}."] if lost else []
    lines += [f"Nothing of ours among the finalists moves as little as {'; '.join(small)}."] if small else []
    return lines


def by_loss(rows: Sequence[Row]) -> list[Row]:
    """The lowest median first, those without a run last."""
    return sorted(rows, key=lambda row: (not row.runs, row.entry.loss if row.runs else 0.0))
