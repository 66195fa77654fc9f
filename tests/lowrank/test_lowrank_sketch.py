"""Cores and tangent sketches, what the tangent update makes of them, and what cores keep when the basis changes."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsr_swarm.lowrank import sketch
from tsr_swarm.lowrank.basis import Basis, orthonormal12, random_basis
from tsr_swarm.lowrank.exact import lift, lift_tangent
from tsr_swarm.lowrank.grid import quantise_block

TWELVE_BITS = 0.02  # how far 12-bit bases of these sizes are from orthonormal, with both sides and room
BETA1_T, BETA2_T = 0.9**7, 0.99**7

Shape = tuple[int, int, int]  # rows, columns, rank
shapes = st.tuples(st.integers(4, 40), st.integers(4, 40), st.integers(1, 4))
seeds = st.integers(0, 2**31 - 1)


def wide(basis: Basis) -> tuple[Tensor, Tensor]:
    """Its two sides in float64."""
    return basis.left_float(torch.float64), basis.right_float(torch.float64)


def draw_bases(shape: Shape, seed: int) -> tuple[Basis, Basis]:
    """Two bases of different spans."""
    return random_basis(*shape, seed, 0), random_basis(*shape, seed, 1)


def draw(shape: Shape, seed: int) -> tuple[Basis, Tensor, Tensor, Tensor]:
    """A basis, its two sides in float64, and a matrix."""
    basis = random_basis(*shape, seed, 0)
    a = torch.randn(shape[:2], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return basis, *wide(basis), a


def projections(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The projections on the spans of both sides."""
    p, q = (torch.linalg.qr(side)[0] for side in (u, v))
    return p @ p.mT, q @ q.mT


def is_near(update: Tensor, wanted: Tensor) -> bool:
    return float((update - wanted).norm()) <= TWELVE_BITS * float(wanted.norm())


@settings(max_examples=50)
@given(shapes, seeds)
def test_updates_are_projections_on_the_tangent_space_and_on_both_bases(shape: Shape, seed: int) -> None:
    basis, u, v, a = draw(shape, seed)
    p, q = projections(u, v)
    left, right = (a @ v).mT, u.mT @ a
    tangent = lift_tangent(basis, quantise_block(left, 16), quantise_block(right, 16)).double()
    assert is_near(tangent, p @ a + a @ q - p @ a @ q)
    assert is_near(lift(basis, quantise_block(sketch.core_of(a, u, v), 16)).double(), p @ a @ q)


@settings(max_examples=30)
@given(shapes, seeds)
def test_captured_energy_is_a_share(shape: Shape, seed: int) -> None:
    _, u, v, a = draw(shape, seed)
    p, q = projections(u, v)
    assert 0 <= sketch.measure_captured(a, u, v).kappa <= 1
    assert abs(sketch.measure_captured(p @ a @ q, u, v).kappa - 1) <= TWELVE_BITS


def test_a_zero_matrix_counts_as_captured() -> None:
    assert sketch.measure_captured(torch.zeros(3, 3), torch.eye(3), torch.eye(3)) == sketch.Captured(1.0, 0.0)


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
        factor = orthonormal12(side.double() @ mix @ torch.diag(torch.arange(1.0, side.shape[1] + 1).double()))
        turned.append(factor)
    return Basis(*turned)


@settings(max_examples=50)
@given(shapes, seeds)
def test_equal_bases_change_nothing(shape: Shape, seed: int) -> None:
    old, new = (random_basis(*shape, seed, 0) for _ in range(2))
    m, v = draw_moments(shape[2], seed)
    turned_m, turned_v = sketch.rotate_moments(m, v, old, new, BETA1_T, BETA2_T)
    torch.testing.assert_close(turned_m, m)
    torch.testing.assert_close(turned_v, v)
    assert torch.equal(sketch.rotate_core(m, old, new), m)


@settings(max_examples=50)
@given(shapes, seeds)
def test_the_same_span_keeps_the_matrix_and_its_norm(shape: Shape, seed: int) -> None:
    old = random_basis(*shape, seed, 0)
    new = same_span(old, seed)
    m, v = draw_moments(shape[2], seed)
    core = sketch.rotate_core(m, old, new)
    turned_m, _ = sketch.rotate_moments(m, v, old, new, BETA1_T, BETA2_T)
    torch.testing.assert_close(turned_m, core)
    assert abs(float(core.norm() / m.norm()) - 1) <= TWELVE_BITS
    before, after = sketch.expand(m, *wide(old)), sketch.expand(core, *wide(new))
    assert float((after - before).norm() / before.norm()) <= TWELVE_BITS


@settings(max_examples=50)
@given(shapes, seeds)
def test_another_span_keeps_the_part_it_holds(shape: Shape, seed: int) -> None:
    old, new = draw_bases(shape, seed)
    core, _ = draw_moments(shape[2], seed)
    turned = sketch.rotate_core(core, old, new)
    u, v = wide(new)
    torch.testing.assert_close(turned, u.mT @ sketch.expand(core, *wide(old)) @ v)
    assert float(turned.norm()) <= float(core.norm()) * (1 + TWELVE_BITS)


@settings(max_examples=50)
@given(shapes, seeds)
def test_the_second_moment_stays_at_or_above_zero_and_above_the_mean_squared(shape: Shape, seed: int) -> None:
    old, new = draw_bases(shape, seed)
    first, second = draw_moments(shape[2], seed)
    m, v = sketch.rotate_moments(first, second, old, new, BETA1_T, BETA2_T)
    assert bool((v >= 0).all())
    corrected_m, corrected_v = m / (1 - BETA1_T), v / (1 - BETA2_T)
    assert bool((corrected_v >= corrected_m.square() * (1 - TWELVE_BITS)).all())
    _, v = sketch.rotate_moments(first, second / 100, old, new, BETA1_T, BETA2_T)
    assert bool((v >= 0).all()), "nor below zero where the mean is lost"


def test_directions_new_to_the_basis_start_at_the_mean_of_v() -> None:
    unit = torch.eye(4, dtype=torch.int16) * 2047
    old, new = Basis(unit[:, :2], unit[:, :2]), Basis(unit[:, 2:], unit[:, 2:])
    m, v = draw_moments(2, 0)
    turned_m, turned_v = sketch.rotate_moments(m, v, old, new, BETA1_T, BETA2_T)
    assert not turned_m.any()
    torch.testing.assert_close(turned_v, v.mean().expand(2, 2))


def test_moments_of_no_step_stay_zero_and_others_keep_their_dtype() -> None:
    old, new = draw_bases((6, 5, 2), 0)
    assert not any(x.any() for x in sketch.rotate_moments(torch.zeros(2, 2), torch.zeros(2, 2), old, new, 1.0, 1.0))
    m, v = (x.float() for x in draw_moments(2, 0))
    turned = (*sketch.rotate_moments(m, v, old, new, BETA1_T, BETA2_T), sketch.rotate_core(m, old, new))
    assert {x.dtype for x in turned} == {torch.float32}
