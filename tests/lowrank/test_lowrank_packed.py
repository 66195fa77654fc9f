"""A 4-bit residual: what it keeps, what it may lose, and that feedback through it loses nothing in the long run."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.lowrank.packed import BUCKET, Packed, packed_bytes, with_zeros


@given(st.integers(1, 9), st.integers(1, 200), st.integers(0, 99), st.floats(1e-30, 1e30), st.sampled_from([4, 8]))
def test_no_number_moves_by_more_than_half_a_step(rows: int, cols: int, seed: int, size: float, bits: int) -> None:
    x = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)) * size
    packed = Packed.of(x, bits)
    assert packed.bits == bits
    assert packed.numbers().shape == x.shape
    for start in range(0, x.numel(), BUCKET):
        bucket = x.flatten()[start : start + BUCKET]
        error = (packed.numbers().flatten()[start : start + BUCKET] - bucket).abs().max()
        assert error <= bucket.abs().max() / (2**bits - 2) * 1.0001


@given(st.integers(0, 15), st.lists(st.integers(0, 15), max_size=BUCKET - 2), st.sampled_from([0.25, 1.0, 3.0]))
def test_numbers_on_the_grid_come_back(zero: int, codes: list[int], scale: float) -> None:
    x = (torch.tensor([0, 15, *codes]) - zero) * scale
    assert torch.allclose(Packed.of(x, 4).numbers(), x, rtol=1e-6)


@given(st.integers(1, 300), st.integers(0, 99), st.sampled_from([4, 8]))
def test_zeros_stay_zero_among_other_numbers(count: int, seed: int, bits: int) -> None:
    x = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    x[::3] = 0
    assert not Packed.of(x, bits).numbers()[::3].any()


def symmetric4(x: torch.Tensor) -> torch.Tensor:
    """Rounded to the 15 steps of a grid from -max|x| to max|x|, by buckets."""
    buckets = x.flatten().view(-1, BUCKET)
    scales = buckets.abs().amax(1, keepdim=True).clamp_min(1e-30) / 7
    return (torch.round(buckets / scales) * scales).view_as(x)


@pytest.mark.parametrize(("power", "zeros", "less"), [(1, 0.0, 0.85), (3, 0.0, 0.8), (1, 0.9, 0.85)])
def test_four_bits_lose_less_than_on_a_symmetric_grid(power: int, zeros: float, less: float) -> None:
    """Normal numbers, their cubes, which have heavy tails, and numbers of which nine in ten are zero."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 256, generator=generator) ** power
    x[torch.rand(256, 256, generator=generator) < zeros] = 0
    assert (Packed.of(x, 4).numbers() - x).norm() < less * (symmetric4(x) - x).norm()


def test_codes_without_zeros_code_are_those_of_a_symmetric_grid() -> None:
    codes = torch.arange(32, dtype=torch.uint8)[None]
    packed = Packed(with_zeros(codes), torch.tensor([[2.0]]), (64,))
    assert packed.numbers()[:4].tolist() == [-14.0, -14.0, -12.0, -14.0]  # codes 0, 0, 1, 0
    assert with_zeros(packed.codes) is packed.codes


def test_zero_stays_zero() -> None:
    assert not Packed.of(torch.zeros(5, 70), 4).numbers().any()


def test_it_takes_little_more_than_half_a_byte_or_one_a_number() -> None:
    for bits, sixteenths in ((4, 9.25), (8, 17)):
        packed = Packed.of(torch.randn(512, 512), bits)
        assert (
            packed.codes.nbytes + packed.scales.nbytes == packed_bytes(512 * 512, bits) == 512 * 512 * sixteenths // 16
        )


def test_feedback_through_it_loses_nothing_in_the_long_run() -> None:
    """Every round a part of the sum goes out; the rest waits in four bits. What went out follows what came in."""
    generator = torch.Generator().manual_seed(0)
    waiting, came, sent = Packed.of(torch.zeros(64, 64), 4), torch.zeros(64, 64), torch.zeros(64, 64)
    for round in range(200):
        step = torch.randn(64, 64, generator=generator) + 0.5
        came += step
        owed = waiting.numbers() + step
        out = torch.zeros_like(owed)
        out[round % 4 :: 4] = owed[round % 4 :: 4]  # a quarter of the rows in turn
        sent += out
        waiting = Packed.of(owed - out, 4)
    assert (came - sent).norm() < 0.05 * came.norm()
