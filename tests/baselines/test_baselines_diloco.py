"""DiLoCo's outer step, and links of few bits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.baselines.problem import Pull, SlowAdam, make, play
from tsr_swarm.baselines import diloco
from tsr_swarm.baselines.diloco import DenseChannel, quantise
from tsr_swarm.baselines.method import FlatParameters
from tsr_swarm.baselines.registry import default_settings
from tsr_swarm.wire.compression import decompress
from tsr_swarm.wire.packing import unpack

NAME = "c.weight"
FLAT = FlatParameters({"matrix": (5, 8), "vector": (7,)})


@pytest.mark.parametrize(
    ("outer", "rate", "momentum"), [("nesterov", 0.7, 0.9), ("nesterov", 0.3, 0.5), ("average", 1, 0)]
)
def test_the_outer_step_is_torchs_sgd_on_the_mean_displacement(outer, rate, momentum):
    problem = Pull()
    chosen = {} if rate in (0.7, 1) else {"outer_lr": rate, "outer_momentum": momentum}
    method = make("diloco", problem, k_x=3, outer=outer, **chosen)
    options = {**default_settings("diloco"), "k_x": 3}
    adams = [SlowAdam(options, problem.start[NAME]) for _ in range(3)]
    consensus = torch.nn.Parameter(problem.start[NAME].double())
    sgd = torch.optim.SGD([consensus], lr=rate, momentum=momentum, nesterov=outer == "nesterov")
    for period, took in enumerate([{0: 3, 1: 3, 2: 3}, {0: 3, 1: 3, 2: 3}, {0: 1, 2: 3}, {1: 3}]):
        total, gradient = sum(took.values()), torch.zeros_like(consensus)
        for peer, steps in took.items():
            weight = consensus.detach().clone()
            for step in range(steps):
                seen = problem(peer, 3 * period + step, {**problem.start, NAME: weight})[NAME]
                weight = adams[peer].step(weight, seen, 0.05)
            gradient += steps / total * (consensus.detach() - weight)
        consensus.grad = gradient
        sgd.step()
        method.advance(3 * period, [0.05] * 3, problem, took)
        torch.testing.assert_close(method.weights[NAME].double(), consensus.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("bits", "size"), [(32, 4 * 234), (16, 2 * 234)])
def test_floats_cost_their_width_both_ways(bits, size):
    (traffic,) = play(make("diloco", Pull(), bits=bits), Pull(), 1)
    assert traffic.sent == traffic.received == {"displacement": size}


@pytest.mark.parametrize(("bits", "tolerance"), [(16, 0.02), (8, 0.02), (4, 0.35)])
def test_few_bits_follow_the_float_run(bits, tolerance):
    problem = Pull()
    exact, coarse = (make("diloco", problem, k_x=2, outer="average", bits=width) for width in (32, bits))
    for method in (exact, coarse):
        play(method, problem, 15)
    moved = torch.linalg.vector_norm(exact.consensus - exact.flat.vector(problem.start))
    assert torch.linalg.vector_norm(exact.consensus - coarse.consensus) < tolerance * moved


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


@pytest.mark.parametrize("bits", [4, 8])
def test_the_bytes_are_those_of_a_frame_that_holds_the_integers(bits, monkeypatch):
    frames, real = [], diloco.compress
    monkeypatch.setattr(
        diloco, "compress", lambda raw, level: frames.append((len(raw), real(raw, level))) or frames[-1][1]
    )
    x = torch.randn(3, FLAT.size, generator=torch.Generator().manual_seed(0))
    numbers, size = quantise(FLAT, x, bits)
    assert size == sum(len(frame) for _, frame in frames) / 3
    packed_size = -(-FLAT.size * bits // 8)
    for (length, frame), row in zip(frames, numbers, strict=True):
        assert length == packed_size + 2 * 6  # five rows and a vector
        raw = decompress(frame, length)
        values = unpack(memoryview(raw)[:packed_size], FLAT.size, bits)
        scales = torch.from_numpy(np.frombuffer(raw, np.int16, 6, packed_size).copy()).view(torch.bfloat16).float()
        per_number = scales.repeat_interleave(torch.tensor([8, 8, 8, 8, 8, 7]))
        assert torch.equal(torch.from_numpy(values).float() * per_number, row)


@settings(max_examples=30)
@given(data=st.data(), bits=st.sampled_from([4, 8]))
def test_what_is_not_sent_is_kept(data, bits):
    channel = DenseChannel(FLAT, 2, bits)
    for _ in range(3):
        x = data.draw(vectors)
        rows = data.draw(st.sampled_from([slice(None), [1]]))
        old = channel.feedback.residual.clone()
        sent, _ = channel.send(x[rows], rows)
        kept = channel.feedback.residual
        torch.testing.assert_close(sent + kept[rows], old[rows] + x[rows], rtol=1e-5, atol=1e-4)
        if rows == [1]:
            assert torch.equal(kept[0], old[0]), "a sender that is away keeps its residual"


def test_the_reducer_keeps_what_its_publication_drops():
    problem = Pull()
    method = make("diloco", problem, k_x=2, outer="average", bits=4)
    start = method.consensus.clone()
    arrived = []
    send = method.up.send
    method.up.send = lambda x, rows: arrived.append(send(x, rows)) or arrived[-1]
    play(method, problem, 6)
    total = sum(numbers.mean(dim=0) for numbers, _ in arrived)
    torch.testing.assert_close(start - method.consensus + method.down.feedback.residual[0], total, rtol=1e-4, atol=1e-5)


def test_zeros_are_sent_as_zeros():
    numbers, size = quantise(FLAT, torch.zeros(1, FLAT.size), 8)
    assert not numbers.any()
    assert size < 40
