"""Simulated runs: the same as real ones, the same again, and under churn, stragglers and a budget of sketches."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.swarm_rig import Swarm, run_swarm, tiny_config
from tsr_swarm.baselines.method import ExchangeBytes
from tsr_swarm.baselines.registry import METHODS, default_settings
from tsr_swarm.config.blocks import Block
from tsr_swarm.config.layout import KB, core_upload, sketch_costs
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import ConfigError, RunError
from tsr_swarm.node import leader
from tsr_swarm.optim.sketch_budget import RefreshState, within_budget
from tsr_swarm.simulate.engine import SimulatedRun, check, is_due, run_one
from tsr_swarm.simulate.heterogeneity import Heterogeneity
from tsr_swarm.simulate.result import ExchangeResult, RunResult
from tsr_swarm.simulate.run_spec import RunSpec
from tsr_swarm.simulate.swarms import manifest_of
from tsr_swarm.telemetry import events as ev


def own_spec(folder: Path, **changes: Any) -> RunSpec:
    """Our own method: 3 peers, 4 rounds of 3 steps, bases refreshed in rounds 1 and 3."""
    sections = {name: changes.pop(name) for name in ("optimizer", "wire", "periods") if name in changes}
    return RunSpec(**{"method": "tsr", "config": tiny_config(folder, **sections), "peers": 3, "steps": 12, **changes})


def baseline_spec(folder: Path, method: str) -> RunSpec:
    settings = default_settings(method)
    return replace(own_spec(folder), method=method, settings=settings | {"k_x": 1 if settings["k_x"] == 1 else 3})


def outcome(result: RunResult) -> tuple[object, ...]:
    """All that must not depend on when and where it was run."""
    return result.name, result.curve, result.digests, result.text, result.ended


FEW_BITS = {"core_bits": 4, "core_density": 0.3, "published_bits": 4, "published_density": 0.5}


@pytest.mark.parametrize(
    ("optimizer", "wire", "periods"),
    [
        ({"outer": "nesterov", "outer_lr": 0.7}, FEW_BITS, {"k_u": 3, "k_v": 6}),
        ({"local_space": "full"}, {}, {}),
        ({"local_space": "full", "inner": "lordo", "aim": "displacement"}, {}, {"k_u": 3, "k_v": 6}),
    ],
    ids=["core, few bits, outer step, moments", "full", "full, lordo, moments"],
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
    assert [point.step_times for point in curve] == [0, 3 + 8, 6 + 8 + 8]  # 8 micro-batches for each pass
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


ROUNDS = 6
BUDGET = 4  # kB: room for two to five of eight sketches
Choices = list[tuple[RoundPlan, RefreshState]]


def budget_config(folder: Path, budget: int = BUDGET, shards: int = 1, rounds: int = ROUNDS) -> RunConfig:
    """Bases are due in round 1, and for a second time after the run."""
    return tiny_config(
        folder,
        run={"rounds": rounds},
        optimizer={"local_space": "full", "aim": "displacement", "rank": 8, "embedding_rank": 8},
        periods={"k_x": 3, "k_r": 300, "k_r_embedding": 300},
        round={"budget_kb": budget, "shards": shards},
    )


def simulation(config: RunConfig) -> RunSpec:
    return RunSpec(method="tsr", config=config, peers=4, steps=3 * ROUNDS, schedule="constant")


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch) -> Choices:
    """Every plan of the real leader, with what it knew when it made it."""
    made: Choices = []

    def note(plan: RoundPlan, config: RunConfig, blocks: Sequence[Block], known: RefreshState) -> RoundPlan:
        made.append((within_budget(plan, config, blocks, known), known))
        return made[-1][0]

    monkeypatch.setattr(leader, "within_budget", note)
    return made


def first_that_fits(round: int, known: RefreshState, costs: dict[int, int], room: int) -> set[int]:
    """Of all sets that fit, the one with the blocks whose cores would miss most energy for a byte of their sketches."""

    def worth(index: int) -> tuple[bool, float]:
        seen = known.captured[index]
        return known.refreshed[index] != round - 1, (1 - seen.kappa) * seen.energy / costs[index]

    order = sorted(costs, key=worth, reverse=True)
    sets = (set(chosen) for size in range(len(costs) + 1) for chosen in combinations(costs, size))
    fitting = (chosen for chosen in sets if sum(costs[index] for index in chosen) <= room)
    return max(fitting, key=lambda chosen: [index in chosen for index in order])


async def test_blocks_whose_bases_capture_little_are_sketched_within_the_budget_and_all_weights_agree(
    tmp_path: Path, choices: Choices
) -> None:
    config = budget_config(tmp_path)
    swarm = await run_swarm(tmp_path, config, peers=4)
    blocks = manifest_of(config).blocks
    costs, room = sketch_costs(blocks, config.wire), BUDGET * KB - core_upload(blocks, config.wire)

    assert all(event.included == 4 for event in swarm.closed())
    assert all(len(digests) == 1 for digests in swarm.digests().values())
    assert all(0 < event.raw_bytes["sent"] <= 4 * BUDGET * KB for event in swarm.closed())
    assert [event.refresh for event in swarm.of(ev.RoundOpened)] == [len(plan.due.tangent) for plan, _ in choices]
    waiting = set(costs)
    for plan, known in choices:
        chosen = plan.due.tangent
        assert 0 < len(chosen) < len(costs), "the budget is for some, though by period it is all or none"
        assert plan.round == 1 or known.captured.keys() == costs.keys()
        if waiting:  # every block is due in round 1, and has its turn before any other is chosen
            assert min(waiting) in chosen
            waiting -= chosen
        else:
            assert chosen == first_that_fits(plan.round, known, costs, room)
    assert not waiting, "some rounds were free to choose"
    finished = swarm.finished()
    assert finished.last_loss < finished.first_loss - 0.3

    simulated = run_one(replace(simulation(config), exact=True))
    assert [{digest} for digest in simulated.digests] == [swarm.digests()[round + 1] for round in range(ROUNDS)]
    sent = swarm.closed()[0].wire_bytes["sent"]
    point = next(point for point in simulated.curve if point.step == 3)
    kinds = {*sent, *point.sent} - {"control", "state"}
    assert all(4 * point.sent[kind] == sent[kind] for kind in kinds)


def test_the_choice_depends_on_the_budget_and_not_on_shards(tmp_path: Path) -> None:
    by_period, within, sharded = (
        run_one(simulation(budget_config(tmp_path, *choice))) for choice in ((0, 1), (BUDGET, 1), (BUDGET, 3))
    )
    assert within.digests == sharded.digests
    assert within.digests[0] != by_period.digests[0]


async def test_a_restarted_leader_begins_with_periods(tmp_path: Path, choices: Choices) -> None:
    def stop_gently(swarm: Swarm, event: ev.Event) -> None:
        if isinstance(event, ev.RoundOpened) and event.round == 2:
            swarm.coordinator.stop.request()

    config = budget_config(tmp_path, rounds=4)
    swarm = Swarm(tmp_path, replace(config, run=replace(config.run, min_peers=2)), stop_gently)
    await swarm.start(peers=2)
    await asyncio.wait_for(swarm.coordinator.task, 30)
    await swarm.resume_coordinator()
    await swarm.finish()

    assert all(len(digests) == 1 for digests in swarm.digests().values())
    by_round = {plan.round: (plan, known) for plan, known in choices}
    assert list(by_round) == [1, 2, 3, 4]
    assert by_round[2][1].captured
    plan, known = by_round[3]
    assert not known.captured
    assert not plan.due.tangent, "no block is due in round 3"
    plan, known = by_round[4]
    assert known.captured
    assert plan.due.tangent


def test_a_run_is_named_by_its_budget_only_where_it_has_one(tmp_path: Path) -> None:
    names = {simulation(budget_config(tmp_path, budget)).name for budget in (0, 20, 30)}
    assert len(names) == 3
    assert simulation(budget_config(tmp_path, 0)).identity()["round"] == {"quorum": 1, "shards": 1}


def test_a_budget_that_lets_no_block_have_its_turn_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"round\.budget_kb = 1 is too little"):
        check(simulation(budget_config(tmp_path, 1)))
