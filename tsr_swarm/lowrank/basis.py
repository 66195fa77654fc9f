"""Bases U and V of a block: 12-bit integers, so that every product with them is exact, and how new ones are made.

QR and eigenvectors as libraries compute them differ in their last bits between thread counts and CPU types. So one
party computes them and all others use its integers (randomized_svd.py), or everybody orthogonalises what was published
in arithmetic that has one result (orthogonal_iteration.py).
Letters: M rows, N columns, R rank, Y (M, R) a sketch.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tsr_swarm.lowrank.grid import FIXED_EXPONENT, Grid, integer_limit

BASIS_EXPONENT = FIXED_EXPONENT
BASIS_LIMIT = integer_limit(12)
RANK_TOLERANCE = 1e-6  # a direction weaker than this, next to the strongest, is rounding noise
GRAM_TOLERANCE = 2**-4  # how far U^T U may be from I: amplitudes right to 3 %


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """Shared bases of one block: number = integer * 2**-11, magnitudes at most 2047, columns orthonormal to 12 bits."""

    left: Tensor  # U (M, R) int16
    right: Tensor  # V (N, R) int16
    range: Tensor | None = None  # between the two passes of a refresh: Q^T (L, M) int16, see randomized_svd.py

    def left_float(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """U (M, R) as numbers; exact in float32 and wider."""
        return self.left.to(dtype) * math.ldexp(1.0, BASIS_EXPONENT)

    def right_float(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """V (N, R) as numbers; exact in float32 and wider."""
        return self.right.to(dtype) * math.ldexp(1.0, BASIS_EXPONENT)

    def factors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """U and V as numbers of the dtype of ``like``, on its device."""
        return self.left_float(like.dtype).to(like.device), self.right_float(like.dtype).to(like.device)


def random_basis(rows: int, cols: int, rank: int | tuple[int, int], seed: int, block: int) -> Basis:
    """A basis to start from, before there is any gradient. Made once, by the coordinator, and shipped."""
    name = hashlib.blake2b(f"basis/{seed}/{block}".encode(), digest_size=4).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(name, "little"))
    left, right = rank if isinstance(rank, tuple) else (rank, rank)
    return Basis(_random_factor(rows, left, generator), _random_factor(cols, right, generator))


def _random_factor(size: int, rank: int, generator: torch.Generator) -> Tensor:
    while True:  # a singular draw is possible in tiny shapes
        drawn = orthonormal12(torch.randint(-32767, 32768, (size, rank), generator=generator, device="cpu"))
        if drawn is not None:
            return drawn


def orthonormal12(sketch: Tensor, spare: Tensor | None = None) -> Tensor | None:
    """An orthonormal basis of the range of ``sketch`` (M, R), M >= R, strongest direction first, as int16 (M, R).

    A sketch of lower rank is filled up with directions of ``spare`` (M, R; any basis in use) that it lacks.
    None when there is nothing to aim at: the sketch is zero or not finite, or lacks directions and no ``spare`` is
    given. Not bit-stable: one party calls this and ships the result.
    """
    directions = _range(sketch.detach().to("cpu", torch.float64))
    missing = sketch.shape[1] - directions.shape[1]
    if directions.shape[1] == 0 or (missing and spare is None):
        return None
    return round12(directions if spare is None else _fill(directions, spare, missing))


def orthonormal_range(sketch: Tensor, spare: Tensor) -> Tensor:
    """As ``orthonormal12``, in float64 (M, up to L) for a ``sketch`` (M, L), as many columns as the two have together.

    Those of ``spare`` (M, R) alone for a sketch of zeros.
    """
    directions = _range(sketch.detach().to("cpu", torch.float64))
    return _fill(directions, spare, sketch.shape[1] - directions.shape[1])


def _fill(directions: Tensor, spare: Tensor, missing: int) -> Tensor:
    """Add up to ``missing`` directions of ``spare`` that lie across the others, those that do most first."""
    if not missing:
        return directions
    rest = spare.detach().to("cpu", torch.float64)
    rest = rest - directions @ (directions.mT @ rest)
    return torch.cat((directions, _range(rest)[:, :missing]), dim=1)


def _range(y: Tensor) -> Tensor:
    """Left singular vectors of ``y`` (M, R) that stand out of the noise, strongest first; (M, 0) if not finite.

    Those of R in Y = QR, by way of R R^T: orthonormal whatever the condition of Y, and faster than an SVD.
    """
    largest = float(y.abs().max())
    if not 0 < largest < math.inf:
        return y[:, :0]
    q, r = torch.linalg.qr(y / largest)
    energy, vectors = torch.linalg.eigh(r @ r.mT)
    keep = energy > RANK_TOLERANCE**2 * energy[-1]
    directions: Tensor = q @ vectors[:, keep].flip(1)
    return directions


def round12(u: Tensor) -> Tensor:
    return torch.round(u * math.ldexp(1.0, -BASIS_EXPONENT)).clamp_(-BASIS_LIMIT, BASIS_LIMIT).to(torch.int16)


def unscaled_grid(values: Tensor) -> Grid:
    """Integers that are published without exponents, such as one side of a basis: their scale is fixed."""
    return Grid(values.to(torch.int32), torch.empty(0, dtype=torch.int32, device="cpu"))


def is_orthonormal(u: Tensor) -> bool:
    """Whether the columns of ``u`` (M, R), 12-bit integers, are so to GRAM_TOLERANCE."""
    numbers = u.to(torch.float64) * math.ldexp(1.0, BASIS_EXPONENT)
    off = (torch.linalg.eigvalsh(numbers.mT @ numbers) - 1).abs().max()
    return bool(off <= GRAM_TOLERANCE + u.shape[0] * math.ldexp(1.0, -24))  # 12-bit rounding alone adds up to that
