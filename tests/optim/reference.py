"""Slow references, one matrix at a time in float64, that tests hold the optimizers against.

Every formula is written out here on its own; only what makes singular directions unique and rounds them to 12 bits is
shared with the fast code. Letters as in ``tsr_adam.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsr_swarm.lowrank.basis import Basis, orthonormal12


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamOptions:
    """Adam's numbers, and ``scale``, which multiplies low-rank steps."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    scale: float = 1.0
    weight_decay: float = 0.0


def reference_adam_direction(
    gradient: Tensor, first: Tensor, second: Tensor, t: int, options: AdamOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the direction and both new moments, element by element, for step t >= 1. All tensors (rows, cols)."""
    beta1, beta2 = options.betas
    direction, new_first, new_second = (torch.zeros_like(gradient) for _ in range(3))
    for i in range(gradient.shape[0]):
        for j in range(gradient.shape[1]):
            g = float(gradient[i, j])
            m = beta1 * float(first[i, j]) + (1 - beta1) * g
            v = beta2 * float(second[i, j]) + (1 - beta2) * g * g
            m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
            direction[i, j] = m_hat / (v_hat**0.5 + options.eps)
            new_first[i, j], new_second[i, j] = m, v
    return direction, new_first, new_second


def reference_muon_direction(gradient: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
    """Return Muon's direction and the new momentum, (rows, cols) in float64, by what it does to singular values.

    X <- a X + b X X^T X + c (X X^T)^2 X leaves singular vectors alone and takes s to a s + b s^3 + c s^5, five times.
    """
    momentum = 0.95 * momentum.to(torch.float64) + 0.05 * gradient.to(torch.float64)
    ahead = 0.05 * gradient.to(torch.float64) + 0.95 * momentum
    left, values, right = torch.linalg.svd(ahead, full_matrices=False)
    length = float(sum(value**2 for value in values)) ** 0.5
    turned = []
    for value in values.tolist():
        s = value / length if length else 0.0
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        turned.append(s)
    direction = left @ torch.diag(torch.tensor(turned, dtype=torch.float64)) @ right
    return 0.2 * max(gradient.shape) ** 0.5 * direction, momentum


def reference_rotation(
    first: Tensor, second: Tensor, turn_left: Tensor, turn_right: Tensor, t: int, options: AdamOptions
) -> tuple[Tensor, Tensor]:
    """Moments after t >= 1 steps, turned by R_U = U_new^T U_old and R_V = V_new^T V_old. All tensors (R, R).

    m' = R_U m R_V^T, v' = |R_U^2 (v - m^2) (R_V^2)^T + m'^2| on bias-corrected values; what of an entry the old bases
    did not see starts at the mean of v.
    """
    corrections = [1 - beta**t for beta in options.betas]
    m, v = first / corrections[0], second / corrections[1]
    rank = m.shape[0]
    turned_first, turned_second = torch.zeros_like(m), torch.zeros_like(v)
    for i in range(rank):
        for j in range(rank):
            weights = torch.outer(turn_left[i], turn_right[j])
            mean = (weights * m).sum()
            variance = (weights**2 * (v - m**2)).sum()
            unseen = max(0.0, 1 - float((weights**2).sum()))
            turned_first[i, j] = mean
            turned_second[i, j] = abs(variance + mean**2) + unseen * v.mean()
    return turned_first * corrections[0], turned_second * corrections[1]


def reference_tsr_adam(
    weight: Tensor,
    gradients: Sequence[Tensor],
    basis: Basis,
    refresh_every: int,
    options: AdamOptions,
    feedback: bool = False,
    power_iterations: int = 0,
    omegas: Mapping[int, Tensor | None] | None = None,
) -> Tensor:
    """Return ``weight`` (M, N) after one TSR-Adam step for each gradient, from zero moments and a starting basis.

    ``omegas``: fresh columns (N, P) of a refresh, by the number of steps before it.
    ``feedback``: with LDAdam's generalised error feedback, e = a - U C V^T + beta1 / (1 - beta1) (what m lost), exact.
    """
    weight = weight.to(torch.float64)
    error = torch.zeros_like(weight)
    rank = basis.left.shape[1]
    first = second = torch.zeros(rank, rank, dtype=torch.float64)
    u, v = basis.left_float(torch.float64), basis.right_float(torch.float64)
    for t, gradient in enumerate(gradients, start=1):
        gradient = gradient.to(torch.float64) + error
        lost = torch.zeros_like(weight)
        if (t - 1) % refresh_every == 0:
            old_u, old_v, lost = u, v, u @ first @ v.mT
            u, v = _aimed(gradient, old_u, old_v, (omegas or {}).get(t - 1), power_iterations)
            if t > 1:
                first, second = reference_rotation(first, second, u.mT @ old_u, v.mT @ old_v, t - 1, options)
            lost = lost - u @ first @ v.mT
        if feedback:
            beta1 = options.betas[0]
            error = gradient - u @ (u.mT @ gradient @ v) @ v.mT + beta1 / (1 - beta1) * lost
        direction, first, second = reference_adam_direction(u.mT @ gradient @ v, first, second, t, options)
        step = options.scale * (u @ direction @ v.mT) + options.weight_decay * weight
        weight = weight - options.lr * step
    return weight


def _aimed(
    g: Tensor, old_u: Tensor, old_v: Tensor, omega: Tensor | None, power_iterations: int
) -> tuple[Tensor, Tensor]:
    """Bases of the SVD of Q Q^T G, Q spanning the range of (G G^T)^q G [V_old, Omega], cut off and rounded."""
    y = g @ (old_v if omega is None else torch.cat((old_v, omega.to(torch.float64)), dim=1))
    q = torch.linalg.svd(y, full_matrices=False).U
    for _ in range(power_iterations):
        q = torch.linalg.svd(g @ g.mT @ q, full_matrices=False).U
    u, s, vh = torch.linalg.svd(q @ q.mT @ g)
    rank = old_u.shape[1]
    left, right = (orthonormal12(x[:, :rank] * s[:rank], old) for x, old in ((u, old_u), (vh.mT, old_v)))
    if left is None or right is None:
        return old_u, old_v
    return left.to(torch.float64) / 2048, right.to(torch.float64) / 2048


def reference_leading(matrix: Tensor, rank: int) -> Tensor:
    """Return the leading left singular vectors of a matrix, (p, rank)."""
    left, _, _ = torch.linalg.svd(matrix, full_matrices=False)
    return torch.as_tensor(left[:, :rank])


class ReferenceLoRDO:
    """One peer's matrix (p, q), p <= q. ``options``: omega, mu, betas, eps, weight_decay, error_feedback."""

    def __init__(self, options: Mapping[str, Any], basis: Tensor, shape: tuple[int, ...]) -> None:
        self.options, self.basis = options, basis
        self.u, self.v = torch.zeros(2, basis.shape[1], shape[1], dtype=torch.float64)
        self.error = torch.zeros(shape, dtype=torch.float64)
        self.t = 0

    def step(self, weight: Tensor, gradient: Tensor, lr: float, aim: bool) -> Tensor:
        """Return the weight after a step. ``aim``: Q becomes the leading directions of this gradient with E."""
        o, (beta1, beta2) = self.options, self.options["betas"]
        whole = gradient + self.error
        if aim:
            self.turn(reference_leading(whole, self.basis.shape[1]))
        low = self.basis.mT @ whole
        if o["error_feedback"]:
            self.error = whole - self.basis @ low
        self.t += 1
        self.u = beta1 * self.u + (1 - beta1) * low
        self.v = beta2 * self.v + (1 - beta2) * low**2
        u_hat, v_hat = self.u / (1 - beta1**self.t), self.v / (1 - beta2**self.t)
        full = torch.stack([g / (v_hat[:, j].mean().sqrt() + o["eps"]) for j, g in enumerate(gradient.mT)]).mT
        low_step = self.basis @ (u_hat / (v_hat.sqrt() + o["eps"]))
        step = (1 - o["omega"]) * full / o["mu"] + o["omega"] * low_step
        return weight - lr * (step + o["weight_decay"] * weight)

    def turn(self, basis: Tensor) -> None:
        """Carry the moments to ``basis``: u' = R u, v' = |R^2 (v - u^2) + u'^2|, R = Q_new^T Q_old."""
        if self.t:
            ones = [1 - beta**self.t for beta in self.options["betas"]]
            r = basis.mT @ self.basis
            u, v = self.u / ones[0], self.v / ones[1]
            self.u = ones[0] * (r @ u)
            self.v = ones[1] * (r**2 @ (v - u**2) + (r @ u) ** 2).abs()
        self.basis = basis
