"""DiLoCo: peers train alone, and an outer optimizer uses their mean displacement as a gradient.

Douillard et al., arXiv 2311.08105, Algorithm 1, with outer Nesterov (rate 0.7, momentum 0.9), or plain averaging
(McMahan et al., arXiv 1602.05629, FedAvg). Displacements of 16 bits are OpenDiLoCo's (arXiv 2407.07852, there float16);
fewer are in channel.py: ``inner = "muon"`` with 2 or 3 bits is MuLoCo (arXiv 2505.23725). Departures: a mean weighted
by steps. Moments and residual are private: an absent peer keeps its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tsr_swarm.baselines.channel import MeanChannel, require_width
from tsr_swarm.baselines.inner_optimizer import StackedOptimizer
from tsr_swarm.baselines.method import ActivePeers, ExchangeBytes, LocalMethod, Settings

PUBLISHED_RATE = {"nesterov": 0.7, "average": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class DiLoCoSettings(Settings):
    """The outer step, and the bits of a number on the wire."""

    method: ClassVar[str] = "diloco"
    outer: str = "nesterov"  # nesterov | average
    outer_lr: float = 0.0  # 0: as published, 0.7 for nesterov and 1 for average
    outer_momentum: float = 0.9  # nesterov's
    bits: int = 32  # of a number, up and down

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        self.require(self.outer in PUBLISHED_RATE, "outer", '"nesterov" or "average"')
        self.require(0 <= self.outer_lr <= 10, "outer_lr", "0 (as published) to 10")
        self.require(0 <= self.outer_momentum < 1, "outer_momentum", "from 0 to below 1")
        require_width(self)


class DiLoCo(LocalMethod):
    """Local AdamW or Muon with an outer step."""

    def __init__(self, weights: Mapping[str, Tensor], peers: int, settings: DiLoCoSettings) -> None:
        super().__init__(weights, peers, settings.k_x)
        self.inner: StackedOptimizer = StackedOptimizer(self.flat, peers, settings)
        self.channel = MeanChannel(self.flat, peers, settings.bits)
        self._rate = settings.outer_lr or PUBLISHED_RATE[settings.outer]
        self._momentum = settings.outer_momentum if settings.outer == "nesterov" else 0.0
        self._velocity = torch.zeros(self.flat.size)

    def exchange(self, active: ActivePeers, step: int) -> ExchangeBytes:
        """Take one outer step along the published mean displacement."""
        gradient, up, down = self.channel.mean(self.displacements(active), active)
        if self._momentum:  # v = mu v + g;  W <- W - lr (g + mu v)
            self._velocity.mul_(self._momentum).add_(gradient)
            gradient = gradient.add(self._velocity, alpha=self._momentum)
        self.consensus.sub_(gradient, alpha=self._rate)
        return ExchangeBytes({"displacement": up}, {"displacement": down})
