"""Simulated runs: the same as real ones, the same again, and under churn and stragglers."""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.swarm_rig import run_swarm, tiny_config
from tsr_swarm.baselines.method import ExchangeBytes
from tsr_swarm.baselines.registry import METHODS, default_settings
from tsr_swarm.errors import ConfigError, RunError
from tsr_swarm.simulate.engine import SimulatedRun, is_due, run_one
from tsr_swarm.simulate.heterogeneity import Heterogeneity
from tsr_swarm.simulate.result import ExchangeResult, RunResult
from tsr_swarm.simulate.run_spec import RunSpec


def own_spec(folder: Path, **changes: Any) -> RunSpec:
    """Our own method: 3 peers, 4 rounds of 3 steps, bases refreshed in rounds 1 and 3."""
    sections = {name: changes.pop(name) for name in ("optimizer", "wire", "periods") if name in changes}
    return RunSpec(**{"method": "tsr", "config": tiny_config(folder, **sections), "peers": 3, "steps": 12, **changes})


def baseline_spec(folder: Path, method: str, **settings: Any) -> RunSpec:
    spec = own_spec(folder)
    k_x = {"k_x": 3} if default_settings(method)["k_x"] != 1 else {}
    return replace(spec, method=method, settings={**default_settings(method), **k_x, **settings})


def outcome(result: RunResult) -> tuple[object, ...]:
    """All that must not depend on when and where it was run."""
    return result.name, result.curve, result.digests, result.text, result.ended


FEW_BITS = {"core_bits": 4, "core_density": 0.3, "published_bits": 4, "published_density": 0.5}


@pytest.mark.parametrize(
    ("optimizer", "wire", "periods"),
    [
        ({"outer": "nesterov", "outer_lr": 0.7}, FEW_BITS, {"k_u": 3, "k_v": 6}),
        ({"local_space": "full"}, {}, {}),
    ],
    ids=["core, few bits, outer step, moments", "full"],
)
async def test_a_simulated_run_is_the_real_one_to_the_bit(
    tmp_path: Path, optimizer: dict[str, object], wire: dict[str, object], periods: dict[str, object]
) -> None:
    config = tiny_config(tmp_path, optimizer=optimizer, wire=wire, periods=periods)
    real = await run_swarm(tmp_path, config, peers=config.data.parts)
    spec = RunSpec(method="tsr", config=config, peers=config.data.parts, steps=12, schedule="constant", exact=True)
    simulated = run_one(spec)
    assert [{digest} for digest in simulated.digests] == [real.digests()[round] for round in (1, 2, 3, 4)]
    assert simulated.loss == real.finished().last_loss
    first = real.closed()[0]
    sent, received = first.wire_bytes["sent"], first.wire_bytes["received"]
    point = next(point for point in simulated.curve if point.step == 3)
    payload = {kind: 4 * count for kind, count in point.sent.items() if kind != "control"}
    assert payload == {kind: count for kind, count in sent.items() if kind != "control"}
    fetched = {kind: 4 * count for kind, count in point.received.items() if kind != "control"}
    assert fetched == {kind: count for kind, count in received.items() if kind not in ("control", "state")}
    assert ("moment" in payload) == ("moment" in fetched) == bool(periods)


def test_the_same_run_again_gives_the_same_bits_and_a_shared_consensus_gives_those_of_unshared_ones(
    tmp_path: Path,
) -> None:
    conditions = Heterogeneity(churn=0.3, straggler_share=0.4, straggler_factor=2.0, away_steps=3)
    spec = own_spec(tmp_path, heterogeneity=conditions, periods={"k_u": 3, "k_v": 6})
    first, again, exact = run_one(spec), run_one(spec), run_one(replace(spec, exact=True))
    assert outcome(first) == outcome(again)
    assert (first.curve, first.digests) == (exact.curve, exact.digests)
    assert first.name != exact.name
    assert outcome(run_one(replace(spec, config=tiny_config(tmp_path, run={"seed": 1})))) != outcome(first)


def test_averaged_moments_change_what_peers_do_next_and_cost_bytes_in_their_rounds(tmp_path: Path) -> None:
    """K_u is every round of 3 steps, K_v every second one."""
    own, averaged = own_spec(tmp_path, eval_every=3), own_spec(tmp_path, eval_every=3, periods={"k_u": 3, "k_v": 6})
    alone, together = run_one(own), run_one(averaged)
    assert alone.digests[0] == together.digests[0]
    assert all(one != other for one, other in zip(alone.digests[1:], together.digests[1:], strict=True))
    received = [point.received.get("moment", 0) for point in together.curve]
    rounds = [after - before for before, after in pairwise(received)]
    assert min(rounds[1], rounds[3]) > 1.5 * max(rounds[0], rounds[2]) > 0
    assert not any("moment" in {*point.sent, *point.received} for point in alone.curve)


