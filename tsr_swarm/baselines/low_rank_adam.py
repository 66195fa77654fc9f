"""LoRDO's local optimizer: Adam in an r-dimensional basis of a matrix' shorter side, and a share of the full gradient.

See lordo.py for the equations and the source. A matrix is handled as (p, q), p <= q: itself or its transpose.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from tsr_swarm.optim.adam import bias_corrections


class LowRankOptions(Protocol):
    """What of LoRDO's settings a local step needs."""

    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def eps(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def omega(self) -> float: ...
    @property
    def mu(self) -> float: ...
    @property
    def error_feedback(self) -> bool: ...
    @property
    def projection(self) -> str: ...


class LowRankAdam:
    """All peers' low-rank states, in stacks by name: bases (N, p, r), moments (N, r * q), errors (N, p, q)."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], ranks: Mapping[str, int], peers: int, options: LowRankOptions
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        sides = {name: sorted(shape) for name, shape in shapes.items()}
        drawn = {n: torch.linalg.qr(torch.randn(p, ranks[n], generator=generator)).Q for n, (p, _) in sides.items()}
        self.bases = {name: basis.repeat(peers, 1, 1) for name, basis in drawn.items()}
        self._first = {n: torch.zeros(peers, ranks[n] * q) for n, (_, q) in sides.items()}
        self._second = {n: torch.zeros_like(first) for n, first in self._first.items()}
        self.errors = {n: torch.zeros(peers, p, q) for n, (p, q) in sides.items()}
        self.counts = [0] * peers
        self._options = options
        self._aims = [options.projection == "local"] * peers

    @property
    def first(self) -> list[Tensor]:
        """First moments of all peers, each (N, r * q)."""
        return list(self._first.values())

    @property
    def second(self) -> list[Tensor]:
        """Second moments of all peers, each (N, r * q)."""
        return list(self._second.values())

    def moments(self, name: str, peer: int) -> tuple[Tensor, Tensor]:
        """u and v of a peer's matrix, (r, q), as views."""
        rank = self.bases[name].shape[-1]
        return self._first[name][peer].view(rank, -1), self._second[name][peer].view(rank, -1)

    def step(self, peer: int, weights: Mapping[str, Tensor], gradient: Mapping[str, Tensor], lr: float) -> None:
        """One step of ``peer`` on ``weights``, in place."""
        for name in self.bases:
            given, error = _wide(gradient[name]), self.errors[name][peer]
            with_error = error.add_(given) if self._options.error_feedback else given
            if self._aims[peer]:
                self._aim(name, peer, with_error)
            low = self.bases[name][peer].mT @ with_error  # g = Q^T (G + E)
            if self._options.error_feedback:
                error.addmm_(self.bases[name][peer], low, alpha=-1)  # E = G + E - Q g
            self._move(name, peer, _wide(weights[name]), given, low, lr)
        self._aims[peer] = False
        self.counts[peer] += 1

    def _move(self, name: str, peer: int, weight: Tensor, gradient: Tensor, low: Tensor, lr: float) -> None:
        options = self._options
        beta1, beta2 = options.betas
        first, second = self.moments(name, peer)
        first.lerp_(low, 1 - beta1)
        second.mul_(beta2).addcmul_(low, low, value=1 - beta2)
        one, two = bias_corrections(options.betas, self.counts[peer] + 1)
        direction = (first / one).div_((second / two).sqrt_().add_(options.eps))
        column = (second.mean(dim=0, keepdim=True) / two).sqrt_().add_(options.eps)
        weight.mul_(1 - lr * options.weight_decay)
        weight.addcdiv_(gradient, column, value=-lr * (1 - options.omega) / options.mu)
        weight.addmm_(self.bases[name][peer], direction, alpha=-lr * options.omega)

    def aim_all(self, displacement: Mapping[str, Tensor]) -> None:
        """Every peer's bases from the mean displacement, by name: LoRDO's global projection."""
        for name, bases in self.bases.items():
            basis = _leading(_wide(displacement[name]), bases.shape[-1])
            for peer in range(len(bases)):
                self._turn(name, peer, basis)

    def aim_at_next_gradient(self) -> None:
        """Every peer's bases from its own next gradient: LoRDO's local projection."""
        self._aims = [True] * len(self._aims)

    def _aim(self, name: str, peer: int, matrix: Tensor) -> None:
        self._turn(name, peer, _leading(matrix, self.bases[name].shape[-1]))

    def _turn(self, name: str, peer: int, basis: Tensor | None) -> None:
        """Carry a peer's moments to a new basis: u' = R u, v' = |R^2 (v - u^2) + u'^2| of bias-corrected values."""
        if basis is None:
            return
        count, old = self.counts[peer], self.bases[name][peer]
        if count:
            one, two = bias_corrections(self._options.betas, count)
            first, second = self.moments(name, peer)
            turn = basis.mT @ old
            mean, square = first / one, second / two
            turned = turn @ mean
            second.copy_((turn.square() @ (square - mean.square()) + turned.square()).abs_().mul_(two))
            first.copy_(turned.mul_(one))
        old.copy_(basis)


def _wide(matrix: Tensor) -> Tensor:
    """The matrix, or its transpose where it is tall: (p, q), p <= q, as a view."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


def _leading(matrix: Tensor, rank: int) -> Tensor | None:
    """The ``rank`` leading left singular vectors (p, rank) of a matrix (p, q), p <= q; None for a zero one."""
    wide = matrix.to(torch.float64)
    if not wide.any():
        return None
    vectors: Tensor = torch.linalg.eigh(wide @ wide.mT).eigenvectors
    return vectors[:, -rank:].flip(1).to(torch.float32)
