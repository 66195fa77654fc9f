"""A stage of the study: short runs of every candidate at each of its rates, then long ones of some at their best."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.study.candidates import Candidate
from tests.bench.study.rows import best_run
from tsr_swarm.config.load import apply_overrides, run_config_from_mapping
from tsr_swarm.config.run import RunConfig
from tsr_swarm.simulate.heterogeneity import Heterogeneity
from tsr_swarm.simulate.result import ResultStore, RunResult
from tsr_swarm.simulate.run_spec import RunSpec

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What is run, in which order and setting, and under which name it is kept and told of."""

    name: str  # of the folder of its runs, of its page and of its pictures, all in the same folder
    title: str  # of the page
    command: str  # that runs it
    setting: str  # the run file in examples/
    notes: str  # written by hand for the page; the file in examples/
    notes_title: str
    candidates: tuple[Candidate, ...]
    search_steps: int
    final_steps: int
    seeds: tuple[int, ...] = (0, 1, 2)  # of the long runs; the short ones have the first
    peers: int = 8
    heterogeneity: Heterogeneity = field(default_factory=Heterogeneity)

    @property
    def finalists(self) -> tuple[Candidate, ...]:
        return tuple(candidate for candidate in self.candidates if candidate.is_finalist)

    def config(self, *overrides: str) -> RunConfig:
        table = tomllib.loads((HERE / self.setting).read_text("utf-8"))
        return run_config_from_mapping(apply_overrides(table, overrides))

    def search_specs(self, candidate: Candidate) -> list[RunSpec]:
        """The short runs of a candidate, one a rate."""
        return [self._spec(candidate, rate, self.seeds[0], self.search_steps) for rate in candidate.rates]

    def final_specs(self, store: ResultStore, seed: int) -> list[RunSpec]:
        """The long run of every finalist whose search is done, at its best rate."""
        return [spec for candidate in self.finalists for spec in self._finals(store, candidate, (seed,))]

    def best_rate(self, store: ResultStore, candidate: Candidate) -> float | None:
        """The rate with the lowest loss in the search; None while the search is not done."""
        done = self.searched(store, candidate)
        return best_run(done).lr if len(done) == len(candidate.rates) else None

    def searched(self, store: ResultStore, candidate: Candidate) -> list[RunResult]:
        """The short runs that are done."""
        return list(_done(store, self.search_specs(candidate)))

    def finished(self, store: ResultStore, candidate: Candidate) -> list[RunResult]:
        """The long runs that are done."""
        return list(_done(store, self._finals(store, candidate, self.seeds)))

    def _finals(self, store: ResultStore, candidate: Candidate, seeds: tuple[int, ...]) -> list[RunSpec]:
        rate = self.best_rate(store, candidate)
        return [] if rate is None else [self._spec(candidate, rate, seed, self.final_steps) for seed in seeds]

    def _spec(self, candidate: Candidate, rate: float, seed: int, steps: int) -> RunSpec:
        return RunSpec(
            method=candidate.method,
            config=self.config(*candidate.overrides, f"optimizer.lr={rate}", f"run.seed={seed}"),
            settings=candidate.settings,
            peers=self.peers,
            steps=steps,
            heterogeneity=self.heterogeneity,
        )


def _done(store: ResultStore, specs: list[RunSpec]) -> Iterator[RunResult]:
    return (result for spec in specs if (result := store.load(spec)) is not None)
