"""The study behind the defaults: which method learns most from a byte. Runs go on where they were interrupted.

    python -m tests.bench.study  the search (160 steps, one seed), then the finalists (600 steps, 3 seeds)
    python -m tests.bench.study --stage search  only that
    python -m tests.bench.study --stage full    the second stage: a larger model, BPE text, unlike peers, every rival
    python -m tests.bench.study --stage table   only write the tables and plots of both from what is done

Every finished run is a file in examples/results/study/runs, or study-full/runs, and is not run again. Tables:
examples/results/study.md and study-full.md.
"""

import argparse
import sys
from pathlib import Path

from tests.bench.study.report import write_report
from tests.bench.study.stage import Stage
from tests.bench.study.stages import CORE_STAGE, FULL_STAGE
from tests.bench.tables import RESULTS
from tsr_swarm.errors import SwarmError
from tsr_swarm.simulate.result import ResultStore
from tsr_swarm.simulate.runner import Progress, run_all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("all", "search", "finals", "full", "table"), default="all")
    parser.add_argument("--jobs", type=int, default=2, help="processes, a torch thread each")
    options = parser.parse_args()
    if options.stage == "table":
        print(report(CORE_STAGE, RESULTS), report(FULL_STAGE, RESULTS), sep="\n")
        return
    stage = FULL_STAGE if options.stage == "full" else CORE_STAGE
    store = ResultStore(RESULTS / stage.name)
    try:
        if options.stage != "finals":
            run_all([spec for c in stage.candidates for spec in stage.search_specs(c)], store, options.jobs, say)
        if options.stage != "search":
            run_all([spec for seed in stage.seeds for spec in stage.final_specs(store, seed)], store, options.jobs, say)
    finally:  # also of an interrupted study
        print(report(stage, RESULTS))


def report(stage: Stage, results: Path) -> Path:
    """Write what is done as tables and plots into ``results``, where its runs are, and return the page's path."""
    store = ResultStore(results / stage.name)
    searched = {c.name: (c, stage.searched(store, c)) for c in stage.candidates}
    finals = {c.name: (c, stage.finished(store, c)) for c in stage.finalists}
    return write_report(stage, searched, finals, results)


def say(news: Progress) -> None:
    if news.finished is not None:
        loss = "no number" if news.finished.loss is None else f"{news.finished.loss:.3f}"
        left = "" if news.seconds_left is None else f", about {news.seconds_left / 60:.0f} min left"
        print(f"{news.done}/{news.total} {news.name}: {loss}{left}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped; the same command goes on with the runs that are not done.", file=sys.stderr)
        sys.exit(130)
    except SwarmError as error:
        sys.exit(str(error))
