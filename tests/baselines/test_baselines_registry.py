"""What every method promises, whatever its rule."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.baselines.problem import Pull, assert_close, make, play
from tsr_swarm.baselines.powersgd import PowerSGDSettings
from tsr_swarm.baselines.registry import METHODS, default_settings, make_method
from tsr_swarm.errors import ConfigError, RunError

VARIANTS = [
    *((name, {}) for name in METHODS),
    ("ddp", {"inner": "muon"}),
    ("diloco", {"outer": "average", "bits": 16}),
    ("diloco", {"bits": 8, "inner": "muon"}),
    ("diloco", {"outer": "average", "bits": 4}),
    *(("diloco", {"outer": "average", "bits": bits, "inner": "muon"}) for bits in (2, 3)),
    ("local-adam", {"bits": 3}),
    ("des-loc", {"bits": 2, "k_u": "3x", "k_v": "6x"}),
    ("lordo-paper", {"bits": 3, "omega": 0.5}),
    ("ddp", {"bits": 16, "inner": "muon"}),
    ("des-loc", {"inner": "muon"}),
    ("sparseloco", {"density": 0.1, "average": "senders"}),
    ("powersgd", {"k_x": 5, "rank": 1}),
    ("powersgd", {"warm_start": False, "error_feedback": False}),
    ("lordo-paper", {"projection": "local"}),
    ("lordo-paper", {"error_feedback": False}),
    ("tsr-adam-paper", {"refresh": "linear", "k_r": 2, "scale": 0.0}),
]
each_variant = pytest.mark.parametrize(("name", "chosen"), VARIANTS, ids=lambda x: x if isinstance(x, str) else str(x))


def work_of_periods(period, periods):
    """How many steps each peer manages, period by period."""
    some = st.dictionaries(st.integers(0, 2), st.integers(0, period), max_size=3)
    return st.lists(some, min_size=periods, max_size=periods)


def weights_of(method):
    return {name: weight.clone() for name, weight in method.weights.items()}


@each_variant
def test_training_lowers_the_loss(name, chosen):
    problem = Pull()
    method = make(name, problem, **chosen)
    before = problem.loss(method.weights)
    periods = 60 // method.period
    play(method, problem, periods)
    assert problem.loss(method.weights) < 0.8 * before
    assert len(problem.calls) == 3 * method.period * periods


@each_variant
def test_the_same_calls_give_the_same_bits(name, chosen):
    results = []
    for _ in range(2):
        method, problem = make(name, Pull(), **chosen), Pull()
        traffic = play(method, problem, 2)
        results.append((weights_of(method), traffic))
    (first, sent), (second, again) = results
    assert sent == again
    assert all(torch.equal(first[key], second[key]) for key in first)


@each_variant
def test_a_peer_that_is_always_away_changes_nothing(name, chosen):
    problem = Pull()
    with_idle, alone = make(name, problem, peers=3, **chosen), make(name, problem, peers=2, **chosen)
    work = [{0: with_idle.period, 1: with_idle.period}] * 3
    traffic = [play(method, problem, 3, work=work) for method in (with_idle, alone)]
    assert traffic[0] == traffic[1]
    assert_close(with_idle, alone)


@each_variant
@settings(max_examples=5)
@given(data=st.data())
def test_stragglers_and_absence_are_survived(name, chosen, data):
    problem = Pull()
    k_x = {} if "k_x" in chosen or default_settings(name)["k_x"] == 1 else {"k_x": 4}
    method = make(name, problem, **chosen, **k_x)
    work = data.draw(work_of_periods(method.period, 3))
    traffic = play(method, problem, 3, work=work)
    expected = [
        (peer, i * method.period + step)
        for i, took in enumerate(work)
        for peer in sorted(took)
        for step in range(took[peer])
    ]
    assert problem.calls == expected
    assert all(torch.isfinite(weight).all() for weight in method.weights.values())
    assert [bool(t.sent) for t in traffic] == [any(took.values()) for took in work]


@each_variant
def test_without_anybody_nothing_happens(name, chosen):
    method = make(name, Pull(), **chosen)
    before = weights_of(method)
    (traffic,) = play(method, Pull(), 1, work=[{1: 0}])
    assert (dict(traffic.sent), dict(traffic.received)) == ({}, {})
    assert all(torch.equal(before[key], weight) for key, weight in method.weights.items())


@each_variant
def test_a_method_has_weights_of_its_own(name, chosen):
    problem = Pull()
    kept = {key: weight.clone() for key, weight in problem.start.items()}
    method = make(name, problem, **chosen)
    assert all(torch.equal(kept[key], weight) for key, weight in method.weights.items())
    play(method, problem, 1)
    assert all(torch.equal(kept[key], weight) for key, weight in problem.start.items())
    assert {key: weight.shape for key, weight in method.weights.items()} == {k: w.shape for k, w in kept.items()}


BOTH = ({"inner": "adam"}, {"inner": "muon"})
PLAIN = {"k_x": 3, "outer": "average"}
SAME = [
    *(("des-loc", {"k_x": 3, "k_u": 3, "k_v": 3, **x}, "local-adam", {"k_x": 3, **x}) for x in BOTH),
    *(("des-loc", {"k_x": 3, "k_u": 300, "k_v": 300, **x}, "diloco", {**PLAIN, **x}) for x in BOTH),
    ("powersgd", {"rank": "d"}, "ddp", {}),
    ("powersgd", {"rank": "d", "k_x": 3}, "diloco", PLAIN),
    ("sparseloco", {"k_x": 3, "density": 1, "value_bits": 32}, "diloco", PLAIN),
    ("sparseloco", {"k_x": 3, "density": 1, "value_bits": 32, "average": "senders"}, "diloco", PLAIN),
    ("lordo-paper", {"rank": "d", "k_x": 2, "k_u": 4, "k_v": 4}, "des-loc", {"k_x": 2, "k_u": 4, "k_v": 4}),
    ("tsr-adam-paper", {"rank": "d", "embedding_rank": "d"}, "ddp", {}),
]


@pytest.mark.parametrize(("name", "chosen", "plainer", "settings"), SAME)
def test_a_method_that_leaves_nothing_out_is_a_plainer_one(name, chosen, plainer, settings):
    """To the bit where it computes the same; with the same bytes, but for the positions that SparseLoCo sends."""
    problem = Pull()
    method, plain = make(name, problem, **chosen), make(plainer, problem, **settings)
    traffic, expected = play(method, problem, 3), play(plain, problem, 3)
    is_exact = (name, plainer) in (("des-loc", "local-adam"), ("lordo-paper", "des-loc"), ("tsr-adam-paper", "ddp"))
    assert_close(method, plain, **({"rtol": 0, "atol": 0} if is_exact else {}))
    assert {t.round_trips for t in traffic} == {1}
    if name in ("des-loc", "lordo-paper") and is_exact:
        assert traffic == expected
    elif name != "sparseloco":
        assert [[*t.sent.values()] for t in traffic] == [[*t.sent.values()] for t in expected]


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_diverged_says_so(name):
    problem = Pull()
    problem.target = {key: target * float("nan") for key, target in problem.target.items()}
    with pytest.raises(RunError, match="lower the rate"):
        play(make(name, problem), problem, 1)


@pytest.mark.parametrize("name", METHODS)
def test_defaults_survive_json(name):
    settings = json.loads(json.dumps(default_settings(name)))
    assert make_method(name, Pull().start, 2, settings).period == settings["k_x"]


@pytest.mark.parametrize("work", [{3: 1}, {0: 21}, {0: -1}])
def test_work_that_cannot_be_is_a_bug(work):
    with pytest.raises(ValueError, match="do not fit 3 peers and 20 steps"):
        play(make("diloco", Pull()), Pull(), 1, work=[work])


REFUSED = [
    ("dilocco", {}, "'dilocco' is not a known method; did you mean 'diloco'?"),
    ("diloco", {"outer_lrr": 1.0}, "'diloco.outer_lrr' is not a known key; did you mean 'diloco.outer_lr'?"),
    ("diloco", {"bits": 7}, "diloco.bits = 7 is out of range; it must be 32, 16, 8, 4, 3 or 2."),
    ("diloco", {"bits": "8"}, "diloco.bits = '8' has the wrong type; it must be a whole number."),
    ("diloco", {"k_x": True}, "diloco.k_x = True has the wrong type; it must be a whole number."),
    ("diloco", {"betas": [0.9]}, "diloco.betas = [0.9] has the wrong type; it must be a list of two numbers."),
    ("diloco", {"outer": "adam"}, 'diloco.outer = \'adam\' is out of range; it must be "nesterov" or "average".'),
    ("ddp", {"k_x": 2}, "ddp.k_x = 2 is out of range; it must be 1: this method exchanges at every step."),
    ("des-loc", {"k_u": 30}, "des-loc.k_u = 30 is out of range; it must be a multiple of k_x = 20, in steps"),
    ("sparseloco", {"density": 0}, "sparseloco.density = 0.0 is out of range; it must be above 0, at most 1."),
    ("powersgd", {"rank": 0}, "powersgd.rank = 0 is out of range; it must be a number of at least 1, or a share"),
    ("powersgd", {"rank": "d/0"}, "powersgd.rank = 'd/0' is out of range; it must be a number of at least 1"),
    ("powersgd", {"warm_start": 1}, "powersgd.warm_start = 1 has the wrong type; it must be true or false."),
    ("lordo-paper", {"inner": "muon"}, "lordo-paper.inner = 'muon' is out of range; it must be \"adam\""),
    (
        "tsr-adam-paper",
        {"rank": 1.5},
        "tsr-adam-paper.rank = 1.5 has the wrong type; it must be a whole number or text.",
    ),
]


@pytest.mark.parametrize(("name", "chosen", "sentence"), REFUSED)
def test_bad_settings_are_refused_in_one_sentence(name, chosen, sentence):
    with pytest.raises(ConfigError) as caught:
        make_method(name, Pull().start, 2, chosen)
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).endswith((".", "?"))


def test_numbers_of_numpy_are_settings_too():
    chosen = {
        "rank": np.int64(3),
        "betas": np.array([0.5, 0.75]),
        "eps": np.float32(0.5),
        "warm_start": np.bool_(False),
    }
    taken = PowerSGDSettings.read(chosen)
    assert taken == PowerSGDSettings(rank=3, betas=(0.5, 0.75), eps=0.5, warm_start=False)
    assert [type(getattr(taken, key)) for key in chosen] == [int, tuple, float, bool]


def test_peers_are_counted_from_one():
    with pytest.raises(ConfigError, match="peers = 0 is out of range"):
        make_method("ddp", Pull().start, 0, {})
