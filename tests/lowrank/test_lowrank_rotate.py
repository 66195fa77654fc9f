"""What moments and cores keep when the basis turns under them."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsr_swarm.lowrank.basis import Basis, orthonormal12, random_basis
from tsr_swarm.lowrank.rotate import rotate_core, rotate_moments
from tsr_swarm.lowrank.sketch import expand

TWELVE_BITS = 0.02  # how far 12-bit bases of these sizes are from orthonormal, with both sides and room
BETA1_T, BETA2_T = 0.9**7, 0.99**7

shapes = st.tuples(st.integers(4, 40), st.integers(4, 40), st.integers(1, 4))
seeds = st.integers(0, 2**31 - 1)


def draw_moments(rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Moments as Adam could have them after 7 steps: v is at least m^2 when both are corrected."""
    generator = torch.Generator().manual_seed(seed)
    m = torch.randn(rank, rank, generator=generator, dtype=torch.float64)
    v = m.square() + torch.rand(rank, rank, generator=generator, dtype=torch.float64)
    return m * (1 - BETA1_T), v * (1 - BETA2_T)


def same_span(basis: Basis, seed: int) -> Basis:
    """Other bases of the same spans."""
    generator = torch.Generator().manual_seed(seed)
    turned = []
    for side in (basis.left, basis.right):
        mix, _ = torch.linalg.qr(torch.randn(side.shape[1], side.shape[1], generator=generator, dtype=torch.float64))
        made = orthonormal12(side.double() @ mix @ torch.diag(torch.arange(1.0, side.shape[1] + 1).double()))
        assert made is not None
        turned.append(made)
    return Basis(*turned)


def wide(basis: Basis) -> tuple[Tensor, Tensor]:
    return basis.left_float(torch.float64), basis.right_float(torch.float64)


@settings(max_examples=50)
@given(shapes, seeds)
def test_equal_bases_change_nothing(shape: tuple[int, int, int], seed: int) -> None:
    rows, cols, rank = shape
    old, new = (random_basis(rows, cols, rank, seed, 0) for _ in range(2))
    m, v = draw_moments(rank, seed)
    turned_m, turned_v = rotate_moments(m, v, old, new, BETA1_T, BETA2_T)
    torch.testing.assert_close(turned_m, m)
    torch.testing.assert_close(turned_v, v)
    assert torch.equal(rotate_core(m, old, new), m)


@settings(max_examples=50)
@given(shapes, seeds)
def test_the_same_span_keeps_the_matrix_and_its_norm(shape: tuple[int, int, int], seed: int) -> None:
    rows, cols, rank = shape
    old = random_basis(rows, cols, rank, seed, 0)
    new = same_span(old, seed)
    m, v = draw_moments(rank, seed)
    core = rotate_core(m, old, new)
    turned_m, _ = rotate_moments(m, v, old, new, BETA1_T, BETA2_T)
    torch.testing.assert_close(turned_m, core)
    assert abs(float(core.norm() / m.norm()) - 1) <= TWELVE_BITS
    before, after = expand(m, *wide(old)), expand(core, *wide(new))
    assert float((after - before).norm() / before.norm()) <= TWELVE_BITS


@settings(max_examples=50)
@given(shapes, seeds)
def test_another_span_keeps_the_part_it_holds(shape: tuple[int, int, int], seed: int) -> None:
    rows, cols, rank = shape
    old, new = (random_basis(rows, cols, rank, seed, block) for block in (0, 1))
    core, _ = draw_moments(rank, seed)
    turned = rotate_core(core, old, new)
    u, v = wide(new)
    torch.testing.assert_close(turned, u.mT @ expand(core, *wide(old)) @ v)
    assert float(turned.norm()) <= float(core.norm()) * (1 + TWELVE_BITS)


@settings(max_examples=50)
@given(shapes, seeds)
def test_the_second_moment_stays_at_or_above_zero_and_above_the_mean_squared(
    shape: tuple[int, int, int], seed: int
) -> None:
    rows, cols, rank = shape
    old, new = (random_basis(rows, cols, rank, seed, block) for block in (0, 1))
    first, second = draw_moments(rank, seed)
    m, v = rotate_moments(first, second, old, new, BETA1_T, BETA2_T)
    assert bool((v >= 0).all())
    corrected_m, corrected_v = m / (1 - BETA1_T), v / (1 - BETA2_T)
    assert bool((corrected_v >= corrected_m.square() * (1 - TWELVE_BITS)).all())
    _, v = rotate_moments(first, second / 100, old, new, BETA1_T, BETA2_T)
    assert bool((v >= 0).all()), "nor below zero where the mean is lost"


def test_directions_new_to_the_basis_start_at_the_mean_of_v() -> None:
    unit = torch.eye(4, dtype=torch.int16) * 2047
    old, new = Basis(unit[:, :2], unit[:, :2]), Basis(unit[:, 2:], unit[:, 2:])
    m, v = draw_moments(2, 0)
    turned_m, turned_v = rotate_moments(m, v, old, new, BETA1_T, BETA2_T)
    assert not turned_m.any()
    torch.testing.assert_close(turned_v, v.mean().expand(2, 2))


def test_moments_of_no_step_stay_zero() -> None:
    old, new = (random_basis(6, 5, 2, 0, block) for block in (0, 1))
    zeros = torch.zeros(2, 2)
    m, v = rotate_moments(zeros, zeros, old, new, 1.0, 1.0)
    assert not m.any()
    assert not v.any()


def test_moments_keep_their_dtype() -> None:
    old, new = (random_basis(6, 5, 2, 0, block) for block in (0, 1))
    m, v = (x.float() for x in draw_moments(2, 0))
    assert {x.dtype for x in (*rotate_moments(m, v, old, new, BETA1_T, BETA2_T), rotate_core(m, old, new))} == {
        torch.float32
    }
