"""Integer grids: what rounding may cost, what must cost nothing, and coarse grids, which the exact lift takes too."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsr_swarm.errors import RunError
from tsr_swarm.lowrank import grid as grids
from tsr_swarm.lowrank.basis import random_basis
from tsr_swarm.lowrank.exact import PUBLISHED_BITS, lift

QUANTISERS = {"rows": grids.quantise_rows, "block": grids.quantise_block}

kinds = st.sampled_from(sorted(QUANTISERS))
bits = st.sampled_from((2, 4, 8, 12, 16, 24))
shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))
seeds = st.integers(0, 2**31)


def draw_matrix(shape: tuple[int, int], seed: int, spread: int = 0) -> Tensor:
    """Normal numbers whose rows differ in size by up to 2**spread."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.randint(-spread, spread + 1, (shape[0], 1), generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 2.0**scale


@settings(max_examples=40)
@given(kinds, bits, shapes, seeds, st.integers(0, 40))
def test_quantising_errs_by_at_most_half_a_step_that_is_as_small_as_the_bits_allow(
    kind: str, bits: int, shape: tuple[int, int], seed: int, spread: int
) -> None:
    x = draw_matrix(shape, seed, spread)
    grid = QUANTISERS[kind](x, bits)
    steps = grids.powers_of_two(grid.exponents.tolist())
    assert bool(((grid.numbers() - x).abs() <= steps[:, None] / 2).all())
    largest = x.abs().amax(dim=1) if kind == "rows" else x.abs().max().reshape(1)
    assert int(grid.values.abs().max()) <= grids.integer_limit(bits)
    assert bool((torch.round(largest / steps * 2) > grids.integer_limit(bits)).all())  # half the step would not do


@settings(max_examples=40)
@given(kinds, bits, shapes, seeds)
def test_numbers_on_the_grid_come_back_exactly(kind: str, bits: int, shape: tuple[int, int], seed: int) -> None:
    grid = QUANTISERS[kind](draw_matrix(shape, seed, 20), bits)
    again = QUANTISERS[kind](grid.numbers(), bits)
    assert torch.equal(again.values, grid.values)
    assert torch.equal(again.exponents, grid.exponents)


@given(st.floats(min_value=2**-100, max_value=2**60), bits)
def test_the_exponent_is_the_smallest_that_fits(largest: float, bits: int) -> None:
    exponent = grids.exponent_for(largest, bits)
    assert round(math.ldexp(largest, -exponent)) <= grids.integer_limit(bits)
    assert round(math.ldexp(largest, 1 - exponent)) > grids.integer_limit(bits)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zeros_stay_zeros_and_take_the_smallest_exponent(bits: int) -> None:
    zeros = torch.zeros(3, 2)
    plain = grids.quantise_rows(zeros, bits), grids.quantise_block(zeros, bits)
    coarse = [*(grids.quantise_coarse(zeros, bits, n) for n in (3, 1)), grids.quantise_dead_zone(zeros, 0.5, bits)]
    for grid in (*plain, *coarse):
        assert not grid.values.any()
        assert set(grid.exponents.tolist()) == {grids.EXPONENT_MIN}
    assert all(set(grid.mantissas.tolist()) == {1} for grid in coarse)


def test_a_zero_row_stands_beside_a_large_one() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    plain, coarse = grids.quantise_rows(x, 8), grids.quantise_coarse(x, 3, 2)
    assert plain.exponents.tolist() == [grids.EXPONENT_MIN, -5]
    assert plain.values.tolist() == [[0, 0], [32, -64]]
    assert coarse.values.tolist() == [[0, 0], [171, -3 * 171]]
    assert (coarse.exponents.tolist(), coarse.mantissas.tolist()) == ([grids.EXPONENT_MIN, -8], [1, 171])


def test_a_number_that_rounds_up_to_the_power_takes_the_next_exponent() -> None:
    assert grids.quantise_block(torch.tensor([[0.999]]), 8).values.tolist() == [[64]]


def test_ties_go_to_even() -> None:
    assert grids.quantise_block(torch.tensor([[64.0, 0.5, 1.5, 2.5, -0.5]]), 8).values.tolist() == [[64, 0, 2, 2, 0]]


