"""PowerSGD: the compressed mean, its residuals and its bytes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.baselines.problem import Pull, make, play
from tsr_swarm.baselines.method import ActivePeers, FlatParameters
from tsr_swarm.baselines.powersgd import LowRankMean, PowerSGDSettings

FLAT = FlatParameters({"w": (9, 7), "norm": (5,)})
ALL = ActivePeers((0, 1, 2), slice(None), torch.tensor([0.5, 0.25, 0.25]))


def gram_schmidt(columns):
    """As in the paper: one column after the other."""
    columns = columns.clone()
    for i in range(columns.shape[1]):
        for j in range(i):
            columns[:, i] -= (columns[:, j] @ columns[:, i]) * columns[:, j]
        columns[:, i] /= columns[:, i].norm()
    return columns


def drawn(seed, count=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, FLAT.size, generator=generator) for _ in range(count)]


@given(seed=st.integers(0, 1000), rank=st.integers(1, 3), warm=st.booleans(), feedback=st.booleans())
def test_the_mean_equals_the_reference(seed, rank, warm, feedback):
    low_rank = LowRankMean(FLAT, 3, PowerSGDSettings(rank=rank, warm_start=warm, error_feedback=feedback))
    right = low_rank.right["w"].double()
    errors = [torch.zeros(9, 7, dtype=torch.float64) for _ in range(3)]
    for x in drawn(seed, 3):
        matrices = [FLAT.views(row)["w"].double() + error for row, error in zip(x, errors, strict=True)]
        shares = ALL.shares.double().tolist()
        left = gram_schmidt(sum(share * (m @ right) for share, m in zip(shares, matrices, strict=True)))
        rights = [m.mT @ left for m in matrices]
        right = sum(share * own for share, own in zip(shares, rights, strict=True))
        if feedback:
            errors = [m - left @ own.mT for m, own in zip(matrices, rights, strict=True)]
        mean = FLAT.views(low_rank.mean(x.clone(), ALL))
        torch.testing.assert_close(mean["w"].double(), left @ right.mT, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(mean["norm"], ALL.mean(FLAT.views(x)["norm"]))
        if not warm:
            right = low_rank.right["w"].double()


def test_an_exchange_sends_both_sketches_in_two_round_trips():
    (traffic,) = play(make("powersgd", Pull(), rank=2), Pull(), 1)
    sides = (12 + 6) + (8 + 6) + (8 + 6) + (6 + 10)
    assert traffic.sent == traffic.received == {"sketch": 4 * 2 * sides, "dense": 4 * 6}
    assert traffic.round_trips == 2


def test_what_would_be_longer_compressed_is_sent_whole():
    # rank 4: 4 (12 + 6) equals 12 * 6, 4 (8 + 6) and 4 (6 + 10) are more than 8 * 6 and 6 * 10; rank 3 is always less
    for rank, sketch, dense in ((4, 0, 234), (3, 3 * (18 + 14 + 14 + 16), 6)):
        (traffic,) = play(make("powersgd", Pull(), rank=rank), Pull(), 1)
        assert (traffic.sent.get("sketch", 0), traffic.sent["dense"]) == (4 * sketch, 4 * dense)


def test_zero_gradients_are_survived():
    low_rank = LowRankMean(FLAT, 3, PowerSGDSettings(rank=2))
    (x,) = drawn(1)
    assert not low_rank.mean(torch.zeros(3, FLAT.size), ALL).any()
    assert FLAT.views(low_rank.mean(x, ALL))["w"].any()


@pytest.mark.parametrize("k_x", [1, 4])
def test_a_peer_that_is_away_keeps_its_residual(k_x):
    problem = Pull()
    method = make("powersgd", problem, k_x=k_x, rank=1)
    play(method, problem, 1)
    kept = method.low_rank.feedback.residual[1].clone()
    play(method, problem, 1, work=[{0: k_x, 2: k_x}])
    assert kept.any()
    assert torch.equal(method.low_rank.feedback.residual[1], kept)
