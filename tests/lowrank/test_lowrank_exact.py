"""The exact lift against slow integer arithmetic, up to the sizes at which float64 has not one bit to spare."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsr_swarm.errors import RunError
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.exact import lift, lift_float32, lift_tangent, lift_tangent_float32
from tsr_swarm.lowrank.grid import Grid, exponent_for

FLOAT32_TOLERANCE = 1e-5  # a float32 product of these sizes against float64
TANGENT_TOLERANCE = 3e-4  # rounding U^T Y and V C^T to 16 bits, against float64 without it

sizes = st.integers(1, 9)
seeds = st.integers(0, 2**31)
exponents = st.integers(-40, 10)


def draw_integers(shape: tuple[int, int], limit: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-limit, limit + 1, shape, generator=generator)


def draw_basis(rows: int, cols: int, rank: int, generator: torch.Generator) -> Basis:
    left, right = (draw_integers((size, rank), 2047, generator).to(torch.int16) for size in (rows, cols))
    return Basis(left, right)


def draw_grid(rows: int, cols: int, exponent: int, generator: torch.Generator, limit: int = 32767) -> Grid:
    return Grid(draw_integers((rows, cols), limit, generator).to(torch.int32), torch.tensor([exponent]))


def integers(values: Tensor) -> Any:
    """Python's own integers: no bound, no rounding."""
    return values.numpy().astype(object)


def halve_to_even(values: Any, exponent: int) -> Any:
    """Integers (or fractions) as multiples of 2**exponent."""
    step = Fraction(2) ** exponent
    return np.vectorize(lambda x: round(x / step), otypes=[object])(values)


def fit(values: Any, bits: int) -> tuple[Any, int]:
    largest = float(np.abs(values).max())
    exponent = exponent_for(largest, bits) if largest else 0
    return halve_to_even(values, exponent), exponent


def as_float32(values: Any, exponent: int) -> Tensor:
    return torch.from_numpy(np.vectorize(lambda x: np.float32(math.ldexp(float(x), exponent)))(values))


def slow_lift(basis: Basis, core: Grid) -> Tensor:
    """U C V^T in unbounded integers."""
    shift = max(0, 2 * math.ceil(math.log2(core.values.shape[0])) - 16)
    inner = halve_to_even(integers(basis.left) @ integers(core.values), shift)
    return as_float32(inner @ integers(basis.right).T, int(core.exponents) + shift - 22)


def slow_lift_tangent(basis: Basis, left: Grid, right: Grid) -> Tensor:
    """U (Z - V C^T)^T + Y V^T in unbounded integers and fractions; only the last sum is a float64 one."""
    u, v, y, z = (integers(x) for x in (basis.left, basis.right, left.values.mT, right.values.mT))
    core, core_exponent = fit(u.T @ y, 16)
    known, known_exponent = fit(v @ core.T, 16)
    known_exponent += core_exponent + int(left.exponents) - 22
    z, known = (np.vectorize(Fraction)(x) for x in (z, known))
    difference = z * Fraction(2) ** int(right.exponents) - known * Fraction(2) ** known_exponent
    rest, rest_exponent = fit(np.vectorize(lambda x: Fraction(float(x)))(difference), 30)
    within, across = u @ rest.T, y @ v.T
    sums = np.vectorize(
        lambda a, b: np.float32(
            math.ldexp(float(a), rest_exponent - 11) + math.ldexp(float(b), int(left.exponents) - 11)
        )
    )(within, across)
    return torch.from_numpy(sums)


