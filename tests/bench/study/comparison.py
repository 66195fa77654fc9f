"""A candidate with its finished runs, and comparisons of two candidates: by seed, by bytes, by time. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from tests.bench.study.candidates import Candidate
from tsr_swarm.config.link import MBIT, Link, link_for
from tsr_swarm.plan.costs import MODEL_SIZES
from tsr_swarm.simulate.compare import Entry, loss_after
from tsr_swarm.simulate.result import RunResult
from tsr_swarm.simulate.run_spec import OWN
from tsr_swarm.train.llama import parameter_shapes

UP, DOWN, RTT = 20 * MBIT, 100 * MBIT, 0.05


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
    def label(self) -> str:
        return f"{self.name} (control)" if self.is_control else self.name

    @property
    def is_ours(self) -> bool:
        return self.candidate.method == OWN

    @property
    def is_control(self) -> bool:
        """A baseline's exchange around our inner optimizer: tells the exchange's effect from the optimizer's."""
        return self.candidate.settings.get("inner") == "muon"

    @property
    def entry(self) -> Entry:
        """All runs as one: medians and means over the seeds. There must be a run."""
        lr, rates = self.runs[0].lr, self.candidate.rates
        return Entry(method=self.candidate.method, settings=self.name, lr=lr, rates=rates, runs=self.runs)

    @property
    def bytes_total(self) -> float:
        """Wire bytes of one peer, sent and received, mean over the seeds."""
        return self.entry.sent + self.entry.received


def loss_of(run: RunResult) -> float:
    """Final held-out loss, nats a token; infinite for a run that diverged."""
    return math.inf if run.loss is None else run.loss


def best_run(runs: Sequence[RunResult]) -> RunResult:
    """The run with the lowest final loss, the first of equals."""
    return min(runs, key=loss_of)


def by_best_loss(rows: Sequence[Row]) -> list[Row]:
    """Sort by the lowest loss of any run, rows without a run last."""
    return sorted(rows, key=lambda row: (not row.runs, loss_of(best_run(row.runs)) if row.runs else 0.0))


def by_median_loss(rows: Sequence[Row]) -> list[Row]:
    """Sort by the median loss over the seeds, rows without a run last."""
    return sorted(rows, key=lambda row: (not row.runs, row.entry.loss if row.runs else 0.0))


def dense_bytes(run: RunResult, k_x: int) -> float:
    """Bytes, both ways, that averaging all weights in fp32 every ``k_x`` steps would move for one peer in this run."""
    return 2 * 4 * run.parameters * float(run.spec["steps"]) / k_x


def paired_differences(mine: Sequence[RunResult], theirs: Sequence[RunResult]) -> list[float]:
    """Final losses of ``mine`` minus ``theirs``, for every seed that both have, by seed.

    Infinite where one of them diverged, not a number where both did.
    """
    ours, others = ({run.seed: loss_of(run) for run in runs} for runs in (mine, theirs))
    return [ours[seed] - others[seed] for seed in sorted(ours.keys() & others.keys())]


class Matchup(NamedTuple):
    """A baseline's operating point, and the best of ours that moves no more bytes."""

    baseline: Row
    ours: Row | None  # None: nothing of ours is so small
    differences: list[float]  # ours minus the baseline's, by seed


def matchups(rows: Sequence[Row]) -> list[Matchup]:
    """One for each baseline with a run, the one that moves the fewest bytes first."""
    done = [row for row in rows if row.runs]
    ours = [row for row in done if row.is_ours]
    found = []
    for baseline in sorted((row for row in done if not row.is_ours), key=lambda row: row.bytes_total):
        fitting = [row for row in ours if row.bytes_total <= baseline.bytes_total]
        best = min(fitting, key=lambda row: row.entry.loss, default=None)
        differences = [] if best is None else paired_differences(best.runs, baseline.runs)
        found.append(Matchup(baseline, best, differences))
    return found


def home_link(parameters: int) -> Link:
    """The 60M shapes on 20 Mbit/s up and 100 Mbit/s down, where one dense fp32 exchange takes as long as 200 steps.

    A model of ``parameters`` numbers takes their part: the link is narrowed in proportion, so that its share of a dense
    exchange takes as long as that share of the large one. Shortening the steps instead would leave the round trips at
    their length: with 0.2 million parameters they would be most of the time, which no one would see at 60M.
    """
    large = sum(math.prod(shape) for shape in parameter_shapes(MODEL_SIZES["60M"].model).values())
    link = link_for(large, up=UP, down=DOWN, rtt=RTT, step_seconds=None)
    share = parameters / large
    return replace(link, up=link.up * share, down=link.down * share)


class AtTime(NamedTuple):
    """How far a run was after some time."""

    loss: float  # infinite: diverged
    steps: int


def at_time(run: RunResult, seconds: float, link: Link) -> AtTime:
    """State after ``seconds`` on ``link``, between two points of the curve; its end for a run that ended before."""
    if run.curve[-1].seconds(link) <= seconds:
        return AtTime(loss_of(run), run.curve[-1].step)
    loss = loss_after(run.curve, seconds, link)
    return AtTime(math.inf if loss is None else loss, _steps_after(run, seconds, link))


def _steps_after(run: RunResult, seconds: float, link: Link) -> int:
    for before, after in pairwise(run.curve):
        start, end = before.seconds(link), after.seconds(link)
        if start <= seconds < end:
            return before.step + int((after.step - before.step) * (seconds - start) / (end - start))
    return run.curve[-1].step
