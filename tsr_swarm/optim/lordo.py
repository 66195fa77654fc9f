"""LoRDO's step: Adam's moments at rank r, error feedback for what they do not see, and a full-rank share.

Jovanovic et al., arXiv 2602.04396. For a matrix of shape (p, q), p <= q (else its transpose), with a basis Q (p, r) of
its shorter side, gradient G, error feedback E (p, q) and moments u, v (r, q):

    g = Q^T (G + E);  E <- G + E - Q g;  u, v: Adam's moments of g
    W <- W - lr [(1 - omega) G / (mu (sqrt(mean of v_hat over r) + eps)) + omega Q (u_hat / (sqrt(v_hat) + eps))]

Without the full-rank term a basis that is made from what was trained is made from what it held already, and its span
stays for ever. Readings (the paper's text was not at hand): the full-rank G is divided by the root of v's mean over the
rank, one number a column; u_hat and v_hat are bias-corrected; moments turn with Q by LDAdam's rule.
Nothing here is shared: it is what one peer computes for its own upload. Runs on any device.
"""

from typing import Protocol

import torch
from torch import Tensor

from tsr_swarm.optim.inner_optimizer import adam_direction, bias_corrections


class LoRDOOptions(Protocol):
    """What a step depends on: Adam's numbers, and how much of it is full-rank."""

    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def eps(self) -> float: ...
    @property
    def omega(self) -> float:
        """Weight of the low-rank term, 0 to 1."""

    @property
    def mu(self) -> float:
        """Divides the full-rank term."""


def wide(matrix: Tensor) -> Tensor:
    """Return the matrix, or its transpose where it is tall: (p, q), p <= q, as a view."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


def leading(matrix: Tensor, rank: int) -> Tensor | None:
    """Return the ``rank`` leading left singular vectors (p, rank) of a matrix (p, q), p <= q; None for a zero one."""
    numbers = matrix.to("cpu", torch.float64)
    if not numbers.any():
        return None
    vectors: Tensor = torch.linalg.eigh(numbers @ numbers.mT).eigenvectors
    return vectors[:, -rank:].flip(1).to(matrix)


def take_held(error: Tensor, basis: Tensor) -> Tensor:
    """Return g = Q^T E (r, q) and take Q g out of ``error`` (p, q), which is G + E before, in place."""
    low = basis.mT @ error
    error.addmm_(basis, low, alpha=-1)
    return low


def add_step(
    into: Tensor,
    gradient: Tensor,
    low: Tensor,
    basis: Tensor,
    first: Tensor,
    second: Tensor,
    steps: int,
    rate: float,
    options: LoRDOOptions,
) -> None:
    """Update the moments by ``low`` and add ``rate`` times the step to ``into``, all in place.

    ``into`` and ``gradient`` (p, q), ``low``, ``first`` and ``second`` (r, q), ``basis`` (p, r). ``steps`` counts this
    one.
    """
    corrections = bias_corrections(options.betas, steps)
    direction = adam_direction(low, first, second, corrections, options.betas, options.eps)
    column = (second.mean(dim=0, keepdim=True) / corrections[1]).sqrt_().add_(options.eps)
    into.addcdiv_(gradient, column, value=rate * (1 - options.omega) / options.mu)
    into.addmm_(basis, direction, alpha=rate * options.omega)


def turn_moments(first: Tensor, second: Tensor, turn: Tensor, steps: int, betas: tuple[float, float]) -> None:
    """Carry moments (r, q) after ``steps`` steps to a new basis, in place, with ``turn`` R = Q_new^T Q_old (r, r).

    u' = R u, v' = |R^2 (v - u^2) + u'^2| of bias-corrected values: the rule of LDAdam (arXiv 2410.16103).
    """
    if not steps:
        return
    one, two = bias_corrections(betas, steps)
    mean, square = first / one, second / two
    turned = turn @ mean
    second.copy_((turn.square() @ (square - mean.square()) + turned.square()).abs_().mul_(two))
    first.copy_(turned.mul_(one))
