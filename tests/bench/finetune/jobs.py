"""Which runs a comparison is made of: a search of the rate of each method, then every seed at the best one. Pure."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.finetune import dataset
from tests.bench.finetune.methods import Method, spec_of
from tests.bench.study.tuning import rates_to_try
from tsr_swarm import __version__
from tsr_swarm.config.load import configure
from tsr_swarm.config.run import RunConfig
from tsr_swarm.simulate.run_spec import RunSpec

Run = Mapping[str, Any]  # one run's JSON document; "accuracy" is None where training diverged
SEARCH_SEED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run: everything that its result depends on."""

    method: str
    spec: RunSpec
    heldout: int
    tune: int = 0  # sentences to score on instead, of those that would be trained on

    @property
    def config(self) -> RunConfig:
        return self.spec.config

    @property
    def name(self) -> str:
        text = json.dumps(self.identity(), sort_keys=True).encode()
        return f"{self.method}-seed{self.spec.seed}-{hashlib.blake2b(text, digest_size=6).hexdigest()}"

    def identity(self) -> dict[str, Any]:
        """As JSON has it. A baseline's does not name what only ours reads."""
        sources = [dataset.MODEL.sha256, dataset.SENTENCES.sha256]
        shared = {"heldout": self.heldout, "shares": self.config.data.parts, "sources": sources, "version": __version__}
        return {**shared, **({"tune": self.tune} if self.tune else {}), **self.spec.identity()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is compared on what. ``done``, where it is asked for: the finished runs by name."""

    file: Mapping[str, Any]  # the run file, parsed; its optimizer.lr, if any, is every method's rate
    heldout: int  # sentences
    tune: int  # sentences that a search keeps from training, and scores on
    methods: Mapping[str, Method]

    @property
    def config(self) -> RunConfig:
        """What all methods have in common."""
        return configure(self.file)

    def search(self, method: str, done: Mapping[str, Run]) -> list[Job]:
        """The runs of a search, one a rate: those listed, and further ones where the best is at an edge."""

        def error_at(rate: float) -> float | None:
            run = done.get(self._search_job(method, rate).name)
            return None if run is None else error_of(run)

        rates = self._rates(method)
        return [self._search_job(method, rate) for rate in rates_to_try(rates, error_at)] if len(rates) > 1 else []

    def best_rate(self, method: str, done: Mapping[str, Run]) -> float | None:
        """The rate with the highest accuracy, the lowest of several such; None while the search is not done."""
        jobs = self.search(method, done)
        if not jobs:
            return self._rates(method)[0]
        if any(job.name not in done for job in jobs):
            return None
        return min(jobs, key=lambda job: error_of(done[job.name])).spec.lr

    def finals(self, method: str, seeds: Sequence[int], done: Mapping[str, Run]) -> list[Job]:
        """The run of every seed at the best rate; none while that is not known."""
        rate = self.best_rate(method, done)
        return [] if rate is None else [self._job(method, rate, seed) for seed in seeds]

    def next_job(self, methods: Sequence[str], seeds: Sequence[int], done: Mapping[str, Run]) -> Job | None:
        """The first run that is to be done: searches method by method, then all methods seed by seed."""
        searches = [job for method in methods for job in self.search(method, done)]
        finals = [job for seed in seeds for method in methods for job in self.finals(method, [seed], done)]
        return next((job for job in [*searches, *finals] if job.name not in done), None)

    def _rates(self, method: str) -> tuple[float, ...]:
        given = self.file.get("optimizer", {}).get("lr")
        return self.methods[method].rates if given is None else (given,)

    def _search_job(self, method: str, rate: float) -> Job:
        return self._job(method, rate, SEARCH_SEED, self.tune)

    def _job(self, method: str, rate: float, seed: int, tune: int = 0) -> Job:
        spec = spec_of(self.methods[method], self.file, rate, seed)
        return Job(method=method, spec=spec, heldout=self.heldout, tune=tune)


def error_of(run: Run) -> float:
    """The share of sentences that a run got wrong; infinite where it diverged."""
    return math.inf if run["accuracy"] is None else 1 - run["accuracy"]
