"""The next bases of a block, from a randomized SVD of its mean gradient in two passes.

Halko, Martinsson and Tropp, "Finding structure with randomness" (SIAM Review 53, 2011): Algorithm 4.1 finds a basis Q
of the range of G [V, Omega], Algorithm 5.1 the SVD of Q^T G. The test matrix holds the old V, so that each refresh is
a step of subspace iteration too, and fresh columns Omega, which find what V has lost. Both passes are linear in G, so
the mean of what peers send is that of their gradients.

The reducer alone computes Q, S and W. It rounds directions to integers, each at its own scale, for only spans count;
``orthonormal_rows`` makes the same 12-bit bases of them on every machine. So a peer needs no QR of its own.
Letters: G (M, N) a gradient, R the rank, L >= R the width of a sketch, Q (M, L), B = Q^T G (L, N). Matrices of
directions lie across, a direction a row.
"""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from tsr_swarm.lowrank.basis import (
    BASIS_EXPONENT,
    BASIS_LIMIT,
    RANK_TOLERANCE,
    Basis,
    is_orthonormal,
    orthonormal_range,
)
from tsr_swarm.lowrank.grid import exact_integers, exponent_for, finite, integer_limit, require_exact_rank

RANGE_BITS = 16  # a published range has at most as many
_FINE_BITS = 14  # before rows are normed: of up to 2**26 numbers the squares add up to less than 2**53
_UNIT = 13  # a unit vector is 2**13 long while rows are made orthogonal
_NEWTON_STEPS = 3  # each squares what is missing: from 2 bits a number to 12-bit bases


def draw_test_matrix(right: Tensor, *, width: int, seed: int, block: int, round: int) -> Tensor:
    """[V, Omega] (N, ``width``) for ``right``, which is V (N, R), in its dtype and on its device.

    Omega has signs over sqrt(N), the same for all peers of a round and others in the next.
    """
    size, count = right.shape[0], width - right.shape[1]
    stream = hashlib.shake_256(f"range/{seed}/{block}/{round}".encode()).digest(size * count)
    signs = (np.frombuffer(stream, np.uint8).reshape(size, count) & 1).astype(np.float32) * 2 - 1
    return torch.cat((right, torch.from_numpy(signs / np.float32(math.sqrt(size))).to(right)), dim=1)


def range_sketch(gradient: Tensor, test_matrix: Tensor) -> Tensor:
    """Pass 1 at a peer: (G [V, Omega])^T (L, M)."""
    return (gradient @ test_matrix).mT


def range_basis(sketch: Tensor, old: Basis, bits: int) -> Tensor:
    """Pass 1 at the reducer: Q^T (L, M) for the mean ``sketch`` (L, M), int32 of ``bits``, strongest first.

    Where the sketch lacks directions, those of the old U come in, then zeros.
    """
    found = orthonormal_range(finite(sketch).mT, old.left_float(torch.float64))
    rows = torch.zeros(sketch.shape, dtype=torch.float64, device="cpu")
    rows[: found.shape[1]] = found.mT
    return _row_integers(rows, bits)


def known_range(basis: Basis, width: int) -> Tensor:
    """The published Q^T (``width``, M) int16; if none was, that of U, with zeros."""
    if basis.range is not None:
        return basis.range
    rows = torch.zeros(width, basis.left.shape[0], dtype=torch.int16, device="cpu")
    rows[: basis.left.shape[1]] = basis.left.mT
    return rows


def projection(gradient: Tensor, known: Tensor) -> Tensor:
    """Pass 2 at a peer: Q^T G (L, N) for Q^T as published, in the units of its integers; of G's dtype and device."""
    return known @ gradient


