"""Bases: orthonormal to 12 bits, made once, and the same integers wherever a factor is applied."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsr_swarm.lowrank import basis as bases

# one published 16-bit step and one 12-bit step: how well a factor can follow a sketch of moderate condition
SPAN_TOLERANCE = 0.02

sizes = st.integers(1, 60)
seeds = st.integers(0, 2**31)


def numbers(factor: Tensor) -> Tensor:
    return factor.double() / 2048


def gram_error(factor: Tensor) -> float:
    u = numbers(factor)
    return float((u.mT @ u - torch.eye(u.shape[1], dtype=torch.float64)).abs().max())


def gram_bound(rows: int) -> float:
    """Rounding each entry by at most 2**-11 (1.0 becomes 2047/2048), others by 2**-12: |u.e| <= |e| each side."""
    return 2 * math.sqrt(rows) * 2**-12 + rows * 2**-24 + 2 * 2**-11


def draw_sketch(rows: int, rank: int, decay: float, seed: int) -> Tensor:
    """A sketch with singular values 1, decay, decay**2, ... in random directions."""
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(rows, rank, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64))
    return left * decay ** torch.arange(rank) @ right


def outside(sketch: Tensor, basis: Tensor) -> float:
    """Share of the sketch's norm that the basis does not hold."""
    q, _ = torch.linalg.qr(numbers(basis))
    return float((sketch - q @ (q.mT @ sketch)).norm() / sketch.norm())


@settings(max_examples=40)
@given(sizes, st.data(), st.floats(0.5, 1), st.sampled_from((1e-12, 1.0, 1e12)), seeds)
def test_an_orthonormal_basis_spans_its_sketch(
    rows: int, data: st.DataObject, decay: float, scale: float, seed: int
) -> None:
    rank = data.draw(st.integers(1, min(rows, 15)))
    sketch = draw_sketch(rows, rank, decay, seed) * scale
    basis = bases.orthonormal12(sketch)
    assert basis.dtype == torch.int16
    assert gram_error(basis) <= gram_bound(rows)
    assert outside(sketch, basis) <= SPAN_TOLERANCE


@settings(max_examples=40)
@given(st.integers(8, 60), st.integers(1, 8), st.floats(0.5, 1), seeds)
def test_the_strongest_direction_comes_first(rows: int, rank: int, decay: float, seed: int) -> None:
    sketch = draw_sketch(rows, rank, decay, seed)
    basis = bases.orthonormal12(sketch)
    energies = (numbers(basis).mT @ sketch).square().sum(dim=1)
    assert bool((energies[:-1] >= energies[1:] - 1e-2).all())  # 12 bits blur near ties


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_sketch_without_directions_makes_no_basis(value: float) -> None:
    assert bases.orthonormal12(torch.full((5, 3), value)) is None
    assert bases.orthonormal12(torch.full((5, 3), value), torch.eye(5, 3)) is None


@settings(max_examples=40)
@given(st.integers(4, 40), st.data(), seeds)
def test_a_rank_deficient_sketch_is_filled_up_from_the_spare_basis(rows: int, data: st.DataObject, seed: int) -> None:
    rank = data.draw(st.integers(2, min(rows, 12)))
    found = data.draw(st.integers(1, rank - 1))
    sketch = draw_sketch(rows, rank, 0.8, seed)[:, :found] @ torch.ones(found, rank, dtype=torch.float64).triu()
    spare = bases.random_basis(rows, rows, rank, seed, 0).left
    assert bases.orthonormal12(sketch) is None
    basis = bases.orthonormal12(sketch, numbers(spare))
    assert gram_error(basis) <= gram_bound(rows)
    assert outside(sketch, basis) <= SPAN_TOLERANCE
    q, _ = torch.linalg.qr(torch.cat((sketch[:, :found], numbers(spare)), dim=1))
    assert float((numbers(basis) - q @ (q.mT @ numbers(basis))).norm()) <= SPAN_TOLERANCE  # nothing from elsewhere


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.data(), st.integers(0, 2**31 - 1))
def test_random_bases_are_orthonormal_and_repeatable(rows: int, cols: int, data: st.DataObject, seed: int) -> None:
    rank = data.draw(st.integers(1, min(rows, cols)))
    basis, again = (bases.random_basis(rows, cols, rank, seed, 3) for _ in range(2))
    assert basis.left.shape == (rows, rank)
    assert basis.right.shape == (cols, rank)
    assert max(gram_error(basis.left), gram_error(basis.right)) <= gram_bound(max(rows, cols))
    assert torch.equal(basis.left, again.left)
    assert torch.equal(basis.right, again.right)


def test_blocks_and_seeds_draw_different_bases() -> None:
    drawn = {bases.random_basis(6, 6, 2, seed, block).left.numpy().tobytes() for seed in (0, 1) for block in (0, 1)}
    assert len(drawn) == 4


def test_a_basis_is_exact_in_float32_and_as_a_grid() -> None:
    basis = bases.Basis(torch.tensor([[2047], [-1]], dtype=torch.int16), torch.tensor([[512]], dtype=torch.int16))
    assert basis.left_float().tolist() == [[2047 / 2048], [-1 / 2048]]
    assert basis.right_float(torch.float64).tolist() == [[0.25]]
    assert torch.equal(bases.unscaled_grid(basis.left).numbers(), basis.left_float(torch.float64))
