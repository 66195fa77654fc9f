"""Cores and sketches of a matrix, and what cores and their moments keep when the bases change.

All that is taken of a matrix is linear in it, so that means are meaningful. Runs on any device.
Letters: A (M, N) any displacement or gradient, U (M, R) and V (N, R) the block's bases, C (R, R) a core.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tsr_swarm.lowrank.basis import BASIS_EXPONENT, Basis


@dataclass(frozen=True, slots=True)
class Captured:
    """How much of a matrix A the bases of its block hold."""

    kappa: float  # |U^T A V|^2 / |A|^2, 0 to 1; 1 for a zero matrix
    energy: float  # |A|^2


def core_of(a: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """C = U^T A V, (R, R)."""
    return u.mT @ a @ v


def expand(core: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """U C V^T (M, N) in the dtype given. For local work; consensus weights take the exact lift."""
    return u @ core @ v.mT


def measure_captured(a: Tensor, u: Tensor, v: Tensor) -> Captured:
    """Both figures of A. Columns of 12 bits are not quite orthonormal and may seem to hold a little more than all."""
    energy = float(a.square().sum())
    return Captured(min(float(core_of(a, u, v).square().sum()) / energy, 1.0) if energy else 1.0, energy)


def rotate_moments(
    first: Tensor, second: Tensor, old: Basis, new: Basis, beta1_t: float, beta2_t: float
) -> tuple[Tensor, Tensor]:
    """Adam's moments (R, R) of a core in ``old`` bases, as those of a core in ``new`` ones. Returns new tensors.

    The two-sided form of the rule of LDAdam (arXiv 2410.16103): means turn with R = U_new^T U_old, variances with R
    squared element by element.
    beta_t is beta**t after t steps: the rule holds for bias-corrected moments, so the correction is undone and redone.
    The share of an entry that the old bases could not see starts at the mean of v, else its first steps would be
    several times the rate.
    """
    if beta1_t >= 1 or beta2_t >= 1:  # no step taken: there is nothing to correct, and nothing to rotate
        return first.clone(), second.clone()
    left, right = _turns(old, new, first)
    m, v = first / (1 - beta1_t), second / (1 - beta2_t)
    turned_m = left @ m @ right.mT
    # v' = |R_U^2 (v - m^2) (R_V^2)^T + m'^2|
    turned_v = (left.square() @ (v - m.square()) @ right.square().mT + turned_m.square()).abs()
    seen = left.square().sum(dim=1)[:, None] * right.square().sum(dim=1)[None, :]
    turned_v = turned_v + (1 - seen).clamp(min=0) * v.mean()
    return turned_m * (1 - beta1_t), turned_v * (1 - beta2_t)


def rotate_core(core: Tensor, old: Basis, new: Basis) -> Tensor:
    """U_new^T U_old C V_old^T V_new: the part of U_old C V_old^T that the new bases hold, as their core (R, R)."""
    left, right = _turns(old, new, core)
    return left @ core @ right.mT


def _turns(old: Basis, new: Basis, like: Tensor) -> tuple[Tensor, Tensor]:
    return _turn(old.left, new.left).to(like), _turn(old.right, new.right).to(like)


def _turn(old: Tensor, new: Tensor) -> Tensor:
    """U_new^T U_old (R, R) in float64; the identity for equal bases, which 12 bits make orthonormal only nearly."""
    if torch.equal(old, new):
        return torch.eye(old.shape[1], dtype=torch.float64, device=old.device)
    return new.to(torch.float64).mT @ old.to(torch.float64) * math.ldexp(1.0, 2 * BASIS_EXPONENT)
