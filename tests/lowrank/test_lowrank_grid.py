"""Integer grids: what rounding may cost, and what must cost nothing."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lowrank.drawing import draw_matrix, seeds, shapes
from tsr_swarm.errors import RunError
from tsr_swarm.lowrank.grid import (
    EXPONENT_MAX,
    EXPONENT_MIN,
    Grid,
    dense_grid,
    exact_integers,
    exponent_for,
    integer_limit,
    powers_of_two,
    quantise_block,
    quantise_coarse,
    quantise_dead_zone,
    quantise_rows,
)

QUANTISERS = {"rows": quantise_rows, "block": quantise_block}

kinds = st.sampled_from(sorted(QUANTISERS))
bits = st.sampled_from((2, 4, 8, 12, 16, 24))


@settings(max_examples=40)
@given(kinds, bits, shapes, seeds, st.integers(0, 40))
def test_quantising_errs_by_at_most_half_a_step_that_is_as_small_as_the_bits_allow(
    kind: str, bits: int, shape: tuple[int, int], seed: int, spread: int
) -> None:
    x = draw_matrix(shape, seed, spread)
    grid = QUANTISERS[kind](x, bits)
    steps = powers_of_two(grid.exponents.tolist())
    assert bool(((grid.numbers() - x).abs() <= steps[:, None] / 2).all())
    largest = x.abs().amax(dim=1) if kind == "rows" else x.abs().max().reshape(1)
    assert int(grid.values.abs().max()) <= integer_limit(bits)
    assert bool((torch.round(largest / steps * 2) > integer_limit(bits)).all())  # half the step would not do


@settings(max_examples=40)
@given(kinds, bits, shapes, seeds)
def test_numbers_on_the_grid_come_back_exactly(kind: str, bits: int, shape: tuple[int, int], seed: int) -> None:
    grid = QUANTISERS[kind](draw_matrix(shape, seed, 20), bits)
    again = QUANTISERS[kind](grid.numbers(), bits)
    assert torch.equal(again.values, grid.values)
    assert torch.equal(again.exponents, grid.exponents)


@given(st.floats(min_value=2**-100, max_value=2**60), bits)
def test_the_exponent_is_the_smallest_that_fits(largest: float, bits: int) -> None:
    exponent = exponent_for(largest, bits)
    assert round(math.ldexp(largest, -exponent)) <= integer_limit(bits)
    assert round(math.ldexp(largest, 1 - exponent)) > integer_limit(bits)


@pytest.mark.parametrize("kind", sorted(QUANTISERS))
def test_zeros_take_the_smallest_exponent(kind: str) -> None:
    grid = QUANTISERS[kind](torch.zeros(3, 2), 8)
    assert not grid.values.any()
    assert set(grid.exponents.tolist()) == {EXPONENT_MIN}


def test_a_zero_row_stands_beside_a_large_one() -> None:
    grid = quantise_rows(torch.tensor([[0.0, 0.0], [1.0, -2.0]]), 8)
    assert grid.exponents.tolist() == [EXPONENT_MIN, -5]
    assert grid.values.tolist() == [[0, 0], [32, -64]]


def test_a_number_that_rounds_up_to_the_power_takes_the_next_exponent() -> None:
    assert quantise_block(torch.tensor([[0.999]]), 8).values.tolist() == [[64]]


def test_ties_go_to_even() -> None:
    assert quantise_block(torch.tensor([[64.0, 0.5, 1.5, 2.5, -0.5]]), 8).values.tolist() == [[64, 0, 2, 2, 0]]


def test_exponents_stay_within_what_the_wire_carries() -> None:
    grid = quantise_rows(torch.tensor([[1e-300], [1e300]], dtype=torch.float64), 8)
    assert grid.exponents.tolist() == [EXPONENT_MIN, EXPONENT_MAX]
    assert grid.values.tolist() == [[0], [127]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    x = torch.tensor([[1.0, value]])
    few = (partial(quantise_coarse, bits=4, exponents=1), partial(quantise_dead_zone, density=0.5, bits=4))
    for make in (partial(quantise_rows, bits=8), partial(quantise_block, bits=8), dense_grid, *few):
        with pytest.raises(RunError, match="1 of 2 numbers"):
            make(x)


def test_a_dense_grid_keeps_float32_and_is_a_copy() -> None:
    x = torch.tensor([0.1, -3e-40, 2e38])
    grid = dense_grid(x)
    kept = x.clone()
    x.zero_()
    assert grid.exponents.shape == (0,)
    assert torch.equal(grid.values, kept.reshape(1, 3))
    assert torch.equal(grid.numbers(), kept.reshape(1, 3).double())


def test_a_number_too_large_for_float32_is_refused_as_dense() -> None:
    with pytest.raises(RunError, match="not finite"):
        dense_grid(torch.tensor([1e300], dtype=torch.float64))


def test_integers_beyond_their_bits_never_enter_an_exact_sum() -> None:
    with pytest.raises(RunError, match="32768"):
        exact_integers(torch.tensor([-32768], dtype=torch.int16), 16)


def test_a_grid_of_many_exponents_never_enters_an_exact_sum() -> None:
    with pytest.raises(RunError, match="one exponent, not of 2"):
        Grid(torch.zeros(2, 2, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)).exponent()
