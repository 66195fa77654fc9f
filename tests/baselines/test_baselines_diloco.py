"""DiLoCo's outer step, and what it does with few bits."""

import pytest
import torch

from tests.baselines.problem import Pull, SlowAdam, make, play
from tsr_swarm.baselines.registry import default_settings

NAME = "c.weight"


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


@pytest.mark.parametrize(("bits", "tolerance"), [(16, 0.02), (8, 0.02), (4, 0.35), (3, 0.4), (2, 0.5)])
def test_few_bits_follow_the_float_run(bits, tolerance):
    problem = Pull()
    exact, coarse = (make("diloco", problem, k_x=2, outer="average", bits=width) for width in (32, bits))
    for method in (exact, coarse):
        play(method, problem, 15)
    moved = torch.linalg.vector_norm(exact.consensus - exact.flat.vector(problem.start))
    assert torch.linalg.vector_norm(exact.consensus - coarse.consensus) < tolerance * moved


@pytest.mark.parametrize("bits", [2, 4])
def test_the_reducer_keeps_what_its_publication_drops(bits):
    problem = Pull()
    method = make("diloco", problem, k_x=2, outer="average", bits=bits)
    start = method.consensus.clone()
    arrived = []
    send = method.channel.up.send
    method.channel.up.send = lambda x, rows: arrived.append(send(x, rows)) or arrived[-1]
    play(method, problem, 6)
    total = sum(numbers.mean(dim=0) for numbers, _ in arrived)
    torch.testing.assert_close(
        start - method.consensus + method.channel.down.feedback.residual[0], total, rtol=1e-4, atol=1e-5
    )
