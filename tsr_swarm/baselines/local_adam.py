"""Local Adam: weights and both moments are averaged every K_x steps.

Cheng and Glasgow, arXiv 2409.13155, Algorithm 1. Departures: Adam's bias correction, and decoupled weight decay; the
mean is weighted by the steps that each peer took. All state is shared: a peer that was absent goes on from the averaged
moments, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tsr_swarm.baselines.inner_optimizer import StackedOptimizer, numbers_of
from tsr_swarm.baselines.method import ActivePeers, ExchangeBytes, LocalMethod, averaged_floats
from tsr_swarm.baselines.settings import Settings


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
