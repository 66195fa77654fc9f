"""Many runs: those that are on disk are read, the others are simulated and kept as soon as each is done."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tsr_swarm.simulate.engine import check
from tsr_swarm.simulate.result import RunResult
from tsr_swarm.simulate.result_store import ResultStore
from tsr_swarm.simulate.run_spec import RunSpec
from tsr_swarm.simulate.worker_pool import run_side_by_side
from tsr_swarm.train.corpus import Warn, ignore, once


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a study is."""

    name: str  # the run that went on
    step: int  # of it
    finished: RunResult | None = None
    done: int  # runs that are finished, those found on disk included
    total: int
    seconds_left: float | None  # estimate; None before there is anything to go by


def run_all(
    specs: Sequence[RunSpec],
    store: ResultStore,
    jobs: int = 1,
    progress: Callable[[Progress], None] = lambda news: None,
    warn: Warn = ignore,
) -> list[RunResult]:
    """The result of every spec, in their order. A spec that is named twice is run once.

    Interrupted at any moment, the same call goes on with the runs that were not finished. ``jobs`` processes of one
    torch thread each; a script that asks for more than one needs the usual ``if __name__ == "__main__"``.
    ``warn`` hears once what of the text could not be read. Raises ConfigError, before anything is run, for a spec that
    cannot be.
    """
    wanted = {spec.name: spec for spec in specs}
    results = {name: result for name, spec in wanted.items() if (result := store.load(spec)) is not None}
    missing = [spec for name, spec in wanted.items() if name not in results]
    for spec in missing:
        check(spec)
    estimate = Estimate(missing, time.monotonic())

    def tell(name: str, step: int, finished: RunResult | None = None) -> None:
        estimate.saw(name, step)
        left = estimate.seconds_left(time.monotonic())
        done, total = len(results), len(wanted)
        progress(Progress(name=name, step=step, finished=finished, done=done, total=total, seconds_left=left))

    for result in run_side_by_side(missing, jobs, tell, once(warn)):
        store.save(result)
        results[result.name] = result
        tell(result.name, wanted[result.name].steps, result)
    return [results[spec.name] for spec in specs]


class Estimate:
    """Time left, from the share of all local steps of all peers that is done."""

    def __init__(self, specs: Sequence[RunSpec], now: float) -> None:
        self._peers = {spec.name: spec.peers for spec in specs}
        self._steps = dict.fromkeys(self._peers, 0)
        self._total = sum(spec.peers * spec.steps for spec in specs)
        self._started = now

    def saw(self, name: str, step: int) -> None:
        """The run ``name`` has done ``step`` steps."""
        self._steps[name] = step

    def seconds_left(self, now: float) -> float | None:
        done = sum(self._peers[name] * step for name, step in self._steps.items())
        return (now - self._started) * (self._total - done) / done if done else None
