"""LoRDO against a loop over peers, and why it has a full-rank term."""

import pytest
import torch

from tests.baselines.problem import Pull, make, play
from tests.optim.reference import ReferenceLoRDO, reference_leading
from tsr_swarm.baselines.registry import default_settings

TALL, WIDE = "a.weight", "c.weight"  # (8, 6) is handled as its transpose


@pytest.mark.parametrize("projection", ["global", "local"])
@pytest.mark.parametrize("error_feedback", [True, False])
@pytest.mark.parametrize("name", [TALL, WIDE])
def test_rounds_equal_a_loop_over_peers(name, error_feedback, projection):
    problem = Pull()
    chosen = {"k_x": 3, "k_u": 3, "k_v": 6, "rank": 2, "omega": 0.8, "mu": 2.0, "weight_decay": 0.1}
    chosen |= {"projection": projection, "error_feedback": error_feedback}
    method = make("lordo-paper", problem, **chosen)
    options = {**default_settings("lordo-paper"), **chosen}
    is_local = projection == "local"
    mean = wide(problem.start[name]).double()
    start = method.inner.low_rank.bases[name][0].double()
    peers = [ReferenceLoRDO(options, start, mean.shape) for _ in range(3)]
    work = [{0: 3, 1: 3, 2: 3}, {0: 3, 2: 2}, {0: 3, 1: 3, 2: 3}, {0: 3, 1: 3, 2: 3}]
    for period, took in enumerate(work):
        own = {}
        for peer, steps in took.items():
            weight = mean
            for step in range(steps):
                seen = problem(peer, 3 * period + step, {**problem.start, name: wide_back(weight, name)})[name]
                weight = peers[peer].step(weight, wide(seen).double(), 0.02, is_local and step == 0)
            own[peer] = weight
        total = sum(took.values())
        new = sum(took[peer] / total * own[peer] for peer in took)
        if not is_local:
            for key, due in (("u", True), ("v", period % 2 == 1)):
                average = sum(took[peer] / total * getattr(peers[peer], key) for peer in took)
                for peer in took if due else ():
                    setattr(peers[peer], key, average)
            for peer in peers:
                peer.turn(reference_leading(mean - new, 2))
        mean = new
        method.advance(3 * period, [0.02] * 3, problem, took)
        torch.testing.assert_close(wide(method.weights[name]).double(), mean, rtol=1e-3, atol=1e-3)


def wide(matrix):
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


def wide_back(matrix, name):
    return matrix.mT if name == TALL else matrix


def span_distance(a, b):
    return float(torch.linalg.matrix_norm(a @ a.mT - b @ b.mT))


@pytest.mark.parametrize(("omega", "stays"), [(1.0, True), (0.5, False)])
def test_without_the_full_rank_term_the_first_span_is_the_last(omega, stays):
    """Section 3: a global projection of what moved inside the old span is the old span."""
    problem = Pull()
    method = make("lordo-paper", problem, k_x=3, rank=2, omega=omega)
    first = method.inner.low_rank.bases[WIDE][0].clone()
    play(method, problem, 4)
    last = method.inner.low_rank.bases[WIDE][0]
    assert (span_distance(first, last) < 1e-3) == stays


def test_a_global_basis_is_the_same_for_all_peers():
    method = make("lordo-paper", Pull(), k_x=2, rank=3)
    play(method, Pull(), 2, work=[{0: 2, 1: 2, 2: 2}, {1: 2}])
    for bases in method.inner.low_rank.bases.values():
        assert torch.equal(bases[0], bases[1])
        assert torch.equal(bases[0], bases[2])
        torch.testing.assert_close(bases[0].mT @ bases[0], torch.eye(3), rtol=0, atol=1e-5)


def test_weights_travel_whole_and_moments_of_matrices_at_their_rank_unless_a_basis_is_private():
    global_, local = (
        play(make("lordo-paper", Pull(), k_x=2, k_u=2, k_v=4, rank=2, projection=projection), Pull(), 2)
        for projection in ("global", "local")
    )
    dense, low = 72 + 6, 2 * (8 + 8 + 10)  # embedding and norm; r times the longer side
    assert [t.sent for t in global_] == [
        {"weights": 4 * 234, "first_moment": 4 * (dense + low)},
        {"weights": 4 * 234, "first_moment": 4 * (dense + low), "second_moment": 4 * (dense + low)},
    ]
    assert local[1].sent == {"weights": 4 * 234, "first_moment": 4 * dense, "second_moment": 4 * dense}
    assert all(t.sent == t.received for t in (*global_, *local))
