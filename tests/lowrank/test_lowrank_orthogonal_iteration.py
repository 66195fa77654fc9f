"""Bases made of a published sketch: orthonormal, of its range, in its order, and the same bits for everybody."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsr_swarm.errors import RunError
from tsr_swarm.lowrank.basis import BASIS_LIMIT, random_basis
from tsr_swarm.lowrank.grid import Grid, exponent_for, quantise_block, quantise_coarse
from tsr_swarm.lowrank.orthogonal_iteration import DEPENDENT, range_of

TWELVE_BITS = 2**-9  # of a basis' amplitudes
seeds = st.integers(0, 2**31)
sizes = st.integers(1, 60)


def draw_sketch(rank: int, size: int, decay: float, seed: int) -> Tensor:
    """A sketch that lies across, (rank, size), whose directions weaken by ``decay`` from row to row."""
    generator = torch.Generator().manual_seed(seed)
    strengths = decay ** torch.arange(rank, dtype=torch.float64)
    return strengths[:, None] * torch.randn(rank, size, generator=generator, dtype=torch.float64)


def old_basis(size: int, rank: int, seed: int = 0) -> Tensor:
    return random_basis(size, size, rank, seed, 0).left


def numbers(basis: Tensor | None) -> Tensor:
    assert basis is not None
    return basis.double() / 2048


def outside(directions: Tensor, basis: Tensor) -> float:
    """The share of ``directions`` (M, K) that the span of ``basis`` (M, R) does not hold."""
    q, _ = torch.linalg.qr(basis)
    return float((directions - q @ (q.mT @ directions)).norm() / directions.norm())


@settings(max_examples=60)
@given(sizes, st.data(), st.floats(0.5, 1), st.integers(-40, 40), st.sampled_from((3, 5, 8, 16)), seeds)
def test_a_basis_is_orthonormal_and_its_first_columns_span_the_first_rows(
    size: int, data: st.DataObject, decay: float, scale: int, bits: int, seed: int
) -> None:
    rank = data.draw(st.integers(1, min(size, 10)))
    drawn = draw_sketch(rank, size, decay, seed) * 2.0**scale
    sketch = quantise_block(drawn, 16) if bits > 6 else quantise_coarse(drawn, bits, 1)

    basis = numbers(range_of(sketch, old_basis(size, rank)))

    assert basis.shape == (size, rank)
    assert float((basis.mT @ basis - torch.eye(rank)).abs().max()) <= size * 2**-10
    rows = sketch.numbers()
    if torch.linalg.matrix_rank(rows / rows.abs().max()) == rank and torch.linalg.cond(rows) < 1e3:
        for count in range(1, rank + 1):
            assert outside(rows[:count].mT, basis[:, :count]) <= TWELVE_BITS * math.sqrt(size)


@settings(max_examples=30)
@given(st.integers(2, 8), st.data(), seeds)
def test_every_step_is_one_correctly_rounded_operation_or_a_sum_of_integers(
    size: int, data: st.DataObject, seed: int
) -> None:
    rank = data.draw(st.integers(1, size))
    sketch = quantise_block(draw_sketch(rank, size, 0.7, seed), 16)

    found = range_of(sketch, old_basis(size, rank))

    assert found is not None
    assert found.tolist() == slow_range(sketch.values.tolist())


def slow_range(rows: list[list[int]]) -> list[list[int]]:
    """The same for independent rows, one number at a time: Python's floats and unbounded integers."""
    rank = len(rows)
    gram = [[float(sum(a * b for a, b in zip(x, y, strict=True))) for y in rows] for x in rows]
    work = gram + [[float(i == j) for j in range(rank)] for i in range(rank)]
    for j in range(rank):
        energy = work[j][j]
        shares = [work[j][k] / energy for k in range(rank)]
        for row in work:
            for k in range(j + 1, rank):
                row[k] -= row[j] * shares[k]
        for row in work[rank:]:
            row[j] /= math.sqrt(energy)
    columns = list(zip(*work[rank:], strict=True))
    basis = []
    for column in columns:
        exponent = exponent_for(max(abs(value) for value in column), 24)
        integers = [round(Fraction(value) / Fraction(2) ** exponent) for value in column]
        sums = [sum(t * row[m] for t, row in zip(integers, rows, strict=True)) for m in range(len(rows[0]))]
        scaled = [round(total * Fraction(2) ** (exponent + 11)) for total in sums]
        basis.append([max(-BASIS_LIMIT, min(BASIS_LIMIT, value)) for value in scaled])
    return [list(row) for row in zip(*basis, strict=True)]


@settings(max_examples=30)
@given(st.integers(4, 40), st.data(), seeds)
def test_what_a_sketch_lacks_is_taken_from_the_old_basis(size: int, data: st.DataObject, seed: int) -> None:
    rank = data.draw(st.integers(2, min(size, 8)))
    missing = data.draw(st.integers(1, rank // 2))
    drawn = draw_sketch(rank, size, 0.9, seed)
    drawn[rank - missing :] = drawn[:missing].clone()  # the same directions again
    sketch, old = quantise_block(drawn, 16), old_basis(size, rank, seed)

    basis = numbers(range_of(sketch, old))

    known = torch.cat((sketch.numbers().mT, numbers(old)), dim=1)
    assert float((basis.mT @ basis - torch.eye(rank)).abs().max()) <= size * 2**-9
    assert outside(sketch.numbers().mT, basis) <= TWELVE_BITS * math.sqrt(size)
    assert outside(basis, torch.linalg.svd(known, full_matrices=False)[0][:, : 2 * rank - missing]) <= 0.05


def test_a_sketch_of_zeros_aims_at_nothing() -> None:
    assert range_of(Grid(torch.zeros(2, 5, dtype=torch.int32), torch.tensor([-126])), old_basis(5, 2)) is None


def test_a_direction_that_hardly_differs_from_another_counts_as_missing() -> None:
    rows = torch.full((2, 400), 30000, dtype=torch.int32)
    rows[1, 0] += 1  # sin**2 of the angle is about 1 / (400 * 30000**2)
    assert DEPENDENT > 1 / (400 * 30000**2)
    old = old_basis(400, 2)

    basis = numbers(range_of(Grid(rows, torch.tensor([-15])), old))

    assert outside(basis[:, 1:], torch.cat((basis[:, :1], numbers(old)), dim=1)) < 0.01


def test_a_rank_above_the_proven_limit_is_refused() -> None:
    sketch = Grid(torch.eye(4097, dtype=torch.int32), torch.tensor([0]))
    with pytest.raises(RunError, match="4097"):
        range_of(sketch, torch.eye(4097, dtype=torch.int16))
