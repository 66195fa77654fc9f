"""The study behind the defaults: which method learns most from a byte. Runs go on where they were interrupted.

    python -m tests.bench.study                  search (160 steps, one seed), then finalists (600 steps, 3 seeds)
    python -m tests.bench.study --stage search   only that
    python -m tests.bench.study --stage full     a larger model, BPE text, unlike peers, every baseline
    python -m tests.bench.study --stage table    only write the tables and plots of both from what is done

Every finished run is a line of tests/bench/study/core.jsonl or full.jsonl, and is not run again. Tables:
examples/results/study.md and study-full.md.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench.study.report import write_report
from tests.bench.study.stages import CORE_STAGE, FULL_STAGE, RunStore, Stage
from tests.bench.tables import RESULTS
from tsr_swarm.errors import SwarmError
from tsr_swarm.simulate.runner import Progress, run_all

HERE = Path(__file__).parent
PARTS = ("search", "finals")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("all", *PARTS, "full", "table"), default="all")
    parser.add_argument("--jobs", type=int, default=2, help="processes, a torch thread each")
    parser.add_argument("--runs", type=Path, default=HERE, help="folder of core.jsonl and full.jsonl")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the pages and plots")
    options = parser.parse_args(arguments)
    if options.stage == "table":
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
        if "search" in parts:
            run_all([spec for c in stage.candidates for spec in stage.search_specs(c)], store, jobs, progress)
        if "finals" in parts:
            run_all([spec for seed in stage.seeds for spec in stage.final_specs(store, seed)], store, jobs, progress)
    finally:
        print(write_report(stage, store, out))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped; the same command goes on with the runs that are not done.", file=sys.stderr)
        sys.exit(130)
    except SwarmError as error:
        sys.exit(str(error))
