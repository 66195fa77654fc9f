"""The page of the ladder: each arm's loss, bytes and distance from the reference by size of model."""

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.study.comparison import loss_of, paired_differences
from tests.bench.study.ladder import RATE_EXPONENT, Ladder, Rung
from tests.bench.study.stages import RunStore
from tests.bench.study.tables import PENDING, differences_text, losses_text, megabytes_text
from tests.bench.study.tuning import is_at_edge
from tests.bench.tables import header, table
from tsr_swarm.simulate.result import RunResult, write_text
from tsr_swarm.telemetry.text import seconds_text

CHANCE = 0.02  # of a loss: smaller changes of a distance are not told apart from chance
READING = f"""\
Distance: final held-out loss minus that of the reference with the same seed, nats a token; mean over the seeds, range \
in brackets. Trend: of the distance as a share of the reference's loss, from the smallest size done to the largest, \
because a nat a byte is not a nat a BPE token; it stays where the share changes by under {CHANCE:.0%}."""


def write_ladder(ladder: Ladder, store: RunStore, folder: Path) -> Path:
    """Write ``ladder.md`` into ``folder`` and return its path. Runs that are not done are shown as pending."""
    return write_text(folder / "ladder.md", "\n".join(_page(ladder, store)) + "\n")


def _page(ladder: Ladder, store: RunStore) -> Iterator[str]:
    done = list(store.results.values())
    seconds = sum(float(run.about.get("wall_seconds", 0)) for run in done)
    yield from ("# The ladder: does the distance from data-parallel training grow with the model?", "")
    yield from (header("python -m tests.bench.study ladder"), "")
    yield (
        f"{ladder.peers} peers. {len(done)} runs are done, {seconds_text(seconds)} of one core; each is a line of "
        f"`tests/bench/study/{ladder.runs}`. An arm's rate is tuned at the smallest size, over rates that are extended "
        "until the best has a worse neighbour on either side; at a larger size it is that rate times "
        f"(width / smallest width)^{RATE_EXPONENT:g}, for all arms alike."
    )
    yield from ("", "## Sizes", "", *_sizes(ladder))
    yield from ("", f"## Distance from {ladder.reference}", "", *_distances(ladder, store), "", READING)
    yield from ("", "## Loss and bytes", "", *_losses(ladder, store), "")
    yield "Loss: median over the seeds, range in brackets. MB: of one peer in the whole run, sent and received."
    yield from ("", "## Rates", "", *_rates(ladder, store))


def size_text(rung: Rung) -> str:
    return f"{rung.parameters / 1e6:.2g}M"


def _sizes(ladder: Ladder) -> list[str]:
    head = ("parameters", "width", "layers", "text", "tokens a parameter", "steps", "seeds", "matrix products")
    rows = []
    for rung in ladder.rungs:
        model, steps = rung.config().model, rung.steps(ladder.peers)
        data = rung.config().data
        tokens = steps * ladder.peers * data.batch_size * data.sequence_length
        rows.append(
            (
                size_text(rung),
                str(model.hidden_size),
                str(model.num_hidden_layers),
                f"{rung.vocabulary} BPE tokens" if rung.vocabulary else "bytes",
                f"{tokens / rung.parameters:.1f}",
                str(steps),
                str(len(rung.seeds)),
                "bfloat16" if rung.autocast else "float32",
            )
        )
    return table(head, rows)


def _distances(ladder: Ladder, store: RunStore) -> list[str]:
    rows = []
    for arm in ladder.arms:
        if arm.name == ladder.reference:
            continue
        found = [_distance(ladder, store, rung, arm.name) for rung in ladder.rungs]
        cells = [
            differences_text(values, len(rung.seeds)) if arm.name in rung.arms else "-"
            for rung, values in zip(ladder.rungs, found, strict=True)
        ]
        rows.append((arm.name, *cells, trend_text(_shares(ladder, store, found))))
    return table(("arm", *map(size_text, ladder.rungs), "trend"), rows)


def _distance(ladder: Ladder, store: RunStore, rung: Rung, name: str) -> list[float]:
    if name not in rung.arms:
        return []
    return paired_differences(*(ladder.finished(store, rung, each) for each in (name, ladder.reference)))


def _shares(ladder: Ladder, store: RunStore, found: Sequence[Sequence[float]]) -> list[float]:
    """Mean distances as shares of the reference's mean loss, of those sizes that are done."""
    shares = []
    for rung, values in zip(ladder.rungs, found, strict=True):
        if values:
            reference = map(loss_of, ladder.finished(store, rung, ladder.reference))
            shares.append(statistics.fmean(values) / statistics.fmean(reference))
    return shares


def trend_text(shares: Sequence[float]) -> str:
    """Say what becomes of a distance from the first size to the last of those done; shares of the reference's loss."""
    if len(shares) < 2:
        return PENDING
    if not all(map(math.isfinite, shares)):
        return "diverged"
    first, last = shares[0], shares[-1]
    word = "stays" if abs(last - first) < CHANCE else "grows" if last > first else "shrinks"
    return f"{word}: {first:+.1%} to {last:+.1%}"


def _losses(ladder: Ladder, store: RunStore) -> list[str]:
    head = ["arm", *(f"{what}, {size_text(rung)}" for rung in ladder.rungs for what in ("loss", "MB"))]
    rows = []
    for arm in ladder.arms:
        cells = [arm.name]
        for rung in ladder.rungs:
            runs = ladder.finished(store, rung, arm.name) if arm.name in rung.arms else ()
            cells += _loss_and_bytes(runs, len(rung.seeds)) if arm.name in rung.arms else ("-", "-")
        rows.append(cells)
    return table(head, rows)


def _loss_and_bytes(runs: tuple[RunResult, ...], wanted: int) -> tuple[str, str]:
    if not runs:
        return PENDING, PENDING
    moved = statistics.fmean(run.curve[-1].bytes_total for run in runs)
    return losses_text([loss_of(run) for run in runs], wanted), megabytes_text(moved)


def _rates(ladder: Ladder, store: RunStore) -> list[str]:
    rows = []
    for arm in ladder.arms:
        losses = {run.lr: loss_of(run) for run in store.load_all(ladder.search_specs(store, arm))}
        tried = ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in sorted(losses.items())) or PENDING
        chosen = [ladder.rate(store, rung, arm) if arm.name in rung.arms else None for rung in ladder.rungs]
        cells = ["-" if rate is None else f"{rate:g}" for rate in chosen]
        rows.append((arm.name, tried + (", best at an edge" if is_at_edge(losses) else ""), *cells))
    return table(("arm", "rates tried at the smallest size, with their loss", *map(size_text, ladder.rungs)), rows)
