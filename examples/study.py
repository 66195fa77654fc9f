"""The study behind the defaults: which method learns most from a byte. Runs go on where they were interrupted.

    python examples/study.py                 the search (160 steps, one seed), then the finalists (600 steps, 3 seeds)
    python examples/study.py --stage search  only that
    python examples/study.py --stage table   only write the tables and plots from what is done

Every finished run is a file in examples/results/study/runs, and is not run again. Tables: examples/results/study.md.
"""

import argparse
import sys
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from candidates import CORE, Candidate
from study_report import write_report
from studying.rows import best_run

from tsr_swarm.config.load import apply_overrides, run_config_from_mapping
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import SwarmError
from tsr_swarm.runtime.simulate.result import RunResult
from tsr_swarm.runtime.simulate.spec import RunSpec
from tsr_swarm.runtime.simulate.store import Store
from tsr_swarm.runtime.simulate.study import News, run_all

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "study"
PEERS = 8
SEARCH_STEPS, FINAL_STEPS = 160, 600
SEEDS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("all", "search", "finals", "table"), default="all")
    parser.add_argument("--jobs", type=int, default=2, help="processes, a torch thread each")
    options = parser.parse_args()
    store = Store(RESULTS)
    try:
        if options.stage in ("all", "search"):
            run_all([spec for c in CORE for spec in search_specs(c)], store, options.jobs, say)
        if options.stage in ("all", "finals"):
            run_all([spec for seed in SEEDS for spec in final_specs(store, seed)], store, options.jobs, say)
    finally:  # also of an interrupted study
        print(report(store, RESULTS))


def report(store: Store, folder: Path) -> Path:
    """Write what is done as tables and plots beside ``folder``, and return the page's path."""
    return write_report(
        {c.name: (c, _done(store, search_specs(c))) for c in CORE},
        {c.name: (c, _done(store, _finals_of(store, c))) for c in CORE if c.is_finalist},
        folder,
        seeds=len(SEEDS),
        k_x=_config([]).periods.k_x,
    )


def search_specs(candidate: Candidate) -> list[RunSpec]:
    """The short runs of a candidate, one a rate."""
    return [_spec(candidate, rate, 0, SEARCH_STEPS) for rate in candidate.rates]


def final_specs(store: Store, seed: int) -> list[RunSpec]:
    """The long run of every finalist whose search is done, at its best rate."""
    chosen = [(c, best_rate(store, c)) for c in CORE if c.is_finalist]
    return [_spec(c, rate, seed, FINAL_STEPS) for c, rate in chosen if rate is not None]


def best_rate(store: Store, candidate: Candidate) -> float | None:
    """The rate with the lowest loss in the search; None while the search is not done."""
    done = _done(store, search_specs(candidate))
    if len(done) < len(candidate.rates):
        return None
    return best_run(done).lr


def _finals_of(store: Store, candidate: Candidate) -> list[RunSpec]:
    rate = best_rate(store, candidate)
    return [] if rate is None else [_spec(candidate, rate, seed, FINAL_STEPS) for seed in SEEDS]


def _done(store: Store, specs: list[RunSpec]) -> list[RunResult]:
    return [result for spec in specs if (result := store.load(spec)) is not None]


def _spec(candidate: Candidate, rate: float, seed: int, steps: int) -> RunSpec:
    overrides = [*candidate.overrides, f"optimizer.lr={rate}", f"run.seed={seed}"]
    return RunSpec(
        method=candidate.method, config=_config(overrides), settings=candidate.settings, peers=PEERS, steps=steps
    )


def _config(overrides: list[str]) -> RunConfig:
    table = tomllib.loads((HERE / "study.toml").read_text("utf-8"))
    return run_config_from_mapping(apply_overrides(table, overrides))


def say(news: News) -> None:
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
