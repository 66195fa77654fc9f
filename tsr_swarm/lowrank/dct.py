"""Bases whose columns are those of a discrete cosine transform: a refresh costs a seed or a list of indices, no sketch.

Two uses. ``drawn_basis``: a subspace drawn from the run's seed, which every peer makes by itself (the subsampled
randomized transform of Halko, Martinsson and Tropp, arXiv 0909.4061, section 4.6). ``chosen_basis``: the columns in
which the gradient has most energy (Trion and DCT-AdamW, arXiv 2505.17967, there one-sided; energies instead of L1
norms, because energies of peers can be averaged). Integers all the way, so every machine makes the same bits.
"""

import hashlib
import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsr_swarm.lowrank.basis import BASIS_EXPONENT, BASIS_LIMIT, Basis

_COLUMNS = 512
_FIXED = 192  # bits after the point of the cosines' fixed-point numbers
_PI = 0x3243F6A8885A308D313198A2E03707344A4093822299F31D0  # rounded down to them


def drawn_basis(rows: int, cols: int, ranks: tuple[int, int], *, seed: int, block: int, number: int) -> Basis:
    """Basis number ``number`` of a block, U (rows, ranks[0]) and V (cols, ranks[1]): columns with random signs by row.

    Signs and the order of the columns are drawn once a run; the numbers then go through all pairs of column groups, so
    that every direction of the weights gets its turn before any gets a second one. (A fresh draw every time leaves a
    tenth of the directions out for long, and ended 0.03 nats higher in small runs.) The signs spread every coordinate
    over all columns. A function of its arguments alone, the same bits everywhere.
    """
    groups = math.ceil(rows / ranks[0])
    return Basis(
        _drawn_side(rows, ranks[0], f"{seed}/{block}/U", number % groups),
        _drawn_side(cols, ranks[1], f"{seed}/{block}/V", number // groups),
    )


def chosen_basis(rows: int, cols: int, left: Tensor, right: Tensor) -> Basis:
    """The basis of the columns with indices ``left`` (rank,) of the rows' transform and ``right`` of the columns'."""
    return Basis(cosines(rows, left.long().numpy()), cosines(cols, right.long().numpy()))


def column_energies(a: Tensor) -> Tensor:
    """Energy of A (M, N) in each column of the transform of its rows, |(C^T A)_i|^2 (M,), float64.

    Some columns at a time: all of them would be M x M numbers.
    """
    a = a.detach().to("cpu", torch.float32)
    scale = math.ldexp(1.0, BASIS_EXPONENT)
    parts = []
    for start in range(0, a.shape[0], _COLUMNS):
        columns = cosines(a.shape[0], np.arange(start, min(start + _COLUMNS, a.shape[0])))
        parts.append((columns.to(torch.float32).mul_(scale).mT @ a).square().sum(1, dtype=torch.float64))
    return torch.cat(parts)


def strongest(energies: Tensor, rank: int) -> Tensor:
    """Indices of the ``rank`` largest energies, ascending, int32; of equal ones the lower index."""
    order = np.argsort(-energies.flatten().to(torch.float64).numpy(), kind="stable")
    return torch.from_numpy(np.sort(order[:rank]).astype(np.int32))


def flags(columns: Tensor, size: int) -> Tensor:
    """int32 (1, size): 1 at the indices ``columns``, else 0."""
    flagged = torch.zeros(1, size, dtype=torch.int32, device="cpu")
    flagged[0, columns.long()] = 1
    return flagged


def cosines(size: int, columns: NDArray[np.int64]) -> Tensor:
    """Columns of the orthonormal DCT-II matrix on the 12-bit grid, int16 (size, len(columns)).

    C[i, j] = sqrt(2 / n) cos(pi (2 i + 1) j / 2 n), and sqrt(1 / n) for j = 0.
    """
    places = (2 * np.arange(size, dtype=np.int64)[:, None] + 1) * columns[None, :] % (4 * size)
    values = _wave(size)[places]
    values[:, columns == 0] = min(BASIS_LIMIT, round(math.ldexp(math.sqrt(1 / size), -BASIS_EXPONENT)))
    return torch.from_numpy(values)


@lru_cache(maxsize=64)
def _wave(size: int) -> NDArray[np.int16]:
    """sqrt(2 / n) cos(2 pi a / 4 n) for a = 0 .. 4 n - 1 on the grid, the first quarter computed and mirrored.

    In whole numbers, because mathematics libraries need not agree in a cosine's last bit: with x_a = cos(pi a / 2 n) in
    fixed point, x_(a+1) = 2 x_1 x_a - x_(a-1). The error grows with a^2 and stays below 2^-100 for any size.
    """
    one = 1 << _FIXED
    first = _cosine(size)
    scale = math.isqrt((2 << (2 * (_FIXED - BASIS_EXPONENT))) // size)  # sqrt(2 / n) in steps of the grid
    half = 1 << (2 * _FIXED - 1)
    values = [one, first]
    while len(values) < size:
        values.append((2 * first * values[-1] >> _FIXED) - values[-2])
    quarter = [min(BASIS_LIMIT, (scale * cosine + half) >> (2 * _FIXED)) for cosine in values[:size]] + [0]
    rising = np.array(quarter, dtype=np.int16)  # a = 0 .. n
    down = np.concatenate((rising, -rising[-2::-1]))  # .. 2 n
    return np.concatenate((down, down[-2:0:-1]))


def _cosine(size: int) -> int:
    """cos(pi / 2 n) in fixed point, by its series."""
    angle = _PI // (2 * size)
    square = angle * angle >> _FIXED
    total = term = 1 << _FIXED
    k = 0
    while term:
        k += 2
        term = (term * square >> _FIXED) // (k * (k - 1))
        total += term if k % 4 == 0 else -term
    return total


def _drawn_side(size: int, rank: int, name: str, number: int) -> Tensor:
    stream = hashlib.shake_256(f"basis/{name}".encode()).digest(9 * size)
    order = np.argsort(np.frombuffer(stream, "<u8", size), kind="stable").astype(np.int64)
    start = number % math.ceil(size / rank) * rank
    columns = np.resize(np.roll(order, -start), rank)  # the last group is filled up from the first
    signs = (np.frombuffer(stream, np.uint8, size, 8 * size) & 1).astype(np.int16) * 2 - 1
    return torch.from_numpy(signs)[:, None] * cosines(size, columns)
