"""Bases of transform columns: orthonormal, the same everywhere, and fair to every direction."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.lowrank.basis import BASIS_LIMIT
from tsr_swarm.lowrank.dct import chosen_basis, column_energies, cosines, drawn_basis, strongest

LEFT = [[-200, -1004], [-569, 851], [-851, -569], [1004, -200], [-1004, 200], [851, 569], [569, -851], [200, 1004]]
RIGHT = [[591, 1142], [-1182, 836], [591, 306], [591, -306], [-1182, -836], [-591, 1142]]


def reference_cosines(size: int) -> torch.Tensor:
    """The DCT-II matrix entry by entry."""
    table = [
        [math.sqrt((1 if j == 0 else 2) / size) * math.cos(math.pi * (2 * i + 1) * j / (2 * size)) for j in range(size)]
        for i in range(size)
    ]
    return torch.tensor(table, dtype=torch.float64)


@given(st.integers(1, 70))
def test_columns_are_those_of_the_transform_to_12_bits(size: int) -> None:
    columns = cosines(size, np.arange(size)).to(torch.float64) / 2048
    limit = BASIS_LIMIT / 2048
    assert (columns - reference_cosines(size).clamp(-limit, limit)).abs().max() <= 0.5 / 2048 + 1e-12


@given(st.integers(2, 60), st.integers(2, 60), st.data())
def test_drawn_bases_are_orthonormal_and_a_function_of_their_arguments(
    rows: int, cols: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(1, min(rows, cols)))
    number = data.draw(st.integers(0, 20))
    basis = drawn_basis(rows, cols, (rank, rank), seed=3, block=1, number=number)
    for side, size in ((basis.left_float(torch.float64), rows), (basis.right_float(torch.float64), cols)):
        assert side.shape == (size, rank)
        # 12-bit rounding of a column of n entries moves its products by at most about sqrt(n) 2^-12
        assert (side.mT @ side - torch.eye(rank)).abs().max() < 2**-11 * math.sqrt(size) + 2**-10
    again = drawn_basis(rows, cols, (rank, rank), seed=3, block=1, number=number)
    assert torch.equal(basis.left, again.left)
    assert torch.equal(basis.right, again.right)


@pytest.mark.parametrize(("rows", "cols", "rank"), [(32, 32, 16), (48, 32, 16), (30, 20, 10), (33, 20, 10)])
def test_every_direction_gets_its_turn_before_any_gets_a_second(rows: int, cols: int, rank: int) -> None:
    groups = math.ceil(rows / rank) * math.ceil(cols / rank)
    covered = torch.zeros(rows, cols, rows, cols, dtype=torch.float64)
    for number in range(groups):
        basis = drawn_basis(rows, cols, (rank, rank), seed=0, block=2, number=number)
        u, v = basis.left_float(torch.float64), basis.right_float(torch.float64)
        covered += torch.einsum("ac,bd->abcd", u @ u.mT, v @ v.mT)
    identity = torch.einsum("ac,bd->abcd", torch.eye(rows), torch.eye(cols))
    if rows % rank == 0 and cols % rank == 0:
        assert (covered - identity).abs().max() < 0.02  # the projections on all subspaces add up to everything
    energies = torch.linalg.eigvalsh(covered.reshape(rows * cols, -1))
    assert energies[0] > 0.95


def test_basis_numbers_repeat_and_blocks_seeds_and_sides_differ() -> None:
    drawn = [(0, 0, 0), (0, 0, 4), (1, 0, 0), (0, 1, 0)]
    first, again, *others = (
        drawn_basis(32, 32, (16, 16), seed=seed, block=block, number=number) for seed, block, number in drawn
    )
    assert torch.equal(first.left, again.left)
    assert not any(torch.equal(first.left, other) for other in (first.right, *(basis.left for basis in others)))


def test_a_known_basis_has_known_bits() -> None:
    """Another machine that computes another basis would fork a run; this is what it must compute."""
    basis = drawn_basis(8, 6, (2, 2), seed=7, block=3, number=1)
    assert basis.left.tolist() == LEFT
    assert basis.right.tolist() == RIGHT


@given(st.integers(2, 24), st.integers(2, 24), st.data())
def test_energies_choose_the_columns_that_capture_most(rows: int, cols: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(rows, cols)))
    gradient = torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows * 100 + cols))
    left, right = column_energies(gradient), column_energies(gradient.mT)
    assert torch.allclose(left, (reference_cosines(rows).mT @ gradient.double()).square().sum(1), rtol=1e-2, atol=1e-3)
    assert torch.allclose(right, (gradient.double() @ reference_cosines(cols)).square().sum(0), rtol=1e-2, atol=1e-3)
    basis = chosen_basis(rows, cols, strongest(left, rank), strongest(right, rank))
    captured = (basis.left_float(torch.float64).mT @ gradient.double()).square().sum()
    assert captured >= left.sort().values[-rank:].sum() * 0.98


def test_of_equal_energies_the_first_columns_are_taken() -> None:
    assert strongest(torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0]), 2).tolist() == [1, 2]
