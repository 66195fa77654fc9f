"""The two stages of the study, and where their finished runs are kept.

A stage has short runs of every candidate at each of its rates, then long ones of some at their best. The first stage
compares many variants in a small setting, the second ours and every baseline in a harder one.
"""

from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.json_lines import JsonLines
from tests.bench.study.candidates import CORE, FULL, Candidate, read_setting
from tests.bench.study.comparison import best_run, loss_of
from tests.bench.study.tuning import rates_to_try
from tsr_swarm.config.run import RunConfig
from tsr_swarm.simulate.heterogeneity import Heterogeneity
from tsr_swarm.simulate.result import RunResult
from tsr_swarm.simulate.run_spec import RunSpec


class RunStore:
    """The finished runs of a stage, a line of JSON each. Stands in for ``ResultStore``, which has a file for each."""

    def __init__(self, path: Path) -> None:
        """Raises RunError for a line that is not JSON."""
        self._lines = JsonLines(path)
        results = map(RunResult.from_json, self._lines.documents)
        self.results = {result.name: result for result in results}

    def load(self, spec: RunSpec) -> RunResult | None:
        """Return the result of ``spec``, if it has been run."""
        return self.results.get(spec.name)

    def load_all(self, specs: list[RunSpec]) -> tuple[RunResult, ...]:
        """Return the results of those specs that have been run."""
        return tuple(result for spec in specs if (result := self.load(spec)) is not None)

    def loss(self, spec: RunSpec) -> float | None:
        """Return the final loss of ``spec``, infinite if it diverged; None if it has not been run."""
        result = self.load(spec)
        return None if result is None else loss_of(result)

    def save(self, result: RunResult) -> None:
        self._lines.append(result.to_json())
        self.results[result.name] = result


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What is run, in which order and setting, and under which name it is kept and reported."""

    name: str  # of its page and of its pictures
    runs: str  # file of its finished runs
    title: str  # of the page
    command: str  # that runs it
    setting: str  # run file
    notes: str  # file of text for the page that is written by hand
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

    def config(self, *overrides: str, is_preset: bool = False) -> RunConfig:
        return read_setting(self.setting, overrides, is_bare=is_preset)

    def search_specs(self, store: RunStore, candidate: Candidate) -> list[RunSpec]:
        """The short runs of a candidate, one a rate: those it lists, and further ones where the best is at an edge."""

        def spec_at(rate: float) -> RunSpec:
            return self._spec(candidate, rate, self.seeds[0], self.search_steps)

        rates = rates_to_try(candidate.rates, lambda rate: store.loss(spec_at(rate)))
        return [spec_at(rate) for rate in rates]

    def missing_searches(self, store: RunStore) -> list[RunSpec]:
        """The short runs that are to be done next; more may follow from them."""
        return [spec for c in self.candidates for spec in self.search_specs(store, c) if store.load(spec) is None]

    def final_specs(self, store: RunStore, seed: int) -> list[RunSpec]:
        """The long run of every finalist whose search is done, at its best rate."""
        return [spec for candidate in self.finalists for spec in self._finals(store, candidate, (seed,))]

    def best_rate(self, store: RunStore, candidate: Candidate) -> float | None:
        """The rate with the lowest loss in the search; None while one of the listed rates is not done."""
        done = self.searched(store, candidate)
        return best_run(done).lr if {run.lr for run in done} >= set(candidate.rates) else None

    def searched(self, store: RunStore, candidate: Candidate) -> tuple[RunResult, ...]:
        """The short runs that are done."""
        return store.load_all(self.search_specs(store, candidate))

    def finished(self, store: RunStore, candidate: Candidate) -> tuple[RunResult, ...]:
        """The long runs that are done."""
        return store.load_all(self._finals(store, candidate, self.seeds))

    def _finals(self, store: RunStore, candidate: Candidate, seeds: tuple[int, ...]) -> list[RunSpec]:
        rate = self.best_rate(store, candidate)
        return [] if rate is None else [self._spec(candidate, rate, seed, self.final_steps) for seed in seeds]

    def _spec(self, candidate: Candidate, rate: float, seed: int, steps: int) -> RunSpec:
        """A run of about ``steps``: of the multiple of its period that is nearest."""
        overrides = *candidate.overrides, f"optimizer.lr={rate}", f"run.seed={seed}"
        config = self.config(*overrides, is_preset=candidate.is_preset)
        period = candidate.settings.get("k_x", config.periods.k_x)
        return RunSpec(
            method=candidate.method,
            config=config,
            settings=candidate.settings,
            peers=self.peers,
            steps=period * max(1, round(steps / period)),
            heterogeneity=self.heterogeneity,
        )


CORE_STAGE = Stage(
    name="study",
    runs="core.jsonl",
    title="The study: which method learns most from a byte",
    command="python -m tests.bench.study",
    setting="study.toml",
    notes="study_notes.md",
    notes_title="Chosen defaults",
    candidates=CORE,
    search_steps=160,
    final_steps=600,
)
FULL_STAGE = Stage(
    name="study-full",
    runs="full.jsonl",
    title="The study, second stage: a larger model, BPE text, and a kind of text for each peer",
    command="python -m tests.bench.study full",
    setting="study-full.toml",
    notes="study_full_notes.md",
    notes_title="What it says of the first stage",
    candidates=FULL,
    search_steps=120,
    final_steps=400,
    heterogeneity=Heterogeneity(heterogeneous=True, vocabulary=1024),
)
