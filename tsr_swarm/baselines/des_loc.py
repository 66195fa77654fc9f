"""DES-LOC: weights, first and second moments are averaged at periods of their own.

Iacob et al., arXiv 2505.22549, Algorithm 1 (Adam form), with the identity as outer step, which is the proven case.
There a state is averaged before a local step t with t mod K = 0, here after the step before it: the same sequence.
Departures: Adam's bias correction and eps outside of the root, decoupled weight decay, a mean weighted by steps. A peer
that was away keeps its own moments until their next average.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tsr_swarm.baselines.inner_optimizer import StackedOptimizer, numbers_of
from tsr_swarm.baselines.method import FLOAT_BYTES, ActivePeers, ExchangeBytes, LocalMethod, both_ways
from tsr_swarm.baselines.settings import Settings
from tsr_swarm.optim.periods import moment_periods

AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentPeriods(Settings):
    """Periods K_u of first and K_v of second moments: multiples of k_x, or "auto" for the half-life of each."""

    k_u: int | str = AUTO
    k_v: int | str = AUTO

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        for key in ("k_u", "k_v"):
            value = getattr(self, key)
            is_legal = value == AUTO or (isinstance(value, int) and value > 0 and value % self.k_x == 0)
            self.require(is_legal, key, f'a multiple of k_x = {self.k_x}, or "auto"')

    @property
    def periods(self) -> tuple[int, int]:
        """K_u and K_v in steps."""
        return moment_periods(self.k_u, self.k_v, self.k_x, self.inner, self.betas)


@dataclass(frozen=True, slots=True, kw_only=True)
class DesLocSettings(MomentPeriods):
    """Nothing but the optimizer and the periods."""

    method: ClassVar[str] = "des-loc"


class DesLoc(LocalMethod):
    """Desynchronised local AdamW or Muon."""

    def __init__(self, weights: Mapping[str, Tensor], peers: int, settings: DesLocSettings) -> None:
        super().__init__(weights, peers, settings.k_x)
        self.inner: StackedOptimizer = StackedOptimizer(self.flat, peers, settings)
        self._k_u, self._k_v = settings.periods

    def exchange(self, present: ActivePeers, step: int) -> ExchangeBytes:
        """Average the weights, and what moments are due after ``step`` steps."""
        self.consensus.copy_(present.mean(self.local[present.rows]))
        numbers = {"weights": self.flat.size}
        moments = {"first_moment": (self.inner.first, self._k_u), "second_moment": (self.inner.second, self._k_v)}
        for kind, (states, period) in moments.items():
            if step % period == 0:
                for state in states:
                    state[present.rows] = present.mean(state[present.rows])
                numbers[kind] = numbers_of(states)
        return both_ways({kind: FLOAT_BYTES * count for kind, count in numbers.items()})