def singular_vectors(known: Tensor, projected: Tensor, rank: int, bits: int) -> tuple[Tensor, Tensor]:
    """Pass 2 at the reducer: the strongest left (``rank``, L) and right (``rank``, N) vectors of the mean B, as int32.

    known: Q^T (L, M) as published. projected: the mean of ``projection`` (L, N). A side whose integers do not give an
    orthonormal basis comes out as zeros, for which ``left_basis`` and ``right_basis`` return None.
    """
    q, b = exact_integers(known, RANGE_BITS), finite(projected)
    # rounded directions are not quite orthonormal: with K = Q^T Q the SVD is that of K^-1/2 Q^T G
    energy, vectors = torch.linalg.eigh(q @ q.mT)
    kept = energy > RANK_TOLERANCE**2 * energy[-1]
    whiten = vectors[:, kept] / energy[kept].sqrt()
    inner, strengths, outer = torch.linalg.svd(whiten.mT @ b, full_matrices=False)
    nothing = torch.zeros(rank, q.shape[0], dtype=torch.int32), torch.zeros(rank, b.shape[1], dtype=torch.int32)
    if strengths.numel() < rank or float(strengths[0]) == 0:
        return nothing
    left, right = _row_integers((whiten @ inner[:, :rank]).mT, bits), _row_integers(outer[:rank], bits)
    bases = left_basis(known, left), right_basis(right)
    sides = [
        side if basis is not None and is_orthonormal(basis) else zero
        for side, basis, zero in zip((left, right), bases, nothing, strict=True)
    ]
    return sides[0], sides[1]


def left_basis(known: Tensor, left: Tensor) -> Tensor | None:
    """U (M, R) int16, the orthonormal form of Q ``left``^T; None for zeros. |Q|, |left| < 2**15, L <= 2**12: exact."""
    require_exact_rank(known.shape[0])
    return orthonormal_rows(exact_integers(left, RANGE_BITS) @ exact_integers(known, RANGE_BITS))


def right_basis(right: Tensor) -> Tensor | None:
    """V (N, R) int16, the orthonormal form of ``right``^T; None for zeros."""
    return orthonormal_rows(exact_integers(right, RANGE_BITS))


def orthonormal_rows(rows: Tensor) -> Tensor | None:
    """Orthonormal 12-bit columns (N, R) int16 near the directions ``rows`` (R, N), integers below 2**43 in float64.

    The same bits on every machine, whatever the integers. None where a row is zero. Rows are normed, and then
    X <- (3 I - X X^T) X / 2 moves them to the nearest orthonormal ones (Newton-Schulz; Higham, "Functions of Matrices",
    2008, equation 8.20), where they are nearly so; others stay what they are, and ``is_orthonormal`` tells.
    Bounds: |X| <= 2**13 and N <= 2**26, so |X X^T| <= 2**52; its rounded half is at most 2**15, and with R <= 2**12
    the other product at most 2**40.
    """
    largest = rows.abs().amax(dim=1).tolist()
    if not all(largest):
        return None
    scales = [math.ldexp(1.0, -exponent_for(value, _FINE_BITS)) for value in largest]
    fine = torch.round(rows * _column(scales))
    # python's sqrt and division are correctly rounded, whatever the machine
    norms = [math.ldexp(1.0, _UNIT) / math.sqrt(square) for square in fine.square().sum(dim=1).tolist()]
    x = torch.round(fine * _column(norms))
    for _ in range(_NEWTON_STEPS):
        step = torch.round((x @ x.mT).mul_(math.ldexp(-0.5, -_UNIT)))
        step.diagonal().add_(math.ldexp(1.5, _UNIT))
        step.clamp_(-math.ldexp(4.0, _UNIT), math.ldexp(4.0, _UNIT))
        x = torch.round((step @ x).mul_(math.ldexp(1.0, -_UNIT)))
        x.clamp_(-math.ldexp(1.0, _UNIT), math.ldexp(1.0, _UNIT))
    twelve = torch.round(x.mul_(math.ldexp(1.0, -_UNIT - BASIS_EXPONENT))).clamp_(-BASIS_LIMIT, BASIS_LIMIT)
    return twelve.mT.to(torch.int16).contiguous()


def _row_integers(rows: Tensor, bits: int) -> Tensor:
    """Integers of ``bits`` in the directions of ``rows``, each row at its full range, int32; zero rows stay zero."""
    largest = rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    return torch.round(rows / largest * integer_limit(bits)).to(torch.int32)


def _column(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")[:, None]
