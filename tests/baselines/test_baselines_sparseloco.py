"""SparseLoCo: what is kept of a chunk, what it costs, and what stays behind."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.baselines.problem import Pull, make, play
from tsr_swarm.baselines.method import FlatParameters
from tsr_swarm.baselines.sparseloco import SparseLoCoSettings, payload_bytes, sparsify

FLAT = FlatParameters({"long": (5, 7), "short": (3,)})


def slow_sparsify(row, density, chunk, two_bits):
    """Top-k of one tensor's numbers in float64, one chunk after the other, with a sort."""
    sent = [0.0] * len(row)
    for start in range(0, len(row), chunk):
        part = row[start : start + chunk]
        kept = sorted(range(len(part)), key=lambda i: -abs(part[i]))[: max(1, round(density * len(part)))]
        middle = sum(abs(part[i]) for i in kept) / len(kept)
        groups = [[i for i in kept if abs(part[i]) <= middle], [i for i in kept if abs(part[i]) > middle]]
        for group in groups:
            for i in group:
                magnitude = sum(abs(part[j]) for j in group) / len(group) if two_bits else abs(part[i])
                sent[start + i] = math.copysign(magnitude, part[i])
    return sent


@given(seed=st.integers(0, 1000), density=st.floats(0.01, 1), chunk=st.integers(2, 40), two_bits=st.booleans())
def test_sparsify_equals_the_reference(seed, density, chunk, two_bits):
    x = torch.randn(2, FLAT.size, generator=torch.Generator().manual_seed(seed))
    chosen = SparseLoCoSettings(density=density, chunk=chunk, value_bits=2 if two_bits else 32)
    sent = sparsify(FLAT, x, chosen)
    for given_part, sent_part in zip(FLAT.parts(x), FLAT.parts(sent), strict=True):
        expected = [slow_sparsify(row, density, chunk, two_bits) for row in given_part.double().tolist()]
        torch.testing.assert_close(sent_part, torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95, 1.0])  # a few: with many, two numbers tie for the last place
def test_rounds_equal_a_loop_over_peers(decay):
    """Algorithm 1 for the consensus, from the displacements the method itself saw."""
    problem = Pull()
    method = make("sparseloco", problem, k_x=2, density=0.2, chunk=16, decay=decay)
    seen, displacements = [], method.displacements
    method.displacements = lambda present: seen.append(displacements(present).clone()) or seen[-1].clone()
    consensus = method.consensus.double().clone()
    play(method, problem, 3, work=[{0: 2, 1: 2, 2: 2}, {0: 2, 2: 1}, {0: 2, 1: 2, 2: 2}])
    memory = [torch.zeros_like(consensus) for _ in range(3)]
    for there, shares, moved in zip([[0, 1, 2], [0, 2], [0, 1, 2]], [[1, 1, 1], [2, 1], [1, 1, 1]], seen, strict=True):
        for peer, share, displacement in zip(there, shares, moved.double(), strict=True):
            memory[peer] = decay * memory[peer] + displacement
            sent = []
            for part in method.flat.parts(memory[peer]):
                sent += slow_sparsify(part.tolist(), 0.2, 16, True)
            sent = torch.tensor(sent, dtype=torch.float64)
            memory[peer] = memory[peer] - sent
            consensus = consensus - share / sum(shares) * sent
    torch.testing.assert_close(method.consensus.double(), consensus, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.feedback.residual.double(), torch.stack(memory), rtol=1e-4, atol=1e-5)


def test_senders_divides_by_those_who_sent():
    problem = Pull()
    method = make(
        "sparseloco", problem, k_x=1, density=1e-9, value_bits=32, average="senders", eps=0.9, betas=(0.0, 0.0)
    )
    before = problem.start["norm.weight"].clone()
    shares = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])

    def gradient(peer, step, weights):  # peers 0 and 1 send the last entry, peer 2 the first one
        zero = {name: torch.zeros(shape) for name, shape in problem.shapes.items()}
        return {**zero, "norm.weight": shares if peer < 2 else shares.flip(0)}

    method.advance(0, [1.0], gradient, {0: 1, 1: 1, 2: 1})
    step = 6 / 6.9  # g / (|g| + eps)
    moved = before - method.weights["norm.weight"]
    torch.testing.assert_close(moved, torch.tensor([step, 0, 0, 0, 0, step]))


def test_bytes_of_the_published_operating_point():
    # 64 of 4096: 472 bits for C(4096, 64) sets, 64 values of 2 bits, two float32 magnitudes
    assert payload_bytes(FlatParameters({"w": (4096, 3)}), SparseLoCoSettings()) == 3 * (472 + 128 + 64) / 8
    # a shorter chunk at the end: round(100 / 64) = 2 of 100, one of 4950 pairs
    short = 13 + 2 * 2 + 64
    assert payload_bytes(FlatParameters({"w": (4196,)}), SparseLoCoSettings()) == math.ceil(
        (472 + 128 + 64 + short) / 8
    )
    whole = SparseLoCoSettings(density=1, value_bits=32)
    assert payload_bytes(FlatParameters({"w": (10,)}), whole) == 40, "where all are sent, there is one set"


def test_each_peer_downloads_the_payloads_of_all_others():
    problem = Pull()
    method = make("sparseloco", problem, k_x=1)
    payload = payload_bytes(method.flat, SparseLoCoSettings())
    traffic = play(method, problem, 3, work=[{0: 1, 1: 1, 2: 1}, {0: 1, 2: 1}, {1: 1}])
    assert [t.sent for t in traffic] == [{"sparse": payload}] * 3
    assert [t.received for t in traffic] == [{"sparse": 2 * payload}, {"sparse": payload}, {}]
