"""TSR-Adam, as printed and with the linear refresh, against loops over peers."""

import torch

from tests.baselines.problem import Pull, make, play
from tests.optim.reference import AdamOptions, reference_tsr_adam
from tsr_swarm.baselines.registry import default_settings
from tsr_swarm.baselines.tsr_adam import published_refresh

NAME = "c.weight"  # (6, 10)


def orth(matrix):
    return torch.linalg.qr(matrix).Q


def slow_published(gradients, shares, omega, rank):
    """Algorithm 1's refresh in float64, worker by worker."""
    qs, bs = [], []
    for gradient in gradients:
        q = orth(gradient @ omega)
        q = orth(gradient @ orth(gradient.mT @ q))
        qs.append(q)
        bs.append(q.mT @ gradient)
    q_bar = sum(share * q for share, q in zip(shares, qs, strict=True))
    b_bar = sum(share * b for share, b in zip(shares, bs, strict=True))
    u, _, vt = torch.linalg.svd(b_bar, full_matrices=False)
    return q_bar @ u[:, :rank], vt[:rank].mT


def own_gradients(problem, step, weight):
    seen = {**problem.start, NAME: weight}
    return [problem(peer, step, seen)[NAME].double() for peer in range(3)]


def test_the_published_algorithm_equals_a_loop_over_workers():
    problem = Pull(noise=0.1)
    chosen = {"rank": 2, "oversampling": 2, "k_r": 3, "scale": 0.5, "weight_decay": 0.1}
    method = make("tsr-adam-paper", problem, **chosen)
    generator = torch.Generator()
    generator.set_state(method.cores[NAME].generator.get_state())
    eps = default_settings("tsr-adam-paper")["eps"]
    weight, m, v = problem.start[NAME].double(), 0.0, 0.0
    for t in range(1, 8):
        gradients = own_gradients(problem, t - 1, weight)
        if (t - 1) % 3 == 0:
            omega = torch.randn(10, 4, generator=generator).double()
            left, right = slow_published(gradients, [1 / 3] * 3, omega, 2)
        core = left.mT @ (sum(gradients) / 3) @ right
        m, v = 0.9 * m + 0.1 * core, 0.99 * v + 0.01 * core**2  # unchanged by a refresh
        direction = (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + eps)
        weight = weight - 0.02 * (0.5 * left @ direction @ right.mT + 0.1 * weight)
        method.advance(t - 1, [0.02], problem, {0: 1, 1: 1, 2: 1})
        torch.testing.assert_close(method.weights[NAME].double(), weight, rtol=2e-3, atol=2e-3)


def test_averaged_factors_are_orthonormal_only_where_all_agree():
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(9, 3, generator=generator) @ torch.randn(3, 8, generator=generator)
    noise = torch.randn(4, 9, 8, generator=generator)
    omega, shares = torch.randn(8, 5, generator=generator), torch.full((4,), 0.25)
    agreed, right = published_refresh((signal + 0.1 * noise[0]).expand(4, 9, 8), shares, omega, 3)
    torch.testing.assert_close(agreed.mT @ agreed, torch.eye(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(right.mT @ right, torch.eye(3), rtol=0, atol=1e-4)
    noisy, _ = published_refresh(signal + 2 * noise, shares, omega, 3)
    assert float(torch.linalg.svdvals(noisy)[-1]) < 0.95


def test_the_linear_refresh_is_our_own_tsr_adam_on_the_mean_gradient():
    problem = Pull()
    method = make("tsr-adam-paper", problem, refresh="linear", rank=2, k_r=3, weight_decay=0.1)
    basis = method.cores[NAME].basis
    options = AdamOptions(lr=0.02, betas=(0.9, 0.99), scale=0.75, weight_decay=0.1)
    means = []
    for step in range(7):
        means.append(sum(own_gradients(problem, step, method.weights[NAME])) / 3)
        method.advance(step, [0.02], problem, {0: 1, 1: 1, 2: 1})
    expected = reference_tsr_adam(problem.start[NAME], means, basis, 3, options)
    torch.testing.assert_close(method.weights[NAME].double(), expected, rtol=1e-3, atol=1e-4)


def traffic_of(problem, **chosen):
    chosen = {"rank": 2, "embedding_rank": 1, "oversampling": 3, "k_r": 3, "k_r_embedding": 2, **chosen}
    method = make("tsr-adam-paper", problem, **chosen)
    traffic = play(method, problem, 4)
    assert all(t.sent == t.received for t in traffic)
    return [({kind: size / 4 for kind, size in t.sent.items()}, t.round_trips) for t in traffic]


def test_the_published_refresh_sends_cores_at_every_step_and_sketches_when_due():
    core, matrices, embedding = 3 * 2**2 + 1, 5 * (14 + 14 + 16), 4 * 18
    assert traffic_of(Pull()) == [
        ({"core": core, "sketch": matrices + embedding, "dense": 6}, 2),
        ({"core": core, "dense": 6}, 1),
        ({"core": core, "sketch": embedding, "dense": 6}, 2),
        ({"core": core, "sketch": matrices, "dense": 6}, 2),
    ]


def test_the_linear_refresh_sends_no_core_where_it_sends_a_sketch():
    matrices, embedding = 2 * (14 + 14 + 16), 18
    assert traffic_of(Pull(), refresh="linear") == [
        ({"sketch": matrices + embedding, "dense": 6}, 2),
        ({"core": 13, "dense": 6}, 1),
        ({"core": 12, "sketch": embedding, "dense": 6}, 2),
        ({"core": 1, "sketch": matrices, "dense": 6}, 2),
    ]
