"""Grids of few bits: what they keep, what they drop, and that the exact lift takes them as they are."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.lowrank.drawing import draw_matrix, seeds, shapes
from tsr_swarm.lowrank.basis import random_basis
from tsr_swarm.lowrank.exact import PUBLISHED_BITS, lift
from tsr_swarm.lowrank.grid import (
    DEAD_ZONE,
    EXPONENT_MAX,
    EXPONENT_MIN,
    Grid,
    exact_integers,
    integer_limit,
    powers_of_two,
    quantise_coarse,
    quantise_dead_zone,
)

GOLDEN = [[-3, -2, -2, -2], [-3, -1, 0, 2], [1, 2, 2, 3]]

few = st.sampled_from((2, 3, 4))
up_to_eight = st.sampled_from((2, 3, 4, 8))
densities = st.sampled_from((0.01, 0.1, 0.3, 0.5, 0.9))


def steps_of(grid: Grid) -> Tensor:
    return (grid.mantissas * powers_of_two(grid.exponents.tolist()))[:, None]


def slow_dead_zone(x: list[float], density: float, bits: int) -> tuple[list[int], float]:
    """q and the step of least squares, number by number."""
    limit = 2 ** (bits - 1) - 1
    order = sorted((abs(v) for v in x), reverse=True)
    last = order[max(1, round(density * len(x))) - 1]
    step = last / (0.5 + DEAD_ZONE)
    q = []
    for v in x:
        level = min(math.floor(abs(v) / step + 0.5 - DEAD_ZONE + 1e-9), limit)
        q.append(level if v > 0 else -level)
    return q, sum(v * k for v, k in zip(x, q, strict=True)) / sum(k * k for k in q)


@given(few, shapes, seeds, st.integers(0, 30), st.booleans())
def test_a_coarse_grid_errs_by_at_most_half_a_step_that_is_as_small_as_levels_and_mantissa_allow(
    bits: int, shape: tuple[int, int], seed: int, spread: int, shared: bool
) -> None:
    x = draw_matrix(shape, seed, spread)
    grid = quantise_coarse(x, bits, 1 if shared else shape[0])
    assert grid.exponents.numel() == (1 if shared else shape[0])
    assert bool(((grid.numbers() - x).abs() <= steps_of(grid) / 2).all())
    smallest = x.abs().amax(dim=1, keepdim=True) / integer_limit(bits)
    coarsest = smallest.max() if shared else smallest
    assert bool((steps_of(grid) >= smallest * (1 - 1e-12)).all())  # nothing is clamped
    assert bool((steps_of(grid) <= smallest + coarsest / 127).all())


@given(up_to_eight, densities, shapes, seeds, st.booleans())
def test_values_are_few_multiples_and_fit_an_exact_sum(
    bits: int, density: float, shape: tuple[int, int], seed: int, dead: bool
) -> None:
    x = draw_matrix(shape, seed, 3)
    grid = quantise_dead_zone(x, density, bits) if dead else quantise_coarse(x, bits, 1)
    multiples = grid.values / grid.mantissas[:, None]
    assert bool((multiples == multiples.round()).all())
    assert float(multiples.abs().max()) <= integer_limit(bits)
    assert 1 <= int(grid.mantissas.min()) <= int(grid.mantissas.max()) <= 255
    exact_integers(grid.values, PUBLISHED_BITS)


@given(up_to_eight, densities, shapes, seeds)
def test_a_dead_zone_keeps_the_share_it_was_asked_for_of_the_largest_numbers(
    bits: int, density: float, shape: tuple[int, int], seed: int
) -> None:
    x = draw_matrix(shape, seed)
    grid = quantise_dead_zone(x, density, bits)
    q, step = slow_dead_zone(x.flatten().tolist(), density, bits)
    assert (grid.values // grid.mantissas).flatten().tolist() == q
    assert float(steps_of(grid)) == pytest.approx(step, rel=1 / 256)
    kept = grid.values != 0
    assert int(kept.sum()) == max(1, round(density * x.numel()))
    assert bool(kept.all()) or float(x.abs()[kept].min()) >= float(x.abs()[~kept].max())
    assert float((x - grid.numbers()).norm()) < float(x.norm()), "less is dropped than there was"


def test_a_residual_gives_back_all_that_was_dropped() -> None:
    x = draw_matrix((16, 16), 0)
    rest, sent = x.clone(), torch.zeros_like(x)
    for _ in range(100):
        numbers = quantise_dead_zone(rest, 0.1, 2).numbers()
        rest, sent = rest - numbers, sent + numbers
    assert float((sent - x).abs().max()) < 0.05 * float(x.abs().max())


@settings(max_examples=20)
@given(few, seeds, st.booleans())
def test_stochastic_rounding_takes_a_neighbour_and_is_unbiased(bits: int, seed: int, shared: bool) -> None:
    x, draws = draw_matrix((3, 4), seed, 2), 400
    grids = [quantise_coarse(x, bits, 1 if shared else 3, seed=number) for number in range(draws)]
    step = steps_of(grids[0])
    assert all(bool(((grid.numbers() - x).abs() < step).all()) for grid in grids)
    mean = sum((grid.numbers() for grid in grids), torch.zeros(())) / draws
    assert bool(((mean - x).abs() <= 5 * step / 2 / draws**0.5).all())  # five standard errors: a step has at most 1/2


def test_stochastic_rounding_is_the_same_on_every_machine() -> None:
    """Golden: whoever rounds again, somewhere else, must get the same bytes."""
    x = torch.arange(-6, 6, dtype=torch.float64).reshape(3, 4) / 7
    drawn = [quantise_coarse(x, 3, 3, seed=seed) for seed in (0, 0, 1)]
    multiples = [(grid.values // grid.mantissas[:, None]).tolist() for grid in drawn]
    assert multiples[0] == multiples[1] == GOLDEN
    assert multiples[2] != GOLDEN


def test_levels_already_on_the_grid_stay_whatever_the_noise() -> None:
    x = torch.tensor([[3.0, -2.0, 0.0, 1.0]])
    for seed in range(20):
        assert torch.equal(quantise_coarse(x, 3, 1, seed=seed).numbers(), x.double())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zeros_stay_zeros(bits: int) -> None:
    zeros = torch.zeros(3, 2)
    coarse = (quantise_coarse(zeros, bits, exponents) for exponents in (3, 1))
    for grid in (*coarse, quantise_dead_zone(zeros, 0.5, bits)):
        assert not grid.values.any()
        assert set(grid.exponents.tolist()) == {EXPONENT_MIN}
        assert set(grid.mantissas.tolist()) == {1}


def test_a_zero_row_stands_beside_a_large_one() -> None:
    grid = quantise_coarse(torch.tensor([[0.0, 0.0], [1.0, -2.0]]), 3, 2)
    assert grid.values.tolist() == [[0, 0], [171, -3 * 171]]
    assert (grid.exponents.tolist(), grid.mantissas.tolist()) == ([EXPONENT_MIN, -8], [1, 171])


def test_a_row_a_thousand_times_weaker_shares_the_exponent_and_is_lost() -> None:
    grid = quantise_coarse(torch.tensor([[0.001, 0.0], [1.0, -1.0]]), 2, 1)
    assert grid.values.tolist() == [[0, 0], [128, -128]]
    assert grid.mantissas.tolist() == [1, 128]


def test_a_nearly_empty_matrix_is_kept_whole() -> None:
    x = torch.zeros(10, 10)
    x[0, 0], x[3, 7] = 3.0, -1.0
    grid = quantise_dead_zone(x, 0.1, 3)
    assert torch.equal(grid.numbers(), x.double())


def test_an_outlier_does_not_hide_the_other_numbers() -> None:
    x = torch.full((4, 4), 0.1)
    x[0, 0] = 100.0
    values = quantise_dead_zone(x, 0.5, 2).values
    assert bool((values != 0).all())  # ties all go, and the clamped one keeps its rest for later


@pytest.mark.parametrize("value", [1e-300, 1e-40])
def test_numbers_below_the_grid_are_dropped(value: float) -> None:
    x = torch.tensor([[value, -value]], dtype=torch.float64)
    assert not quantise_dead_zone(x, 0.5, 4).values.any()
    assert float((quantise_coarse(x, 4, 1).numbers() - x).abs().max()) <= math.ldexp(0.5, EXPONENT_MIN)


def test_numbers_beyond_the_grid_are_clamped_to_it() -> None:
    x = torch.tensor([[1e300, -1e300]], dtype=torch.float64)
    for grid in (quantise_coarse(x, 4, 1), quantise_dead_zone(x, 0.5, 4)):
        assert grid.exponents.tolist() == [EXPONENT_MAX]
        assert grid.values.sign().tolist() == [[1, -1]]
        assert int(grid.values.abs().max()) <= 7 * 255


@settings(max_examples=20)
@given(up_to_eight, densities, seeds)
def test_the_exact_lift_takes_a_coarse_core_as_it_is(bits: int, density: float, seed: int) -> None:
    basis, core = random_basis(12, 9, 4, seed, 0), quantise_dead_zone(draw_matrix((4, 4), seed), density, bits)
    lifted = lift(basis, core)
    wanted = basis.left_float(torch.float64) @ core.numbers() @ basis.right_float(torch.float64).mT
    assert torch.allclose(lifted.double(), wanted, rtol=1e-6, atol=1e-9)
