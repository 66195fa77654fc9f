"""Which variant of a method was best, and how the methods compare. Pure."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tsr_swarm.config.link import Link
from tsr_swarm.simulate.result import Point, RunResult

_NONE: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A method with one choice of settings, at the best of the rates it was run at."""

    method: str
    settings: str  # what distinguishes it from other entries of its method, "" for the only one
    preset: str = ""  # the name of all its settings, if it has one
    lr: float
    rates: tuple[float, ...]  # that were tried
    runs: tuple[RunResult, ...]  # one a seed, by seed

    @property
    def label(self) -> str:
        return self.preset or (f"{self.method} ({self.settings})" if self.settings else self.method)

    @property
    def untuned(self) -> str:
        """Why a better rate may lie elsewhere, "" if the best has a worse neighbour on either side."""
        if len(self.rates) == 1:
            return f"only {self.lr:g} tried"
        edges = {min(self.rates): "lowest", max(self.rates): "highest"}
        return f"{self.lr:g} is the {edges[self.lr]} tried" if self.lr in edges else ""

    @property
    def losses(self) -> tuple[float, ...]:
        """Final losses, ascending; a run that diverged counts as infinite."""
        return tuple(sorted(math.inf if run.loss is None else run.loss for run in self.runs))

    @property
    def loss(self) -> float:
        """Median over the seeds."""
        return statistics.median(self.losses)

    @property
    def dense_bytes(self) -> float:
        """Bytes of one peer, up and down, of fp32 data-parallel training of the same steps."""
        run = self.runs[0]
        return 2 * 4 * run.parameters * run.curve[-1].step

    @property
    def period(self) -> int:
        return self.runs[0].period

    @property
    def sent(self) -> float:
        return statistics.fmean(run.curve[-1].bytes_sent for run in self.runs)

    @property
    def received(self) -> float:
        return statistics.fmean(run.curve[-1].bytes_received for run in self.runs)

    def seconds(self, link: Link) -> float:
        return statistics.fmean(run.curve[-1].seconds(link) for run in self.runs)

    def loss_after(self, seconds: float, link: Link) -> float | None:
        """Median loss after ``seconds`` on ``link``; None for runs that ended before."""
        found = [loss_after(run.curve, seconds, link) for run in self.runs]
        known = [loss for loss in found if loss is not None]
        return statistics.median(known) if len(known) == len(found) else None


def entries(results: Sequence[RunResult], presets: Mapping[str, str] = _NONE) -> list[Entry]:
    """Return an entry for each method and settings, ordered by loss, each at its best rate.

    That is the rate with the lowest median of final losses over the seeds. ``presets``: what runs are called, by name.
    """
    variants: dict[str, dict[float, list[RunResult]]] = defaultdict(lambda: defaultdict(list))
    for result in {result.name: result for result in results}.values():
        variants[repr(sorted(_variant(result).items()))][result.lr].append(result)
    firsts = [next(iter(rates.values()))[0] for rates in variants.values()]
    called = [presets.get(first.name, "") for first in firsts]
    others = [_variant(first) for first, preset in zip(firsts, called, strict=True) if not preset]
    found = [
        _best(rates, "" if preset else _setting_text(_variant(first), others), preset)
        for rates, first, preset in zip(variants.values(), firsts, called, strict=True)
    ]
    return sorted(found, key=lambda entry: (entry.loss, entry.label))


def best_of_methods(found: Sequence[Entry]) -> list[Entry]:
    """Return the entry of the lowest loss of each method, in the order of ``found``, as ``entries`` sorts them."""
    return list({entry.method: entry for entry in reversed(found)}.values())[::-1]


def untuned_text(found: Sequence[Entry]) -> str:
    """Return a sentence that names the entries whose rate is not tuned, "" if all are."""
    named = [f"{entry.label} ({entry.untuned})" for entry in found if entry.untuned]
    return f"Rates are not tuned, and a better loss may lie beyond: {'; '.join(named)}." if named else ""


def loss_after(curve: Sequence[Point], seconds: float, link: Link) -> float | None:
    """Return the loss after ``seconds`` on ``link``, linear in log time between two points; None past the end."""
    for before, after in pairwise(curve):
        start, end = before.seconds(link), after.seconds(link)
        if start <= seconds <= end * (1 + 1e-12) and before.loss is not None and after.loss is not None:
            # the first point is at 0, which has no logarithm
            share = seconds / end if start <= 0 else math.log(seconds / start) / math.log(end / start)
            return before.loss + min(1.0, share) * (after.loss - before.loss)
    return None


def _best(rates: Mapping[float, list[RunResult]], settings: str, preset: str) -> Entry:
    tried = []
    for lr, runs in rates.items():
        ordered = tuple(sorted(runs, key=lambda run: run.seed))
        method = runs[0].method
        tried.append(Entry(method=method, settings=settings, preset=preset, lr=lr, rates=tuple(rates), runs=ordered))
    return min(tried, key=lambda entry: (entry.loss, entry.lr))


def _variant(result: RunResult) -> dict[str, Any]:
    """Return all of a spec but rate and seed, each value by its dotted key."""
    return {key: value for key, value in _flat(result.spec).items() if key not in ("optimizer.lr", "seed")}


def _setting_text(spec: Mapping[str, Any], variants: Sequence[Mapping[str, Any]]) -> str:
    """Return what distinguishes a variant from the others of its method, "" if nothing does."""
    others = [other for other in variants if other["method"] == spec["method"]]
    differing = [key for key in spec if any(other.get(key) != spec[key] for other in others)]
    return ", ".join(f"{key.rpartition('.')[2]} {value_text(spec[key])}" for key in differing)


def value_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flat(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in spec.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
