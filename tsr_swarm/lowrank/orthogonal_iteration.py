"""The next bases of a block whose displacements are sketched, from the mean sketch that was published anyway.

Y = A V is orthogonalised column by column: with A new every round, and V the basis of the round before, this is
orthogonal iteration (Golub and Van Loan, "Matrix Computations", 4th edition, section 7.3.2), a randomized SVD's power
iteration carried on from round to round (Halko, Martinsson and Tropp, SIAM Review 53, 2011, Algorithm 4.4). Not a byte
is sent for it: every machine comes to the same bits, because all sums are sums of integers below 2**53, and all else
is one multiplication, subtraction, division or root at a time, each correctly rounded by IEEE 754.
Letters: M rows, R columns, Y (M, R) a sketch, T (R, R) with Y T orthonormal. Sketches lie across, as Y^T (R, M).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsr_swarm.lowrank.basis import round12
from tsr_swarm.lowrank.grid import Grid, exact_integers, exponent_for, require_exact_rank

DEPENDENT = 1e-8  # a direction of which less than this share of the energy lies across those before it is left out
_SKETCH_BITS = 16  # with M <= 2**23, which is tested, products of two of Y's columns add up to less than 2**53
_MAX_ROWS = 1 << 23
_FACTOR_BITS = 24

_Matrix = NDArray[np.float64]


def range_of(sketch: Grid, old: Tensor) -> Tensor | None:
    """Return an orthonormal basis (M, R) of the range of a published ``sketch`` Y^T (R, M), as 12-bit int16.

    The order of Y's columns stays. Directions that it lacks are those of ``old`` (M, R), the basis so far. None for a
    sketch of zeros, which aims at nothing. The same bits on every machine. Raises RunError for a rank above 4096.
    """
    rows = exact_integers(sketch.values, _SKETCH_BITS)
    rank, size = rows.shape
    require_exact_rank(rank)
    if not rows.any() or size > _MAX_ROWS:
        return None
    factor = _orthonormalising(rows)
    if factor.shape[1] < rank:
        rows = torch.cat((rows, exact_integers(old.mT, _SKETCH_BITS)))
        factor = _orthonormalising(rows)[:, :rank]
    exponents = [exponent_for(largest, _FACTOR_BITS) for largest in np.abs(factor).max(axis=0).tolist()]
    integers = torch.from_numpy(np.rint(factor * _powers_of_two([-e for e in exponents])))
    # |Y| < 2**15, |T| < 2**23, R <= 2**12 numbers of a column of T that are not 0: every sum stays below 2**50
    return round12((rows.mT @ integers) * torch.from_numpy(_powers_of_two(exponents)))


def _orthonormalising(rows: Tensor) -> _Matrix:
    """Return T for ``rows`` Y^T (K, M): Y T is orthonormal, with a column for each row that differs from those before.

    Modified Gram-Schmidt in coordinates of Y: each direction is taken out of all that follow, in Y^T Y and in T.
    """
    gram: _Matrix = (rows @ rows.mT).numpy()
    size = len(gram)
    work = np.concatenate((gram, np.eye(size)))  # above what is left of Y^T Y, below T
    kept: list[int] = []
    for j in range(size):
        energy = float(work[j, j])
        if energy <= DEPENDENT * float(gram[j, j]):
            continue
        kept.append(j)
        share = work[j, j + 1 :] / energy
        work[:, j + 1 :] -= np.multiply.outer(work[:, j], share)
        work[size:, j] /= math.sqrt(energy)
    return work[size:, kept]


def _powers_of_two(exponents: Sequence[int]) -> _Matrix:
    return np.array([math.ldexp(1.0, exponent) for exponent in exponents])
