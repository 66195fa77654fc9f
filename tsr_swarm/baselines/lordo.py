"""LoRDO: moments of rank r, local steps with a full-rank share, and a projection from the mean displacement.

Jovanovic et al., arXiv 2602.04396 (global and local projection, full-rank quasi-hyperbolic update). The step of a
matrix is that of optim/lordo.py, with its readings, and decoupled weight decay.

Every k_x steps the weights are averaged and Q <- the r leading directions of the mean displacement; u and v are
averaged every k_u and k_v steps, as in DES-LOC. Weights travel whole; Q is not sent: all peers compute it from the
mean. A reading: the first Q of "global" is random. "local": each peer takes Q from its own first gradient of a round,
and keeps its low-rank moments, whose coordinates mean nothing to others. Embedding, head, vectors and matrices with
p <= r: dense AdamW, whose moments follow the same periods.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tsr_swarm.baselines.des_loc import MomentPeriods, average_moments
from tsr_swarm.baselines.inner_optimizer import StackedAdamW
from tsr_swarm.baselines.method import (
    ActivePeers,
    ExchangeBytes,
    FlatParameters,
    LocalMethod,
    averaged_floats,
    is_matrix,
    rank_of,
)
from tsr_swarm.optim.lordo import add_step, leading, take_held, turn_moments, wide


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRDOSettings(MomentPeriods):
    """The rank, and how much of a step is full-rank."""

    method: ClassVar[str] = "lordo"
    rank: int | str = "d/4"
    omega: float = 0.9  # weight of the low-rank term; 1: none of the full-rank one
    mu: float = 1.0  # divides the full-rank term
    projection: str = "global"  # global | local
    error_feedback: bool = True  # False: E stays zero

    def __post_init__(self) -> None:
        MomentPeriods.__post_init__(self)
        self.require_rank("rank")
        self.require_adam("LoRDO's low-rank moments are Adam's")
        self.require(0 <= self.omega <= 1, "omega", "0 to 1")
        self.require(0 < self.mu <= 1e6, "mu", "above 0, at most 1000000")
        self.require(self.projection in ("global", "local"), "projection", '"global" or "local"')


class LoRDO(LocalMethod):
    """Local low-rank AdamW with a shared or a private projection."""

    def __init__(self, weights: Mapping[str, Tensor], peers: int, settings: LoRDOSettings) -> None:
        super().__init__(weights, peers, settings.k_x)
        self.inner: LoRDOInner = LoRDOInner(self.flat, peers, settings)
        self._is_global = settings.projection == "global"
        self._periods = settings.periods

    def exchange(self, active: ActivePeers, step: int) -> ExchangeBytes:
        """Average weights and the moments that are due, in the old basis, and then choose the new one."""
        mean = active.mean(self.local[active.rows])
        displacement = self.flat.views(self.consensus - mean)
        self.consensus.copy_(mean)
        low, dense = self.inner.low_rank, self.inner.dense
        first, second = [dense.first], [dense.second]
        if self._is_global:
            first, second = [*low.first, *first], [*low.second, *second]
        moments = average_moments(active, step, self._periods, first, second)
        if self._is_global:
            low.aim_all(displacement)
        else:
            low.aim_at_next_gradient()
        return averaged_floats({"weights": self.flat.size, **moments})


class LoRDOInner:
    """The inner optimizers: low-rank steps for the matrices of layers, dense ones for the rest."""

    def __init__(self, flat: FlatParameters, peers: int, settings: LoRDOSettings) -> None:
        ranks = {n: rank_of(settings.rank, s) for n, s in flat.shapes.items() if is_matrix(n, s)}
        low = {n: r for n, r in ranks.items() if r < min(flat.shapes[n])}
        self.low_rank = LowRankAdam({n: flat.shapes[n] for n in low}, low, peers, settings)
        self.dense = StackedAdamW(
            FlatParameters({n: s for n, s in flat.shapes.items() if n not in low}), peers, settings
        )

    def step(self, peer: int, weights: Mapping[str, Tensor], gradient: Mapping[str, Tensor], lr: float) -> None:
        self.low_rank.step(peer, weights, gradient, lr)
        self.dense.step(peer, weights, gradient, lr)


class LowRankAdam:
    """Adam in an r-dimensional basis of a matrix' shorter side, with a share of the full gradient.

    States of all peers in stacks by name: bases (N, p, r), moments (N, r * q), errors (N, p, q).
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], ranks: Mapping[str, int], peers: int, options: LoRDOSettings
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        sides = {name: sorted(shape) for name, shape in shapes.items()}
        drawn = {n: torch.linalg.qr(torch.randn(p, ranks[n], generator=generator)).Q for n, (p, _) in sides.items()}
        self.bases = {name: basis.repeat(peers, 1, 1) for name, basis in drawn.items()}
        self._first = {n: torch.zeros(peers, ranks[n] * q) for n, (_, q) in sides.items()}
        self._second = {n: torch.zeros_like(first) for n, first in self._first.items()}
        self.first, self.second = list(self._first.values()), list(self._second.values())
        self.errors = {n: torch.zeros(peers, p, q) for n, (p, q) in sides.items()}
        self.counts = [0] * peers
        self._options = options
        self._aims = [options.projection == "local"] * peers

    def moments(self, name: str, peer: int) -> tuple[Tensor, Tensor]:
        """Return u and v of a peer's matrix, (r, q), as views."""
        rank = self.bases[name].shape[-1]
        return self._first[name][peer].view(rank, -1), self._second[name][peer].view(rank, -1)

    def step(self, peer: int, weights: Mapping[str, Tensor], gradient: Mapping[str, Tensor], lr: float) -> None:
        options = self._options
        for name in self.bases:
            given, error, weight = wide(gradient[name]), self.errors[name][peer], wide(weights[name])
            with_error = error.add_(given) if options.error_feedback else given
            if self._aims[peer]:
                self._turn(name, peer, leading(with_error, self.bases[name].shape[-1]))
            basis = self.bases[name][peer]
            low = take_held(error, basis) if options.error_feedback else basis.mT @ given
            weight.mul_(1 - lr * options.weight_decay)
            add_step(weight, given, low, basis, *self.moments(name, peer), self.counts[peer] + 1, -lr, options)
        self._aims[peer] = False
        self.counts[peer] += 1

    def aim_all(self, displacement: Mapping[str, Tensor]) -> None:
        """Take every peer's bases from the mean displacement, by name: LoRDO's global projection."""
        for name, bases in self.bases.items():
            basis = leading(wide(displacement[name]), bases.shape[-1])
            for peer in range(len(bases)):
                self._turn(name, peer, basis)

    def aim_at_next_gradient(self) -> None:
        """Take every peer's bases from its own next gradient: LoRDO's local projection."""
        self._aims = [True] * len(self._aims)

    def _turn(self, name: str, peer: int, basis: Tensor | None) -> None:
        """Carry a peer's moments to a new basis; None keeps the old one."""
        if basis is None:
            return
        old = self.bases[name][peer]
        turn_moments(*self.moments(name, peer), basis.mT @ old, self.counts[peer], self._options.betas)
        old.copy_(basis)
