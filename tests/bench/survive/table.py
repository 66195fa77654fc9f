"""Finished runs, and the page that they add up to. Pure."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.bench.survive.checks import Outcome
from tests.bench.survive.scenarios import SCENARIOS
from tests.bench.tables import table

INTRODUCTION = """\
Each run is a swarm of real processes, a coordinator and four peers that can be dialled unless it says otherwise, with
rounds of about two seconds, on cores that others used too. Lost: committed rounds without all the work of every peer
that was up throughout, where a void shard loses everybody's; the work itself is kept and goes out later. Recovered:
from the fault until the next round was committed. Back: from the end of the fault until the node that it took down had
a round that was not committed yet then. Forks: rounds of which two nodes have different weights or chain hashes. A run
fails if it goes over a limit, does not end by itself, leaves a traceback in a log, or a living node lacks its last
round."""
HEAD = (
    "fault", "commit", "runs", "rounds lost: worst", "allowed", "seconds to recover: median", "worst", "allowed",
    "seconds to be back: median", "worst", "forks", "failed",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(Outcome):
    """A finished run. ``commit`` is the newest that changed the package; ``took`` is in seconds."""

    scenario: str
    seed: int
    date: str
    commit: str
    took: float


def report(rows: Sequence[Row], commit: str, header: str) -> str:
    """The page: each scenario at the newest commit at which it was run, and the count of all runs."""
    lines = ["# Real processes under faults", "", header, "", INTRODUCTION, "", *table(HEAD, _scenarios(rows))]
    failures = [
        f"\n{row.scenario}, seed {row.seed}: {'; '.join(row.violations)}"
        for row in rows
        if row.commit == commit and row.violations
    ]
    return "\n".join([*lines, "", _count(rows, commit), *failures, ""])


def _scenarios(rows: Sequence[Row]) -> Iterator[list[str]]:
    for name, scenario in SCENARIOS.items():
        all_runs = [row for row in rows if row.scenario == name]
        runs = [row for row in all_runs if row.commit == all_runs[-1].commit]
        if not runs:
            continue
        seconds = [each for row in runs for each in row.seconds]
        yield [
            scenario.description,
            runs[0].commit,
            str(len(runs)),
            str(max(len(row.lost) for row in runs)),
            str(scenario.max_lost),
            *_median_and_worst(seconds),
            f"{scenario.max_seconds:.0f}" if seconds else "-",
            *_median_and_worst([each for row in runs for each in row.back]),
            str(sum(row.forks for row in runs)),
            str(sum(bool(row.violations) for row in runs)),
        ]


def _median_and_worst(figures: Sequence[float]) -> tuple[str, str]:
    return (f"{statistics.median(figures):.1f}", f"{max(figures):.1f}") if figures else ("-", "-")


def _count(rows: Sequence[Row], commit: str) -> str:
    failed = [place for place, row in enumerate(rows) if row.violations]
    ours = [row for row in rows if row.commit == commit]
    since = len(rows) - 1 - failed[-1] if failed else len(rows)
    return (
        f"At this commit of the package ({commit}): {len(ours)} runs, {sum(bool(row.violations) for row in ours)} "
        f"failed. Over all {len({row.commit for row in rows})} commits: {len(rows)} runs, {len(failed)} failed; "
        f"{since} runs since the last failure."
    )
