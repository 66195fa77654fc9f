"""A candidate with its finished runs, and comparisons between two of them. Pure."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tests.bench.study.candidates import Candidate
from tsr_swarm.simulate.compare import Entry
from tsr_swarm.simulate.result import RunResult
from tsr_swarm.simulate.run_spec import OWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A candidate, which of its runs are done, and how many there are to be."""

    candidate: Candidate
    runs: tuple[RunResult, ...]
    wanted: int

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def is_ours(self) -> bool:
        return self.candidate.method == OWN

    @property
    def is_control(self) -> bool:
        """A rival's exchange around our inner optimizer: tells what the exchange does from what the optimizer does."""
        return self.candidate.settings.get("inner") == "muon"

    @property
    def entry(self) -> Entry:
        """All runs as one: medians and means over the seeds. There must be a run."""
        lr, rates = self.runs[0].lr, len(self.candidate.rates)
        return Entry(method=self.candidate.method, settings=self.name, lr=lr, rates=rates, runs=self.runs)

    @property
    def bytes_total(self) -> float:
        """Wire bytes of one peer, sent and received, mean over the seeds."""
        return self.entry.sent + self.entry.received


def loss_of(run: RunResult) -> float:
    """Final held-out loss, nats a token; infinite for a run that diverged."""
    return math.inf if run.loss is None else run.loss


def best_run(runs: Sequence[RunResult]) -> RunResult:
    """The one with the lowest final loss, the first of equals."""
    return min(runs, key=loss_of)


def dense_bytes(run: RunResult, k_x: int) -> float:
    """What averaging all weights in fp32 every ``k_x`` steps would move for one peer in as many steps, both ways."""
    return 2 * 4 * run.parameters * float(run.spec["steps"]) / k_x


def paired(mine: Sequence[RunResult], theirs: Sequence[RunResult]) -> list[float]:
    """Final losses of ``mine`` minus ``theirs``, for every seed that both have, by seed.

    Infinite where one of them diverged, not a number where both did.
    """
    ours, others = ({run.seed: loss_of(run) for run in runs} for runs in (mine, theirs))
    return [ours[seed] - others[seed] for seed in sorted(ours.keys() & others.keys())]


class Duel(NamedTuple):
    """A rival's operating point, and the best of ours that moves no more bytes."""

    rival: Row
    ours: Row | None  # None: nothing of ours is so small
    differences: list[float]  # ours minus the rival's, by seed


def duels(rows: Sequence[Row]) -> list[Duel]:
    """One for each rival with a run, the one that moves the fewest bytes first."""
    done = [row for row in rows if row.runs]
    rivals = sorted((row for row in done if not row.is_ours), key=lambda row: row.bytes_total)
    return [_duel(rival, [row for row in done if row.is_ours]) for rival in rivals]


def _duel(rival: Row, ours: Sequence[Row]) -> Duel:
    fitting = [row for row in ours if row.bytes_total <= rival.bytes_total]
    if not fitting:
        return Duel(rival, None, [])
    best = min(fitting, key=lambda row: row.entry.loss)
    return Duel(rival, best, paired(best.runs, rival.runs))


def middle(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lowest and highest."""
    return statistics.median(values), min(values), max(values)
