"""Local Adam, which averages weights and moments together, and DES-LOC, which does so at periods of their own.

Local Adam: Cheng and Glasgow, arXiv 2409.13155, Algorithm 1. All state is shared: a peer that was absent goes on from
the averaged moments, too. DES-LOC: Iacob et al., arXiv 2505.22549, Algorithm 1 (Adam form), with the identity as outer
step, which is the proven case. There a state is averaged before a local step t with t mod K = 0, here after step t - 1:
the same sequence. A peer that was absent keeps its own moments until their next average. Departures of both: Adam's
bias correction and eps outside of the root, decoupled weight decay, a mean weighted by steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tsr_swarm.baselines.inner_optimizer import StackedOptimizer, numbers_of
from tsr_swarm.baselines.method import ActivePeers, ExchangeBytes, LocalMethod, Settings, averaged_floats
from tsr_swarm.optim.periods import moment_periods

AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalAdamSettings(Settings):
    """The settings of Local Adam: the optimizer and the period."""

    method: ClassVar[str] = "local-adam"


class LocalAdam(LocalMethod):
    """Local AdamW or Muon, all state averaged."""

    def __init__(self, weights: Mapping[str, Tensor], peers: int, settings: LocalAdamSettings) -> None:
        super().__init__(weights, peers, settings.k_x)
        self.inner: StackedOptimizer = StackedOptimizer(self.flat, peers, settings)

    def exchange(self, active: ActivePeers, step: int) -> ExchangeBytes:
        """Replace each state by its mean."""
        self.consensus.copy_(active.mean(self.local[active.rows]))
        for state in (*self.inner.first, *self.inner.second):
            state.copy_(active.mean(state[active.rows]))
        self.inner.share_counts()
        numbers = {
            "weights": self.flat.size,
            "first_moment": numbers_of(self.inner.first),
            "second_moment": numbers_of(self.inner.second),
        }
        return averaged_floats(numbers)


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
        """Return K_u and K_v in steps."""
        return moment_periods(self.k_u, self.k_v, self.k_x, self.inner, self.betas)


@dataclass(frozen=True, slots=True, kw_only=True)
class DesLocSettings(MomentPeriods):
    """The settings of DES-LOC: the optimizer and the periods."""

    method: ClassVar[str] = "des-loc"


class DesLoc(LocalMethod):
    """Desynchronised local AdamW or Muon."""

    def __init__(self, weights: Mapping[str, Tensor], peers: int, settings: DesLocSettings) -> None:
        super().__init__(weights, peers, settings.k_x)
        self.inner: StackedOptimizer = StackedOptimizer(self.flat, peers, settings)
        self._periods = settings.periods

    def exchange(self, active: ActivePeers, step: int) -> ExchangeBytes:
        """Average the weights, and the moments that are due after ``step`` steps."""
        self.consensus.copy_(active.mean(self.local[active.rows]))
        moments = average_moments(active, step, self._periods, self.inner.first, self.inner.second)
        return averaged_floats({"weights": self.flat.size, **moments})


def average_moments(
    active: ActivePeers, step: int, periods: tuple[int, int], first: Sequence[Tensor], second: Sequence[Tensor]
) -> dict[str, int]:
    """Average what of the ``first`` and ``second`` moments (N, numbers) is due after ``step`` steps, in place.

    Returns how many numbers of each are sent.
    """
    numbers = {}
    for kind, states, period in zip(("first_moment", "second_moment"), (first, second), periods, strict=True):
        if step % period == 0:
            for state in states:
                state[active.rows] = active.mean(state[active.rows])
            numbers[kind] = numbers_of(states)
    return numbers
