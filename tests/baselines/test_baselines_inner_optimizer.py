"""What peers step with: AdamW and Muon, against torch's own and against loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.baselines.problem import Pull, SlowAdam, assert_close, make, play
from tests.optim.reference import reference_muon_direction
from tsr_swarm.baselines.registry import default_settings


@settings(max_examples=15)
@given(
    seed=st.integers(0, 1000),
    betas=st.tuples(st.floats(0, 0.99), st.floats(0.5, 0.999)),
    weight_decay=st.floats(0, 0.5),
    eps=st.sampled_from([1e-8, 1e-3]),
    lr=st.floats(1e-4, 0.1),
)
def test_data_parallel_with_one_peer_is_torchs_adamw(seed, betas, weight_decay, eps, lr):
    problem = Pull(seed)
    method = make("ddp", problem, peers=1, betas=betas, weight_decay=weight_decay, eps=eps)
    parameters = {name: weight.clone().requires_grad_() for name, weight in problem.start.items()}
    adamw = torch.optim.AdamW(parameters.values(), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=False)
    for step in range(5):
        method.advance(step, [lr], problem, {0: 1})
        gradient = problem(0, step, {name: parameter.detach() for name, parameter in parameters.items()})
        for name, parameter in parameters.items():
            parameter.grad = gradient[name]
        adamw.step()
    for name, weight in method.weights.items():
        torch.testing.assert_close(weight, parameters[name].detach(), rtol=1e-4, atol=1e-5)


def test_data_parallel_steps_along_the_mean_gradient():
    problem = Pull()
    method = make("ddp", problem, weight_decay=0.1)
    options = {**default_settings("ddp"), "weight_decay": 0.1}
    name = "a.weight"
    weight, adam = problem.start[name].double(), SlowAdam(options, problem.start[name])
    work = [{0: 1, 1: 1, 2: 1}, {0: 1, 2: 1}, {1: 1}, {0: 1, 1: 0, 2: 1}]
    for step, took in enumerate(work):
        there = [peer for peer, steps in took.items() if steps]
        mean = sum(problem(peer, step, {**problem.start, name: weight})[name] for peer in there) / len(there)
        weight = adam.step(weight, mean, 0.05)
        traffic = method.advance(step, [0.05], problem, took)
        torch.testing.assert_close(method.weights[name].double(), weight, rtol=1e-5, atol=1e-5)
        assert traffic.sent == traffic.received == {"gradient": 4 * (72 + 48 + 48 + 60 + 6)}


@pytest.mark.parametrize("name", ["a.weight", "b.weight", "c.weight"])
def test_matrices_take_muons_steps(name):
    problem = Pull()
    constant = {
        key: torch.randn(shape, generator=torch.Generator().manual_seed(7)) for key, shape in problem.shapes.items()
    }
    drawn = [{key: g * (1 + step) + step for key, g in constant.items()} for step in range(4)]
    method = make("ddp", problem, peers=1, inner="muon", weight_decay=0.1)
    for step in range(4):
        method.advance(step, [0.05], lambda peer, at, weights: drawn[at], {0: 1})
    weight, momentum = problem.start[name].double(), torch.zeros(problem.shapes[name])
    for gradient in drawn:
        direction, momentum = reference_muon_direction(gradient[name], momentum)
        weight = weight - 0.05 * (direction + 0.1 * weight)
    torch.testing.assert_close(method.weights[name].double(), weight, rtol=1e-3, atol=1e-4)


def test_muon_leaves_embedding_and_vectors_to_adam():
    problem = Pull()
    muon, adam = (make("ddp", problem, inner=inner) for inner in ("muon", "adam"))
    for method in (muon, adam):
        play(method, problem, 3)
    same = {name for name, weight in muon.weights.items() if torch.equal(weight, adam.weights[name])}
    assert same == {"embed_tokens.weight", "norm.weight"}


def test_a_gradient_may_have_any_strides():
    problem = Pull()
    plain, strided = make("ddp", problem, peers=1), make("diloco", problem, peers=1, k_x=1, outer="average")
    given_one = problem(0, 0, problem.start)
    turned = {name: g.mT.contiguous().mT if g.dim() == 2 else g for name, g in given_one.items()}
    plain.advance(0, [0.1], lambda peer, step, weights: given_one, {0: 1})
    strided.advance(0, [0.1], lambda peer, step, weights: turned, {0: 1})
    assert_close(plain, strided, rtol=1.3e-6, atol=1e-5)
