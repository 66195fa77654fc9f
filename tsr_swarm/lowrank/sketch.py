"""What is taken of a matrix before it is exchanged. All of it is linear in the matrix, so that means are meaningful.

Letters: A (M, N) any displacement or gradient, U (M, R) and V (N, R) the block's bases. Runs on any device.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Captured:
    """How much of a matrix A the bases of its block hold."""

    kappa: float  # |U^T A V|^2 / |A|^2, 0 to 1; 1 for a zero matrix
    energy: float  # |A|^2


def core_of(a: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """C = U^T A V, (R, R)."""
    return u.mT @ a @ v


def tangent_of(a: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Y = A V (M, R) and Z = A^T U (N, R)."""
    return a @ v, a.mT @ u


def expand(core: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """U C V^T (M, N) in the dtype given. For local work; consensus weights take the exact lift."""
    return u @ core @ v.mT


def measure_captured(a: Tensor, u: Tensor, v: Tensor) -> Captured:
    """Both figures of A. Columns of 12 bits are not quite orthonormal and may seem to hold a little more than all."""
    energy = float(a.square().sum())
    return Captured(min(float(core_of(a, u, v).square().sum()) / energy, 1.0) if energy else 1.0, energy)
