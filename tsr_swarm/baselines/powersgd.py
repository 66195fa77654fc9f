"""Data-parallel training, where the mean gradient travels whole, and PowerSGD, where means have rank r.

Data-parallel: Li et al., PyTorch Distributed (arXiv 2006.15704), at every step, as float32 or bfloat16.
PowerSGD: Vogels et al., arXiv 1905.13727, Algorithms 1 and 2, one power iteration, warm-started, with error feedback:
P = orth(mean(M) Q), Q = mean(M)^T P, the mean is P Q^T, and a peer keeps M - P P^T M, that is M less what it sent
itself. k_x = 1 compresses gradients, as published; k_x > 1 displacements of k_x local steps, which then are averaged.
Departures: AdamW or Muon in place of SGD with momentum; Householder QR in place of Gram-Schmidt. All two-dimensional
parameters for which it is shorter are compressed, everything else is dense.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tsr_swarm.baselines.inner_optimizer import StackedOptimizer
from tsr_swarm.baselines.method import (
    ActivePeers,
    ErrorFeedback,
    ExchangeBytes,
    FlatParameters,
    GradientMethod,
    LocalMethod,
    Method,
    Settings,
    averaged_floats,
    rank_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DDPSettings(Settings):
    """The settings of data-parallel training: the optimizer, and the bits of a number on the wire."""

    method: ClassVar[str] = "ddp"
    later: ClassVar[tuple[str, ...]] = ("bits",)
    k_x: int = 1
    bits: int = 32

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        self.require_every_step()
        self.require(self.bits in (32, 16), "bits", "32 or 16")


class DDP(GradientMethod):
    """Data-parallel AdamW or Muon."""

    def __init__(self, weights: Mapping[str, Tensor], peers: int, settings: DDPSettings) -> None:
        super().__init__(weights, peers)
        self._inner = StackedOptimizer(self.flat, 1, settings)
        self._bits = settings.bits

    def update(self, active: ActivePeers, lr: float) -> ExchangeBytes:
        """Step along the mean gradient: W <- W - lr AdamW(g)."""
        mean = active.mean_of_floats(self.gradients[active.rows], self._bits)
        self._inner.step(0, self.weights, self.flat.views(mean), lr)
        return averaged_floats({"gradient": self.flat.size}, bits=self._bits)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSGDSettings(Settings):
    """The rank, and two parts of the algorithm that can be switched off."""

    method: ClassVar[str] = "powersgd"
    k_x: int = 1
    rank: int | str = 4
    warm_start: bool = True  # Q of the exchange before; else a fresh Gaussian one
    error_feedback: bool = True

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        self.require_rank("rank")


class LowRankMean:
    """The compressed mean of one vector a peer, and what each peer keeps back. ``right``: Q (cols, r) by name."""

    def __init__(self, flat: FlatParameters, peers: int, settings: PowerSGDSettings) -> None:
        self._flat = flat
        self._settings = settings
        self._generator = torch.Generator().manual_seed(0)  # shared: the test matrices are not sent
        self.feedback = ErrorFeedback(peers if settings.error_feedback else 0, flat.size, decay=1.0)
        ranks = {n: rank_of(settings.rank, s) for n, s in flat.shapes.items() if len(s) == 2}
        self._ranks = {
            n: r for n, r in ranks.items() if r * sum(flat.shapes[n]) < flat.shapes[n][0] * flat.shapes[n][1]
        }
        self.right = {n: self._gaussian(n) for n in self._ranks}

    def mean(self, vectors: Tensor, active: ActivePeers) -> Tensor:
        """Return the compressed mean (P,) of ``vectors`` (len(active.peers), P), which may be overwritten."""
        with_feedback = self._settings.error_feedback
        pending = self.feedback.pending(vectors, active.rows) if with_feedback else vectors
        mean = active.mean(pending)
        own, means = self._flat.views(pending), self._flat.views(mean)
        for name, matrix in means.items():
            if name not in self._ranks:
                own[name].zero_()  # sent whole
                continue
            left, right = power_iteration(matrix, self.right[name])
            if with_feedback:
                own[name].sub_(left @ (left.mT @ own[name]))
            torch.mm(left, right.mT, out=matrix)
            self.right[name] = right if self._settings.warm_start else self._gaussian(name)
        if with_feedback:
            self.feedback.keep(pending, active.rows)
        return mean

    def traffic(self) -> ExchangeBytes:
        """Return the bytes of one exchange, of two round trips: P is needed before Q can be formed."""
        sketch = sum(rank * sum(self._flat.shapes[name]) for name, rank in self._ranks.items())
        low_rank = sum(self._flat.shapes[name][0] * self._flat.shapes[name][1] for name in self._ranks)
        dense = self._flat.size - low_rank
        return averaged_floats({"sketch": sketch, "dense": dense}, 2 if sketch else 1)

    def _gaussian(self, name: str) -> Tensor:
        return torch.randn(self._flat.shapes[name][1], self._ranks[name], generator=self._generator)


def power_iteration(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return P = orth(M Q) (rows, r) and Q = M^T P (cols, r), of M (rows, cols) and the previous Q."""
    left = torch.linalg.qr(matrix @ right).Q
    return left, matrix.mT @ left


class GradientPowerSGD(GradientMethod):
    """Gradients at every step, as published."""

    def __init__(self, weights: Mapping[str, Tensor], peers: int, settings: PowerSGDSettings) -> None:
        super().__init__(weights, peers)
        self._inner = StackedOptimizer(self.flat, 1, settings)
        self.low_rank = LowRankMean(self.flat, peers, settings)

    def update(self, active: ActivePeers, lr: float) -> ExchangeBytes:
        """Take one step along the compressed mean gradient."""
        mean = self.low_rank.mean(self.gradients[active.rows], active)
        self._inner.step(0, self.weights, self.flat.views(mean), lr)
        return self.low_rank.traffic()


class LocalPowerSGD(LocalMethod):
    """Displacements of some local steps, averaged."""

    def __init__(self, weights: Mapping[str, Tensor], peers: int, settings: PowerSGDSettings) -> None:
        super().__init__(weights, peers, settings.k_x)
        self.inner: StackedOptimizer = StackedOptimizer(self.flat, peers, settings)
        self.low_rank = LowRankMean(self.flat, peers, settings)

    def exchange(self, active: ActivePeers, step: int) -> ExchangeBytes:
        """Move by the compressed mean displacement."""
        self.consensus.sub_(self.low_rank.mean(self.displacements(active), active))
        return self.low_rank.traffic()


def make_powersgd(weights: Mapping[str, Tensor], peers: int, settings: PowerSGDSettings) -> Method:
    """Make PowerSGD on gradients for k_x = 1, on displacements for more."""
    method = GradientPowerSGD if settings.k_x == 1 else LocalPowerSGD
    return method(weights, peers, settings)
