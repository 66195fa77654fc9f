"""A 4-bit residual: what it keeps, what it may lose, and that feedback through it loses nothing in the long run."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.lowrank.packed import BUCKET, Packed, packed_bytes


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


@given(st.lists(st.integers(-7, 7), min_size=1, max_size=200), st.sampled_from([0.25, 1.0, 3.0]))
def test_numbers_on_the_grid_come_back(codes: list[int], scale: float) -> None:
    codes = [7, *codes[: BUCKET - 1]]
    x = torch.tensor(codes) * scale
    assert torch.allclose(Packed.of(x, 4).numbers(), x, rtol=1e-6)


def test_zero_stays_zero() -> None:
    assert not Packed.of(torch.zeros(5, 70), 4).numbers().any()


def test_it_takes_little_more_than_half_a_byte_or_one_a_number() -> None:
    for bits, sixteenths in ((4, 9), (8, 17)):
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
