"""Lift published cores and sketches to a block's size, bit-identically on every CPU and at every thread count.

Float sums depend on their order; sums of integers below 2**53 in float64 do not. So all factors are integers with
power-of-two scales, everything between two products is rounded to few enough bits, and only one conversion to float32
ends it. Element-wise steps are plain mul, add, sub and round, each correctly rounded by IEEE 754.
Letters: U (M, P), V (N, Q) bases, 12 bits; C (P, Q) a core, Y (M, Q), Z (N, P) a tangent sketch, 16 bits, which lies
across as Y^T and Z^T; R is the larger of P and Q.
"""

import math

import torch
from torch import Tensor

from tsr_swarm.errors import RunError
from tsr_swarm.lowrank.basis import BASIS_EXPONENT, Basis
from tsr_swarm.lowrank.grid import Grid, exact_integers, exponent_for, require_exact_rank

BASIS_BITS = 12  # magnitudes below 2**11
PUBLISHED_BITS = 16  # magnitudes below 2**15
WIDE_BITS = 30  # magnitudes below 2**29: times 2**11 of a basis, summed over 2**12 columns, stays below 2**52
MAX_SIZE = 1 << 26  # rows or columns; U^T Y sums over them: 2**26 * 2**11 * 2**15 = 2**52


def lift(basis: Basis, core: Grid) -> Tensor:
    """U C V^T as float32 (M, N).

    Bounds: |U C| < R * 2**11 * 2**15 <= 2**(26 + l) with l = ceil(log2 R), at most 2**38. It is shifted right by
    s = max(0, 2 l - 16), half to even, which leaves less than 2**(26 + l - s) + 1; times V, summed over R:
    R * 2047 * (2047 * 32767 * R * 2**-s + 0.5) < 2**53.
    """
    rank = max(core.values.shape)
    u, v = _factors(basis, rank)
    shift = max(0, 2 * (rank - 1).bit_length() - 16)
    inner = u @ exact_integers(core.values, PUBLISHED_BITS)
    if shift:
        inner = torch.round(inner * math.ldexp(1.0, -shift))
    outer = inner @ v.mT
    return outer.mul_(math.ldexp(1.0, core.exponent() + shift + 2 * BASIS_EXPONENT)).to(torch.float32)


def lift_tangent(basis: Basis, left: Grid, right: Grid) -> Tensor:
    """U Z^T + (I - U U^T) Y V^T as float32 (M, N): ``left`` is (A V)^T = Y^T, ``right`` is U^T A = Z^T.

    The projection of A on the tangent space of the matrices of rank R at U, V, computed as
    U (Z - V C^T)^T + Y V^T with C = U^T Y, so that nothing of size M x M or M x N is formed but the two terms.
    Bounds, with M <= 2**26 and R <= 2**12: |U^T Y| < M * 2**26 <= 2**52, rounded to 16 bits; |V C^T| < 2**38,
    rounded to 16 bits; Z - V C^T is one correctly rounded subtraction, rounded to 30 bits; |U (..)^T| < 2**52 and
    |Y V^T| < 2**38. Both terms are float64 numbers that no summation order changes, and are added element by element.
    """
    rank = max(left.values.shape[0], right.values.shape[0])
    u, v = _factors(basis, rank)
    y, y_exponent = exact_integers(left.values, PUBLISHED_BITS).mT, left.exponent()
    z, z_exponent = exact_integers(right.values, PUBLISHED_BITS).mT, right.exponent()

    core, core_exponent = _fit(u.mT @ y, PUBLISHED_BITS)
    known, known_exponent = _fit(v @ core.mT, PUBLISHED_BITS)
    known_exponent += core_exponent + y_exponent + 2 * BASIS_EXPONENT
    # known_exponent can be far below z_exponent or above it: the difference is taken in numbers, not in steps
    rest, rest_exponent = _fit(z * math.ldexp(1.0, z_exponent) - known * math.ldexp(1.0, known_exponent), WIDE_BITS)

    within = (u @ rest.mT).mul_(math.ldexp(1.0, rest_exponent + BASIS_EXPONENT))
    across = (y @ v.mT).mul_(math.ldexp(1.0, y_exponent + BASIS_EXPONENT))
    return within.add_(across).to(torch.float32)


def _factors(basis: Basis, rank: int) -> tuple[Tensor, Tensor]:
    """U and V as integers in float64, once it is certain that the bounds above hold for them."""
    require_exact_rank(rank)
    size = max(basis.left.shape[0], basis.right.shape[0])
    if size > MAX_SIZE:
        raise RunError(f"A block of {size} rows or columns cannot be summed exactly: the limit is {MAX_SIZE}.")
    return exact_integers(basis.left, BASIS_BITS), exact_integers(basis.right, BASIS_BITS)


def _fit(x: Tensor, bits: int) -> tuple[Tensor, int]:
    """Round ``x`` half to even to ``bits`` wide integers, still in float64, and the exponent of their one scale.

    The scale follows from the largest magnitude, which is exact; so is multiplying by a power of two.
    """
    largest = float(x.abs().max())
    exponent = exponent_for(largest, bits) if largest else 0
    return torch.round(x * math.ldexp(1.0, -exponent)), exponent


def lift_float32(basis: Basis, core: Grid) -> Tensor:
    """The control: U C V^T by plain float32 products, whose last bits depend on the machine."""
    return basis.left_float() @ core.numbers().to(torch.float32) @ basis.right_float().mT


def lift_tangent_float32(basis: Basis, left: Grid, right: Grid) -> Tensor:
    """The control: U Z^T + (I - U U^T) Y V^T by plain float32 products."""
    u, v = basis.left_float(), basis.right_float()
    y, z = left.numbers().to(torch.float32).mT, right.numbers().to(torch.float32).mT
    return u @ (z - v @ (u.mT @ y).mT).mT + y @ v.mT
