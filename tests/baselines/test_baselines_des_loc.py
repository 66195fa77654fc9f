"""Averaging after local steps: Local Adam, DES-LOC, and what they have in common with plain averaging."""

import pytest
import torch

from tests.baselines.problem import Pull, SlowAdam, make, play
from tsr_swarm.baselines.registry import default_settings
from tsr_swarm.errors import ConfigError

NAME = "a.weight"
NUMBERS = 72 + 48 + 48 + 60 + 6
MUON_NUMBERS = 48 + 48 + 60


def slow_local_adam(problem, options, work, k_u, k_v, lr=0.05):
    """One tensor of DES-LOC in float64, peer by peer; K_u = K_v = K_x is Local Adam. Returns the last mean."""
    k_x = options["k_x"]
    mean = problem.start[NAME].double()
    adams = [SlowAdam(options, problem.start[NAME]) for _ in range(3)]
    for period, took in enumerate(work):
        own = {}
        for peer, steps in took.items():
            weight = mean
            for step in range(steps):
                gradient = problem(peer, period * k_x + step, {**problem.start, NAME: weight})[NAME]
                weight = adams[peer].step(weight, gradient, lr)
            own[peer] = weight
        total = sum(took.values())
        mean = sum(took[peer] / total * own[peer] for peer in took)
        for period_of_state, key in ((k_u, "m"), (k_v, "v")):
            if (period + 1) * k_x % period_of_state == 0:
                average = sum(took[peer] / total * getattr(adams[peer], key) for peer in took)
                for peer in took:
                    setattr(adams[peer], key, average)
    return mean


@pytest.mark.parametrize(
    ("name", "k_u", "k_v"), [("local-adam", 4, 4), *(("des-loc", *k) for k in ((4, 4), (4, 8), (12, 8), (400, 400)))]
)
def test_averages_equal_the_reference(name, k_u, k_v):
    problem = Pull()
    options = {**default_settings(name), "k_x": 4, "weight_decay": 0.1}
    work = [{0: 4, 1: 4, 2: 4}] * 3
    if name == "des-loc":
        options |= {"k_u": k_u, "k_v": k_v}
        work = [work[0], {0: 4, 1: 2}, {1: 4, 2: 4}, {0: 1, 2: 4}]
    method = make(name, problem, **options)
    play(method, problem, len(work), work=work)
    expected = slow_local_adam(problem, options, work, k_u, k_v)
    torch.testing.assert_close(method.weights[NAME].double(), expected, rtol=1e-5, atol=1e-5)


def test_moments_travel_when_they_are_due():
    traffic = play(make("des-loc", Pull(), k_x=2, k_u=4, k_v=6, inner="muon"), Pull(), 6)
    kinds = [{kind.partition("_")[0] for kind in t.sent} for t in traffic]
    first, second = {"weights", "first"}, {"weights", "second"}
    assert kinds == [{"weights"}, first, second, first, {"weights"}, first | second]
    assert traffic[5].sent["weights"] == traffic[5].sent["first_moment"] == 4 * NUMBERS
    assert traffic[5].sent["second_moment"] == 4 * (NUMBERS - MUON_NUMBERS), "muon has no second moment"


def test_an_absent_peer_of_des_loc_keeps_its_own_moments():
    problem = Pull()
    method = make("des-loc", problem, k_x=2, k_u=2, k_v=2)
    play(method, problem, 1)
    kept = [state[2].clone() for state in (*method.inner.first, *method.inner.second)]
    play(method, problem, 3, work=[{0: 2, 1: 2}] * 3)
    now = [state[2] for state in (*method.inner.first, *method.inner.second)]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    assert torch.equal(method.local[2], method.consensus)


def test_local_adam_has_no_state_of_its_own():
    """Who was away for two rounds goes on exactly as the one who was there would have."""
    problem = Pull()
    same = lambda peer, step, weights: problem(0, step, weights)  # noqa: E731
    results = []
    for last in (0, 2):
        method = make("local-adam", problem, k_x=3)
        play(method, same, 3, work=[{0: 3}, {0: 2}, {last: 3}])
        results.append(method.consensus)
    assert torch.equal(*results)


def test_automatic_periods_average_second_moments_less_often():
    traffic = play(make("des-loc", Pull(), k_x=20, betas=(0.9, 0.99)), Pull(), 3)
    assert [sorted(t.sent) for t in traffic] == [["first_moment", "weights"]] * 2 + [
        ["first_moment", "second_moment", "weights"]
    ]


@pytest.mark.parametrize("name", ["des-loc", "local-adam", "lordo-paper"])
@pytest.mark.parametrize(("bits", "tolerance"), [(16, 0.02), (8, 0.02), (4, 0.35), (3, 0.4), (2, 0.5)])
def test_few_bits_follow_the_float_run(name, bits, tolerance):
    problem = Pull()
    exact, coarse = (make(name, problem, k_x=2, bits=width) for width in (32, bits))
    traffic = [play(method, problem, 15) for method in (exact, coarse)]
    moved = torch.linalg.vector_norm(exact.consensus - exact.flat.vector(problem.start))
    assert torch.linalg.vector_norm(exact.consensus - coarse.consensus) < tolerance * moved
    for whole, few in zip(*traffic, strict=True):
        assert few.sent["weights"] < whole.sent["weights"]
        assert all(few.sent[kind] == whole.sent[kind] / 2 for kind in whole.sent if kind != "weights"), "bfloat16"


def test_the_papers_periods_are_multiples_of_the_period():
    traffic = play(make("des-loc", Pull(), k_x=2, k_u="3x", k_v="6x"), Pull(), 6)
    kinds = [sorted(kind.partition("_")[0] for kind in t.sent) for t in traffic]
    assert kinds == [["weights"]] * 2 + [["first", "weights"]] + [["weights"]] * 2 + [["first", "second", "weights"]]


@pytest.mark.parametrize("period", ["0x", "x", "3y", "-1x", 3, 0])
def test_a_period_that_is_no_multiple_is_refused(period):
    with pytest.raises(
        ConfigError, match=r"des-loc.k_u = .*it must be a multiple of k_x = 2, in steps or as in \"3x\""
    ):
        make("des-loc", Pull(), k_x=2, k_u=period)
