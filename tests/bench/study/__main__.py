"""The study behind the defaults: which method learns most from a byte. Runs go on where they were interrupted.

    python -m tests.bench.study           search (160 steps, one seed), then finalists (600 steps, 3 seeds)
    python -m tests.bench.study search    only that
    python -m tests.bench.study full      a larger model, BPE text, unlike peers, every baseline
    python -m tests.bench.study ladder    three sizes of model, each method's distance from data-parallel training
    python -m tests.bench.study table     only write the pages and plots of all from what is done

A search tries further rates until no method is best at an edge. Every finished run is a line of core.jsonl, full.jsonl
or ladder.jsonl in tests/bench/study, and is not run again. Pages: study.md, study-full.md and ladder.md in
examples/results.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench.study.ladder import LADDER, Ladder
from tests.bench.study.ladder_page import write_ladder
from tests.bench.study.report import write_report
from tests.bench.study.stages import CORE_STAGE, FULL_STAGE, RunStore, Stage
from tests.bench.tables import RESULTS
from tsr_swarm.errors import SwarmError
from tsr_swarm.simulate.runner import Progress, run_all

HERE = Path(__file__).parent
PARTS = ("search", "finals")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("all", *PARTS, "full", "ladder", "table"), default="all", nargs="?")
    parser.add_argument("--jobs", type=int, default=2, help="processes, a torch thread each")
    parser.add_argument("--runs", type=Path, default=HERE, help="folder of core.jsonl, full.jsonl and ladder.jsonl")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the pages and plots")
    options = parser.parse_args(arguments)
    if options.stage in ("ladder", "table"):
        store = RunStore(options.runs / LADDER.runs)
        if options.stage == "ladder":
            run_ladder(LADDER, store, options.out, options.jobs)
            return
        print(write_ladder(LADDER, store, options.out))
        for stage in (CORE_STAGE, FULL_STAGE):
            print(write_report(stage, RunStore(options.runs / stage.runs), options.out))
        return
    stage = FULL_STAGE if options.stage == "full" else CORE_STAGE
    parts = (options.stage,) if options.stage in PARTS else PARTS
    run_stage(stage, RunStore(options.runs / stage.runs), options.out, parts, options.jobs)


def print_progress(news: Progress) -> None:
    if news.finished is not None:
        loss = "no number" if news.finished.loss is None else f"{news.finished.loss:.3f}"
        left = "" if news.seconds_left is None else f", about {news.seconds_left / 60:.0f} min left"
        print(f"{news.done}/{news.total} {news.name}: {loss}{left}", file=sys.stderr, flush=True)


def run_stage(
    stage: Stage,
    store: RunStore,
    out: Path,
    parts: Sequence[str] = PARTS,
    jobs: int = 1,
    progress: Callable[[Progress], None] = print_progress,
) -> None:
    """Do the runs that ``store`` lacks, then write the page, also of an interrupted study."""
    try:
        while "search" in parts and (specs := stage.missing_searches(store)):
            run_all(specs, store, jobs, progress)
        if "finals" in parts:
            run_all([spec for seed in stage.seeds for spec in stage.final_specs(store, seed)], store, jobs, progress)
    finally:
        print(write_report(stage, store, out))


def run_ladder(
    ladder: Ladder,
    store: RunStore,
    out: Path,
    jobs: int = 1,
    progress: Callable[[Progress], None] = print_progress,
) -> None:
    """Tune every arm at the smallest size, do the runs that ``store`` lacks, and write the page."""
    try:
        while specs := ladder.missing(store):
            run_all(specs, store, jobs, progress)
    finally:
        print(write_ladder(ladder, store, out))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped; the same command goes on with the runs that are not done.", file=sys.stderr)
        sys.exit(130)
    except SwarmError as error:
        sys.exit(str(error))
