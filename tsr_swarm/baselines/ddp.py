"""Data-parallel training: the mean gradient of all peers at every step, and one optimizer.

Li et al., PyTorch Distributed (arXiv 2006.15704); the gradient travels whole, as float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tsr_swarm.baselines.inner_optimizer import StackedOptimizer
from tsr_swarm.baselines.method import ActivePeers, ExchangeBytes, GradientMethod, averaged_floats
from tsr_swarm.baselines.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class DDPSettings(Settings):
    """The settings of data-parallel training: the optimizer."""

    method: ClassVar[str] = "ddp"
    k_x: int = 1

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        self.require_every_step()


class DDP(GradientMethod):
    """Data-parallel AdamW or Muon."""

    def __init__(self, weights: Mapping[str, Tensor], peers: int, settings: DDPSettings) -> None:
        super().__init__(weights, peers)
        self._inner = StackedOptimizer(self.flat, 1, settings)

    def update(self, active: ActivePeers, lr: float) -> ExchangeBytes:
        """Step along the mean gradient: W <- W - lr AdamW(g)."""
        mean = active.mean(self.gradients[active.rows])
        self._inner.step(0, self.weights, self.flat.views(mean), lr)
        return averaged_floats({"gradient": self.flat.size})
