"""Local Adam: weights and both moments are averaged every K_x steps.

Cheng and Glasgow, arXiv 2409.13155, Algorithm 1. Departures: Adam's bias correction, and decoupled weight decay; the
mean is weighted by the steps that a peer took, which is plain where nobody is late. All state is shared: who was away
goes on from the averaged moments, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tsr_swarm.baselines.inner_optimizer import StackedOptimizer, numbers_of
from tsr_swarm.baselines.method import FLOAT_BYTES, ActivePeers, ExchangeBytes, LocalMethod, both_ways
from tsr_swarm.baselines.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalAdamSettings(Settings):
    """Nothing but the optimizer and the period."""

    method: ClassVar[str] = "local-adam"


class LocalAdam(LocalMethod):
    """Local AdamW or Muon, all state averaged."""

    def __init__(self, weights: Mapping[str, Tensor], peers: int, settings: LocalAdamSettings) -> None:
        super().__init__(weights, peers, settings.k_x)
        self.inner: StackedOptimizer = StackedOptimizer(self.flat, peers, settings)

    def exchange(self, present: ActivePeers, step: int) -> ExchangeBytes:
        """Each state becomes its mean."""
        self.consensus.copy_(present.mean(self.local[present.rows]))
        for state in (*self.inner.first, *self.inner.second):
            state.copy_(present.mean(state[present.rows]))
        self.inner.share_counts()
        numbers = {
            "weights": self.flat.size,
            "first_moment": numbers_of(self.inner.first),
            "second_moment": numbers_of(self.inner.second),
        }
        return both_ways({kind: FLOAT_BYTES * count for kind, count in numbers.items()})
