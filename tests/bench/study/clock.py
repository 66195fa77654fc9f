"""The table of losses at the same time, on the line for which the project is made. Pure."""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from tests.bench.study import cells
from tests.bench.study.candidates import OURS
from tests.bench.study.rows import Row, loss_of
from tsr_swarm.config.link import MBIT, Link, link_for
from tsr_swarm.plan.presets import PRESETS
from tsr_swarm.simulate.compare import loss_after
from tsr_swarm.simulate.result import RunResult
from tsr_swarm.telemetry.text import seconds_text
from tsr_swarm.train.llama import parameter_shapes

UP, DOWN, RTT = 20 * MBIT, 100 * MBIT, 0.05


def home_link(parameters: int) -> Link:
    """The 60M shapes on 20 Mbit/s up and 100 Mbit/s down, where one dense fp32 exchange takes as long as 200 steps.

    A model of ``parameters`` numbers is put in their place by narrowing the line in proportion, so that its share of
    a dense exchange takes as long as that share of the large one. Narrowing the steps instead would leave the round
    trips at their length: with 0.2 million parameters they would be most of the time, which no one would see at 60M.
    """
    large = sum(math.prod(shape) for shape in parameter_shapes(PRESETS["60M"].model).values())
    link = link_for(large, up=UP, down=DOWN, rtt=RTT, step_seconds=None)
    share = parameters / large
    return replace(link, up=link.up * share, down=link.down * share)


class AtTime(NamedTuple):
    """How far a run was after some time."""

    loss: float  # infinite: diverged
    steps: int


def at_time(run: RunResult, seconds: float, link: Link) -> AtTime:
    """After ``seconds`` on ``link``, between two points of the curve; its end for a run that ended before."""
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


def equal_time(rows: Sequence[Row]) -> list[str]:
    """All finalists at the moment at which ours has done its last step."""
    ours = next((row for row in rows if row.name == OURS), None)
    if ours is None or not ours.runs:
        return [f"Pending: the time is that of '{OURS}', which is not done."]
    link = home_link(ours.runs[0].parameters)
    seconds = ours.entry.seconds(link)
    reached = {row.name: {run.seed: at_time(run, seconds, link) for run in row.runs} for row in rows}
    done = sorted((row for row in rows if row.runs), key=lambda row: _median(reached[row.name].values()))
    head = ("method", f"loss after {seconds_text(seconds)}", f"minus {OURS}", "steps done", "time of all steps")
    lines = [_line(row, reached[row.name], reached[OURS], link) for row in done]
    lines += [[cells.name(row), *[cells.PENDING] * 4] for row in rows if not row.runs]
    return [*cells.table(head, lines), "", *_reading(ours, link)]


def _line(row: Row, mine: Mapping[int, AtTime], ours: Mapping[int, AtTime], link: Link) -> list[str]:
    to_ours = [mine[seed].loss - ours[seed].loss for seed in sorted(mine.keys() & ours.keys())]
    return [
        cells.name(row),
        cells.losses([state.loss for state in mine.values()], row.wanted),
        "-" if row.name == OURS else cells.differences(to_ours, row.wanted),
        f"{statistics.fmean(state.steps for state in mine.values()):.0f} of {row.runs[0].spec['steps']}",
        seconds_text(row.entry.seconds(link)),
    ]


def _reading(ours: Row, link: Link) -> Iterator[str]:
    yield (
        f"The time is that of all steps of '{OURS}'. Line: {UP / MBIT:g} Mbit/s up, {DOWN / MBIT:g} down, "
        f"{1e3 * RTT:g} ms a round trip, {link.step_seconds:.2f} s a local step; nothing is sent while a peer trains. "
        "These are the 60M shapes, where one dense fp32 exchange takes as long as 200 local steps: a byte of this "
        f"small model is taken for {UP / link.up:.0f}, so that its dense exchange takes as long. "
        "All runs have the learning rate's schedule of all their steps: one that is cut off early has not come down "
        "from its high rate, and one made for fewer steps would end lower."
    )


def _median(states: Iterable[AtTime]) -> float:
    return statistics.median(state.loss for state in states)
