"""DiLoCo: peers train alone, and an outer optimizer takes their mean displacement for a gradient.

Douillard et al., arXiv 2311.08105, Algorithm 1, with outer Nesterov (rate 0.7, momentum 0.9), or plain averaging
(McMahan et al., arXiv 1602.05629, FedAvg). Displacements of 16 bits are OpenDiLoCo's (arXiv 2407.07852, there float16);
of 8 and 4 bits Streaming DiLoCo's and MuLoCo's idea (arXiv 2501.18512, 2505.23725), here with integers and a scale a
row, error feedback at each peer, and the mean published at the same bits by a reducer with a residual of its own.
Departures: a mean weighted by steps. Moments and residual are private and wait for a peer that is away.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tsr_swarm.baselines.active_peers import ActivePeers
from tsr_swarm.baselines.base import LocalMethod
from tsr_swarm.baselines.dense_channel import WIDTHS, DenseChannel
from tsr_swarm.baselines.inner_optimizer import StackedOptimizer
from tsr_swarm.baselines.method import ExchangeBytes
from tsr_swarm.baselines.settings import Settings

PUBLISHED_RATE = {"nesterov": 0.7, "average": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class DiLoCoSettings(Settings):
    """The outer step and the bits of what travels."""

    method: ClassVar[str] = "diloco"
    outer: str = "nesterov"  # nesterov | average
    outer_lr: float = 0.0  # 0: as published, 0.7 for nesterov and 1 for average
    outer_momentum: float = 0.9  # nesterov's
    bits: int = 32  # 32 (float32), 16 (bfloat16), 8 or 4, up and down

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        self.require(self.outer in PUBLISHED_RATE, "outer", '"nesterov" or "average"')
        self.require(0 <= self.outer_lr <= 10, "outer_lr", "0 (as published) to 10")
        self.require(0 <= self.outer_momentum < 1, "outer_momentum", "from 0 to below 1")
        self.require(self.bits in WIDTHS, "bits", "32, 16, 8 or 4")


class DiLoCo(LocalMethod):
    """Local AdamW or Muon with an outer step."""

    def __init__(self, weights: Mapping[str, Tensor], peers: int, settings: DiLoCoSettings) -> None:
        super().__init__(weights, peers, settings.k_x)
        self.inner: StackedOptimizer = StackedOptimizer(self.flat, peers, settings)
        self.up = DenseChannel(self.flat, peers, settings.bits)
        self.down = DenseChannel(self.flat, 1, settings.bits)
        self._rate = settings.outer_lr or PUBLISHED_RATE[settings.outer]
        self._momentum = settings.outer_momentum if settings.outer == "nesterov" else 0.0
        self._velocity = torch.zeros(self.flat.size)

    def exchange(self, present: ActivePeers, step: int) -> ExchangeBytes:
        """One outer step along the published mean displacement."""
        arrived, up = self.up.send(self.displacements(present), present.rows)
        published, down = self.down.send(present.mean(arrived)[None], slice(None))
        gradient = published[0]
        if self._momentum:  # v = mu v + g;  W <- W - lr (g + mu v)
            self._velocity.mul_(self._momentum).add_(gradient)
            gradient = gradient.add(self._velocity, alpha=self._momentum)
        self.consensus.sub_(gradient, alpha=self._rate)
        return ExchangeBytes({"displacement": up}, {"displacement": down})
