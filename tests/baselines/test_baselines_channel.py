"""Links of few bits: what arrives, what stays behind, and the bytes between."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsr_swarm.baselines import channel
from tsr_swarm.baselines.channel import DenseChannel, quantise
from tsr_swarm.baselines.method import FlatParameters
from tsr_swarm.config.layout import packed_bytes
from tsr_swarm.wire.compression import decompress
from tsr_swarm.wire.packing import unpack

FLAT = FlatParameters({"matrix": (5, 8), "vector": (7,)})

vectors = st.lists(
    st.lists(st.floats(-100, 100, width=32), min_size=FLAT.size, max_size=FLAT.size), min_size=2, max_size=2
).map(torch.tensor)


@settings(max_examples=30)
@given(x=vectors, bits=st.sampled_from([4, 8]))
def test_rounding_is_within_half_a_scale_of_its_row(x, bits):
    numbers, _ = quantise(FLAT, x, bits)
    limit = 2 ** (bits - 1) - 1
    for given_one, back in zip(FLAT.parts(x), FLAT.parts(numbers), strict=True):
        columns = 8 if given_one.shape[-1] == 40 else 7
        rows, arrived = given_one.reshape(-1, columns), back.reshape(-1, columns)
        largest = rows.abs().amax(dim=1, keepdim=True)
        bound = (0.5 / limit + 2**-8) * largest * 1.001 + 1e-36
        assert bool(((rows - arrived).abs() <= bound).all())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_bytes_are_those_of_a_frame_that_holds_the_integers(bits, monkeypatch):
    frames, real = [], channel.compress_digits
    monkeypatch.setattr(channel, "compress", lambda raw, level: bytes(len(raw) + 999))
    monkeypatch.setattr(channel, "compress_digits", lambda parts: frames.append(real(parts)) or frames[-1])
    x = torch.randn(3, FLAT.size, generator=torch.Generator().manual_seed(0))
    numbers, size = quantise(FLAT, x, bits)
    assert size == sum(map(len, frames)) / 3
    packed_size = packed_bytes(FLAT.size, bits)
    for frame, row in zip(frames, numbers, strict=True):
        raw = decompress(frame, packed_size + 2 * 6)  # scales of five rows and a vector
        values = unpack(memoryview(raw)[:packed_size], FLAT.size, bits)
        scales = torch.from_numpy(np.frombuffer(raw, np.int16, 6, packed_size).copy()).view(torch.bfloat16).float()
        per_number = scales.repeat_interleave(torch.tensor([8, 8, 8, 8, 8, 7]))
        assert torch.equal(torch.from_numpy(values).float() * per_number, row)


@given(seed=st.integers(0, 1000), bits=st.sampled_from([2, 3]), tails=st.sampled_from([1.0, 2.0, 3.0]))
def test_few_levels_keep_more_than_those_of_the_largest_magnitude_would(seed, bits, tails):
    flat = FlatParameters({"matrix": (6, 128)})
    x = torch.randn(1, flat.size, generator=torch.Generator().manual_seed(seed))
    x = x.sign() * x.abs() ** tails
    numbers, _ = quantise(flat, x, bits)
    rows, kept, limit = x.view(6, 128), numbers.view(6, 128), 2 ** (bits - 1) - 1
    step = rows.abs().amax(dim=1, keepdim=True) / limit
    plain = (rows / step).round() * step
    assert (rows - kept).square().sum() < (rows - plain).square().sum()
    assert torch.unique(kept[0]).numel() <= 2 * limit + 1


@settings(max_examples=30)
@given(data=st.data(), bits=st.sampled_from([2, 3, 4, 8]))
def test_what_is_not_sent_is_kept(data, bits):
    link = DenseChannel(FLAT, 2, bits)
    for _ in range(3):
        x = data.draw(vectors)
        rows = data.draw(st.sampled_from([slice(None), [1]]))
        old = link.feedback.residual.clone()
        sent, _ = link.send(x[rows], rows)
        kept = link.feedback.residual
        torch.testing.assert_close(sent + kept[rows], old[rows] + x[rows], rtol=1e-5, atol=1e-4)
        if rows == [1]:
            assert torch.equal(kept[0], old[0]), "a sender that is away keeps its residual"


@pytest.mark.parametrize("bits", [2, 8])
def test_zeros_are_sent_as_zeros(bits):
    numbers, size = quantise(FLAT, torch.zeros(1, FLAT.size), bits)
    assert not numbers.any()
    assert size < 40