def test_a_result_survives_being_kept_as_json(tmp_path: Path) -> None:
    result = run_one(own_spec(tmp_path, steps=3))
    assert RunResult.from_json(result.to_json()) == result
    assert result.about["wall_seconds"] > 0


def test_a_straggler_contributes_once_it_has_a_whole_round_of_steps(tmp_path: Path) -> None:
    """One of three peers manages one of three steps a round: it is in every third average."""
    slow = Heterogeneity(straggler_share=1 / 3, straggler_factor=3.0)
    result = run_one(own_spec(tmp_path, steps=9, heterogeneity=slow, eval_every=3))
    tokens = [point.tokens for point in result.curve]
    by_round = [after - before for before, after in pairwise(tokens)]
    a_peer = 3 * 4 * 16
    assert by_round == [2 * a_peer, 2 * a_peer, 3 * a_peer]
    assert not result.ended


def test_the_time_of_a_gradient_sketch_is_counted(tmp_path: Path) -> None:
    curve = run_one(own_spec(tmp_path, steps=6, eval_every=3)).curve
    assert [point.step_times for point in curve] == [0, 3 + 8, 6 + 8]  # 8 micro-batches in round 1
    assert [point.round_trips for point in curve] == [0, 2, 4]


class Broken:
    """A method whose weights or payloads stop being numbers in the second of its periods."""

    period = 3

    def __init__(self, error: str = "") -> None:
        self.weights = {"w": torch.zeros(2)}
        self._error = error

    def advance(self, first_step: int, work: Mapping[int, int]) -> ExchangeResult:
        if first_step and self._error:
            raise RunError(self._error)
        self.weights = {"w": torch.full((2,), math.nan if first_step else 1.0)}
        return ExchangeResult(traffic=ExchangeBytes({"dense": 8.0}, {"dense": 8.0}), tokens=5, losses=(1.0,))


@pytest.mark.parametrize("error", ["", "Block 0 has moved by NaN."])
def test_weights_that_stop_being_numbers_end_a_run_and_are_a_result(tmp_path: Path, error: str) -> None:
    run = SimulatedRun(own_spec(tmp_path, eval_every=3), Broken(error), lambda weights: float(weights["w"].sum()))
    steps: list[int] = []
    ended = run.run(steps.append)
    assert ended == (error or "The held-out loss after 6 steps is not a number.")
    assert [point.loss for point in run.curve] == ([0.0, 2.0] if error else [0.0, 2.0, None])
    assert steps == [3]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_baseline_learns_under_churn_and_stragglers_and_repeats_to_the_bit(tmp_path: Path, method: str) -> None:
    rough = Heterogeneity(churn=0.2, straggler_share=0.4, straggler_factor=3.0, heterogeneous=True, away_steps=3)
    spec = replace(baseline_spec(tmp_path, method), heterogeneity=rough)
    result = run_one(spec)
    losses = [point.loss for point in result.curve if point.loss is not None]
    assert losses[-1] < losses[0] - 0.05, losses
    assert all(count > 0 for count in (*result.curve[-1].sent.values(), *result.curve[-1].received.values()))
    assert not result.digests
    assert outcome(run_one(spec)) == outcome(result)


def test_a_baselines_name_does_not_depend_on_settings_of_our_own_method(tmp_path: Path) -> None:
    spec = baseline_spec(tmp_path, "ddp")
    other = replace(spec, config=tiny_config(tmp_path, wire={"core_bits": 16}, optimizer={"lr": 0.01, "rank": 3}))
    own = own_spec(tmp_path)
    assert spec.config.optimizer.warmup_steps == 4
    warm = replace(other, config=replace(other.config, optimizer=replace(other.config.optimizer, warmup_steps=4)))
    assert warm.name == spec.name
    assert replace(own, config=warm.config).name != own.name


@pytest.mark.parametrize(
    "change",
    [
        {"peers": 4},
        {"steps": 15},
        {"schedule": "constant"},
        {"eval_every": 4},
        {"heterogeneity": Heterogeneity(heterogeneous=True)},
        {"exact": True},
    ],
)
def test_a_name_says_everything_that_determines_a_result(tmp_path: Path, change: dict[str, Any]) -> None:
    assert own_spec(tmp_path, **change).name != own_spec(tmp_path).name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 10}, "multiple of the 3 steps"),
        ({"peers": 0}, "peers = 0 is out of range"),
        ({"schedule": "linear"}, "cosine or constant"),
        ({"eval_every": 13}, "eval_every = 13"),
    ],
)
def test_an_impossible_run_is_refused_in_one_sentence(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run_one(own_spec(tmp_path, **change))


def test_curves_have_points_at_the_start_the_end_regular_steps_and_powers_of_two() -> None:
    due = [step for step in range(20, 421, 20) if is_due(step, 20, 100, 420)]
    assert due == [20, 40, 80, 100, 160, 200, 300, 320, 400, 420]