@settings(max_examples=60)
@given(sizes, sizes, st.integers(1, 20), exponents, seeds)
def test_the_lift_is_integer_arithmetic(rows: int, cols: int, rank: int, exponent: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    basis, core = draw_basis(rows, cols, rank, generator), draw_grid(rank, rank, exponent, generator)
    assert torch.equal(lift(basis, core), slow_lift(basis, core))


@pytest.mark.parametrize("rank", [255, 256, 257, 512, 700])
def test_the_lift_is_integer_arithmetic_where_it_begins_to_shift(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    basis, core = draw_basis(2, 3, rank, generator), draw_grid(rank, rank, -20, generator)
    assert torch.equal(lift(basis, core), slow_lift(basis, core))


def test_the_lift_is_exact_with_every_integer_at_its_bound_and_the_highest_rank() -> None:
    rank = 4096
    ones = torch.full((1, rank), 2047, dtype=torch.int16)
    odd = ones.clone()
    odd[:, 1] -= 1
    core = Grid(torch.full((rank, rank), 32767, dtype=torch.int32), torch.tensor([0]))
    core.values[:, 0] -= 1
    lifted = lift(Basis(ones, odd), core)
    inner = [(2047 * (32767 - (j == 0)) * rank) for j in range(rank)]
    inner = [round(Fraction(x, 2**8)) for x in inner]
    total = sum(x * (2047 - (j == 1)) for j, x in enumerate(inner))
    assert total < 2**53
    assert lifted.tolist() == [[float(np.float32(math.ldexp(total, 8 - 22)))]]


@settings(max_examples=60)
@given(sizes, sizes, st.integers(1, 8), exponents, exponents, seeds)
def test_the_tangent_lift_is_integer_arithmetic(
    rows: int, cols: int, rank: int, left_exponent: int, right_exponent: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    basis = draw_basis(rows, cols, rank, generator)
    left, right = draw_grid(rank, rows, left_exponent, generator), draw_grid(rank, cols, right_exponent, generator)
    assert torch.equal(lift_tangent(basis, left, right), slow_lift_tangent(basis, left, right))


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 30), seeds)
def test_the_order_of_the_directions_does_not_change_a_bit(rows: int, cols: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    basis, core = draw_basis(rows, cols, rank, generator), draw_grid(rank, rank, -20, generator)
    left, right = draw_grid(rank, rows, -20, generator), draw_grid(rank, cols, -21, generator)
    a, b = (torch.randperm(rank, generator=generator) for _ in range(2))
    mixed = Basis(basis.left[:, a], basis.right[:, b])
    mixed_core = Grid(core.values[a][:, b], core.exponents)
    mixed_tangent = Grid(left.values[b], left.exponents), Grid(right.values[a], right.exponents)
    assert torch.equal(lift(mixed, mixed_core), lift(basis, core))
    assert torch.equal(lift_tangent(mixed, *mixed_tangent), lift_tangent(basis, left, right))


@settings(max_examples=30)
@given(st.integers(4, 60), st.integers(4, 60), st.data(), seeds)
def test_both_lifts_agree_with_float_arithmetic(rows: int, cols: int, data: st.DataObject, seed: int) -> None:
    rank = data.draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(seed)
    basis, core = draw_basis(rows, cols, rank, generator), draw_grid(rank, rank, -20, generator)
    left, right = draw_grid(rank, rows, -20, generator), draw_grid(rank, cols, -20, generator)
    u, v = basis.left_float(torch.float64), basis.right_float(torch.float64)
    y, z = left.numbers().mT, right.numbers().mT
    wanted = u @ core.numbers() @ v.mT
    wanted_tangent = u @ z.mT + y @ v.mT - u @ (u.mT @ y) @ v.mT
    scale = wanted_tangent.norm() + (u @ (u.mT @ y) @ v.mT).norm()  # u is not orthonormal here: its square counts
    for found in (lift(basis, core), lift_float32(basis, core)):
        assert float((found - wanted).norm()) <= FLOAT32_TOLERANCE * float(wanted.norm())
    for found in (lift_tangent(basis, left, right), lift_tangent_float32(basis, left, right)):
        assert float((found - wanted_tangent).norm()) <= TANGENT_TOLERANCE * float(scale)


def test_zeros_lift_to_zeros() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = draw_basis(5, 4, 3, generator)
    zero = [Grid(torch.zeros(3, size, dtype=torch.int32), torch.tensor([-126])) for size in (3, 5, 4)]
    assert not lift(basis, zero[0]).any()
    assert not lift_tangent(basis, zero[1], zero[2]).any()


@pytest.mark.parametrize(
    ("rank", "basis", "core", "exponents", "says"),
    [
        (4097, 1, 1, [0], "limit is 4096"),
        (1, 2048, 1, [0], "2047"),
        (1, 1, 32768, [0], "32767"),
        (2, 1, 1, [0, 1], "one exponent"),
    ],
)
def test_what_the_bounds_are_not_proven_for_is_refused(
    rank: int, basis: int, core: int, exponents: list[int], says: str
) -> None:
    side, values = torch.full((1, rank), basis, dtype=torch.int16), torch.full((rank, len(exponents)), core)
    with pytest.raises(RunError, match=says):
        lift(Basis(side, side), Grid(values.int(), torch.tensor(exponents)))
