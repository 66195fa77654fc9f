"""Cores and tangent sketches: linear in the matrix, and what the tangent update makes of them."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsr_swarm.lowrank.basis import Basis, random_basis
from tsr_swarm.lowrank.exact import lift, lift_tangent
from tsr_swarm.lowrank.grid import quantise_block
from tsr_swarm.lowrank.sketch import Captured, core_of, expand, measure_captured, tangent_of

TWELVE_BITS = 0.02  # how far 12-bit bases of these sizes are from orthonormal, with both sides and room

shapes = st.tuples(st.integers(4, 40), st.integers(4, 40), st.integers(1, 4))
seeds = st.integers(0, 2**31 - 1)


def draw(shape: tuple[int, int, int], seed: int) -> tuple[Basis, Tensor, Tensor, Tensor]:
    """A basis, its two sides in float64, and a matrix."""
    rows, cols, rank = shape
    generator = torch.Generator().manual_seed(seed)
    basis = random_basis(rows, cols, rank, seed, 0)
    a = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
    return basis, basis.left_float(torch.float64), basis.right_float(torch.float64), a


def projections(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The projections on the spans of both sides."""
    p, q = (torch.linalg.qr(side)[0] for side in (u, v))
    return p @ p.mT, q @ q.mT


def is_near(update: Tensor, wanted: Tensor) -> bool:
    return float((update - wanted).norm()) <= TWELVE_BITS * float(wanted.norm())


@settings(max_examples=50)
@given(shapes, seeds)
def test_updates_are_projections_on_the_tangent_space_and_on_both_bases(shape: tuple[int, int, int], seed: int) -> None:
    basis, u, v, a = draw(shape, seed)
    p, q = projections(u, v)
    left, right = tangent_of(a, u, v)
    tangent = lift_tangent(basis, quantise_block(left, 16), quantise_block(right, 16)).double()
    assert is_near(tangent, p @ a + a @ q - p @ a @ q)
    assert is_near(lift(basis, quantise_block(core_of(a, u, v), 16)).double(), p @ a @ q)


@settings(max_examples=50)
@given(shapes, seeds)
def test_a_core_sent_as_a_tangent_sketch_makes_the_same_update(shape: tuple[int, int, int], seed: int) -> None:
    basis, u, v, a = draw(shape, seed)
    core = core_of(a, u, v)
    update = lift_tangent(basis, quantise_block(u @ core, 16), quantise_block(v @ core.mT, 16)).double()
    assert is_near(update, expand(core, u, v))


@settings(max_examples=30)
@given(shapes, seeds)
def test_sketches_are_linear(shape: tuple[int, int, int], seed: int) -> None:
    _, u, v, a = draw(shape, seed)
    b = a.flip(0)
    mixed = (core_of(a + 3 * b, u, v), *tangent_of(a + 3 * b, u, v))
    parts = zip((core_of(a, u, v), *tangent_of(a, u, v)), (core_of(b, u, v), *tangent_of(b, u, v)), strict=True)
    for found, (of_a, of_b) in zip(mixed, parts, strict=True):
        torch.testing.assert_close(found, of_a + 3 * of_b)


@settings(max_examples=30)
@given(shapes, seeds)
def test_captured_energy_is_a_share(shape: tuple[int, int, int], seed: int) -> None:
    _, u, v, a = draw(shape, seed)
    p, q = projections(u, v)
    assert 0 <= measure_captured(a, u, v).kappa <= 1
    assert abs(measure_captured(p @ a @ q, u, v).kappa - 1) <= TWELVE_BITS


def test_a_zero_matrix_counts_as_captured() -> None:
    assert measure_captured(torch.zeros(3, 3), torch.eye(3), torch.eye(3)) == Captured(1.0, 0.0)