def test_exponents_stay_within_what_the_wire_carries() -> None:
    grid = grids.quantise_rows(torch.tensor([[1e-300], [1e300]], dtype=torch.float64), 8)
    assert grid.exponents.tolist() == [grids.EXPONENT_MIN, grids.EXPONENT_MAX]
    assert grid.values.tolist() == [[0], [127]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    x = torch.tensor([[1.0, value]])
    few = (partial(grids.quantise_coarse, bits=4, exponents=1), partial(grids.quantise_dead_zone, density=0.5, bits=4))
    for make in (partial(grids.quantise_rows, bits=8), partial(grids.quantise_block, bits=8), grids.dense_grid, *few):
        with pytest.raises(RunError, match="1 of 2 numbers"):
            make(x)


def test_a_dense_grid_keeps_float32_and_is_a_copy() -> None:
    x = torch.tensor([0.1, -3e-40, 2e38])
    grid = grids.dense_grid(x)
    kept = x.clone()
    x.zero_()
    assert grid.exponents.shape == (0,)
    assert torch.equal(grid.values, kept.reshape(1, 3))
    assert torch.equal(grid.numbers(), kept.reshape(1, 3).double())


def test_a_number_too_large_for_float32_is_refused_as_dense() -> None:
    with pytest.raises(RunError, match="not finite"):
        grids.dense_grid(torch.tensor([1e300], dtype=torch.float64))


def test_integers_beyond_their_bits_and_grids_of_many_exponents_never_enter_an_exact_sum() -> None:
    with pytest.raises(RunError, match="32768"):
        grids.exact_integers(torch.tensor([-32768], dtype=torch.int16), 16)
    with pytest.raises(RunError, match="one exponent, not of 2"):
        grids.Grid(torch.zeros(2, 2, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)).exponent()


GOLDEN = [[-3, -2, -2, -2], [-3, -1, 0, 2], [1, 2, 2, 3]]

few = st.sampled_from((2, 3, 4))
up_to_eight = st.sampled_from((2, 3, 4, 8))
densities = st.sampled_from((0.01, 0.1, 0.3, 0.5, 0.9))


def steps_of(grid: grids.Grid) -> Tensor:
    return (grid.mantissas * grids.powers_of_two(grid.exponents.tolist()))[:, None]


def slow_dead_zone(x: list[float], density: float, bits: int) -> tuple[list[int], float]:
    """q and the step of least squares, number by number."""
    limit = 2 ** (bits - 1) - 1
    order = sorted((abs(v) for v in x), reverse=True)
    last = order[max(1, round(density * len(x))) - 1]
    step = last / (0.5 + grids.DEAD_ZONE)
    q = []
    for v in x:
        level = min(math.floor(abs(v) / step + 0.5 - grids.DEAD_ZONE + 1e-9), limit)
        q.append(level if v > 0 else -level)
    return q, sum(v * k for v, k in zip(x, q, strict=True)) / sum(k * k for k in q)


@given(few, shapes, seeds, st.integers(0, 30), st.booleans())
def test_a_coarse_grid_errs_by_at_most_half_a_step_that_is_as_small_as_levels_and_mantissa_allow(
    bits: int, shape: tuple[int, int], seed: int, spread: int, shared: bool
) -> None:
    x = draw_matrix(shape, seed, spread)
    grid = grids.quantise_coarse(x, bits, 1 if shared else shape[0])
    assert grid.exponents.numel() == (1 if shared else shape[0])
    assert bool(((grid.numbers() - x).abs() <= steps_of(grid) / 2).all())
    smallest = x.abs().amax(dim=1, keepdim=True) / grids.integer_limit(bits)
    coarsest = smallest.max() if shared else smallest
    assert bool((steps_of(grid) >= smallest * (1 - 1e-12)).all())  # nothing is clamped
    assert bool((steps_of(grid) <= smallest + coarsest / 127).all())


@given(up_to_eight, densities, shapes, seeds, st.booleans())
def test_values_are_few_multiples_and_fit_an_exact_sum(
    bits: int, density: float, shape: tuple[int, int], seed: int, dead: bool
) -> None:
    x = draw_matrix(shape, seed, 3)
    grid = grids.quantise_dead_zone(x, density, bits) if dead else grids.quantise_coarse(x, bits, 1)
    multiples = grid.values / grid.mantissas[:, None]
    assert bool((multiples == multiples.round()).all())
    assert float(multiples.abs().max()) <= grids.integer_limit(bits)
    assert 1 <= int(grid.mantissas.min()) <= int(grid.mantissas.max()) <= 255
    grids.exact_integers(grid.values, PUBLISHED_BITS)


@given(up_to_eight, densities, shapes, seeds)
def test_a_dead_zone_keeps_the_share_it_was_asked_for_of_the_largest_numbers(
    bits: int, density: float, shape: tuple[int, int], seed: int
) -> None:
    x = draw_matrix(shape, seed)
    grid = grids.quantise_dead_zone(x, density, bits)
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
        numbers = grids.quantise_dead_zone(rest, 0.1, 2).numbers()
        rest, sent = rest - numbers, sent + numbers
    assert float((sent - x).abs().max()) < 0.05 * float(x.abs().max())


@settings(max_examples=20)
@given(few, seeds, st.booleans())
def test_stochastic_rounding_takes_a_neighbour_and_is_unbiased(bits: int, seed: int, shared: bool) -> None:
    x, draws = draw_matrix((3, 4), seed, 2), 400
    drawn = [grids.quantise_coarse(x, bits, 1 if shared else 3, seed=number) for number in range(draws)]
    step = steps_of(drawn[0])
    assert all(bool(((grid.numbers() - x).abs() < step).all()) for grid in drawn)
    mean = sum(grid.numbers() for grid in drawn) / draws
    assert bool(((mean - x).abs() <= 5 * step / 2 / draws**0.5).all())  # five standard errors: a step has at most 1/2


def test_stochastic_rounding_is_the_same_on_every_machine() -> None:
    """Golden: whoever rounds again, somewhere else, must get the same bytes."""
    x = torch.arange(-6, 6, dtype=torch.float64).reshape(3, 4) / 7
    drawn = [grids.quantise_coarse(x, 3, 3, seed=seed) for seed in (0, 0, 1)]
    multiples = [(grid.values // grid.mantissas[:, None]).tolist() for grid in drawn]
    assert multiples[0] == multiples[1] == GOLDEN
    assert multiples[2] != GOLDEN


def test_a_row_a_thousand_times_weaker_shares_the_exponent_and_is_lost() -> None:
    grid = grids.quantise_coarse(torch.tensor([[0.001, 0.0], [1.0, -1.0]]), 2, 1)
    assert grid.values.tolist() == [[0, 0], [128, -128]]
    assert grid.mantissas.tolist() == [1, 128]


def test_a_nearly_empty_matrix_is_kept_whole() -> None:
    x = torch.zeros(10, 10)
    x[0, 0], x[3, 7] = 3.0, -1.0
    grid = grids.quantise_dead_zone(x, 0.1, 3)
    assert torch.equal(grid.numbers(), x.double())


def test_an_outlier_does_not_hide_the_other_numbers() -> None:
    x = torch.full((4, 4), 0.1)
    x[0, 0] = 100.0
    values = grids.quantise_dead_zone(x, 0.5, 2).values
    assert bool((values != 0).all())  # ties all go, and the clamped one keeps its rest for later


@pytest.mark.parametrize("value", [1e-300, 1e-40])
def test_numbers_below_the_grid_are_dropped(value: float) -> None:
    x = torch.tensor([[value, -value]], dtype=torch.float64)
    assert not grids.quantise_dead_zone(x, 0.5, 4).values.any()
    assert float((grids.quantise_coarse(x, 4, 1).numbers() - x).abs().max()) <= math.ldexp(0.5, grids.EXPONENT_MIN)


def test_numbers_beyond_the_grid_are_clamped_to_it() -> None:
    x = torch.tensor([[1e300, -1e300]], dtype=torch.float64)
    for grid in (grids.quantise_coarse(x, 4, 1), grids.quantise_dead_zone(x, 0.5, 4)):
        assert grid.exponents.tolist() == [grids.EXPONENT_MAX]
        assert grid.values.sign().tolist() == [[1, -1]]
        assert int(grid.values.abs().max()) <= 7 * 255


@settings(max_examples=20)
@given(up_to_eight, densities, seeds)
def test_the_exact_lift_takes_a_coarse_core_as_it_is(bits: int, density: float, seed: int) -> None:
    basis, core = random_basis(12, 9, 4, seed, 0), grids.quantise_dead_zone(draw_matrix((4, 4), seed), density, bits)
    lifted = lift(basis, core)
    wanted = basis.left_float(torch.float64) @ core.numbers() @ basis.right_float(torch.float64).mT
    assert torch.allclose(lifted.double(), wanted, rtol=1e-6, atol=1e-9)
