"""Finished runs as lines of JSON, and the table that they add up to. Pure but for the file of the lines."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.survive.scenarios import SCENARIOS

INTRODUCTION = """\
Each run is a swarm of real processes, a coordinator and four peers that can be dialled unless it says otherwise, with
rounds of about two seconds, on cores that others used too. Lost: rounds that stand without all the work of every peer
that was there and well throughout, where a void shard loses everybody's; the work itself is kept and goes out later.
Recovered: from the fault until the next round stood. Back: from the end of the fault until who was hurt had a round
that was not there yet then. Forks: rounds of which two nodes have different weights or chain hashes. A run fails if it
goes over a limit, does not end by itself, leaves a traceback in a log, or anybody alive lacks its last round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A finished run. ``commit`` is the newest that changed the package; lists are of all faults, or hurts, in it."""

    scenario: str
    seed: int
    date: str
    commit: str
    took: float
    rounds: int
    lost: Sequence[int]
    seconds: Sequence[float]
    back: Sequence[float]
    forks: int
    violations: Sequence[str]


def read_rows(path: Path) -> list[Row]:
    """All finished runs, the oldest first."""
    if not path.exists():
        return []
    return [Row(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def append_row(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def report(rows: Sequence[Row], commit: str, header: str) -> str:
    """The table, of each scenario at the newest commit at which it was run, and the count of all runs."""
    ours = [row for row in rows if row.commit == commit]
    by_name = {name: _newest([row for row in rows if row.scenario == name]) for name in SCENARIOS}
    return "\n".join(
        [
            "# Real processes that things happen to",
            "",
            header,
            "",
            INTRODUCTION,
            "",
            *_table(by_name),
            "",
            *_count(rows, commit),
            *_failures(ours),
            "",
        ]
    )


def _newest(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.commit == rows[-1].commit]


def _table(by_name: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    yield (
        "| fault | commit | runs | rounds lost: worst | allowed | seconds to recover: median | worst | allowed "
        "| seconds to be back: median | worst | forks | failed |"
    )
    yield "|---" * 12 + "|"
    for name, rows in by_name.items():
        if not rows:
            continue
        scenario = SCENARIOS[name]
        seconds = [each for row in rows for each in row.seconds]
        back = [each for row in rows for each in row.back]
        cells = [
            scenario.what,
            rows[0].commit,
            str(len(rows)),
            str(max(len(row.lost) for row in rows)),
            str(scenario.lost),
            *_spread(seconds),
            f"{scenario.seconds:.0f}" if seconds else "-",
            *_spread(back),
            str(sum(row.forks for row in rows)),
            str(sum(bool(row.violations) for row in rows)),
        ]
        yield "| " + " | ".join(cells) + " |"


def _spread(figures: Sequence[float]) -> tuple[str, str]:
    """Median and worst."""
    return (f"{statistics.median(figures):.1f}", f"{max(figures):.1f}") if figures else ("-", "-")


def _count(rows: Sequence[Row], commit: str) -> Iterator[str]:
    failed = [place for place, row in enumerate(rows) if row.violations]
    ours = [row for row in rows if row.commit == commit]
    since = len(rows) - 1 - failed[-1] if failed else len(rows)
    bad = sum(bool(row.violations) for row in ours)
    yield (
        f"At this commit of the package ({commit}): {len(ours)} runs, {bad} failed. "
        f"Over all {len({row.commit for row in rows})} commits: {len(rows)} runs, {len(failed)} failed; "
        f"{since} runs since the last failure."
    )


def _failures(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if row.violations:
            yield f"\n{row.scenario}, seed {row.seed}: {'; '.join(row.violations)}"
