"""Swarms whose leader chooses who sends sketches within ``round.budget_kb``: real ones, and the same ones simulated."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from tests.swarm_rig import Swarm, run_swarm, tiny_config
from tsr_swarm.config.blocks import Block
from tsr_swarm.config.layout import KB, core_upload, sketch_costs
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import ConfigError
from tsr_swarm.node import leader
from tsr_swarm.optim.sketch_budget import RefreshState, within_budget
from tsr_swarm.simulate.engine import check, run_one
from tsr_swarm.simulate.run_spec import RunSpec
from tsr_swarm.simulate.swarms import manifest_of
from tsr_swarm.telemetry import events as ev

ROUNDS = 6
BUDGET = 4  # kB: room for two to five of eight sketches


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
def choices(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RoundPlan, RefreshState]]:
    """Every plan of the real leader, with what it knew when it made it."""
    made: list[tuple[RoundPlan, RefreshState]] = []

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
    tmp_path: Path, choices: list[tuple[RoundPlan, RefreshState]]
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
    assert finished.first_loss is not None
    assert finished.last_loss is not None
    assert finished.last_loss < finished.first_loss - 0.3

    simulated = run_one(replace(simulation(config), exact=True))
    assert [{digest} for digest in simulated.digests] == [swarm.digests()[round + 1] for round in range(ROUNDS)]
    sent = swarm.closed()[0].wire_bytes["sent"]
    point = next(point for point in simulated.curve if point.step == 3)
    assert {kind: 4 * count for kind, count in point.sent.items() if kind not in ("control", "state")} == {
        kind: count for kind, count in sent.items() if kind not in ("control", "state")
    }


def test_the_choice_depends_on_the_budget_and_not_on_shards(tmp_path: Path) -> None:
    by_period, within, sharded = (
        run_one(simulation(budget_config(tmp_path, *choice))) for choice in ((0, 1), (BUDGET, 1), (BUDGET, 3))
    )
    assert within.digests == sharded.digests
    assert within.digests[0] != by_period.digests[0]


async def test_a_restarted_leader_begins_with_periods(
    tmp_path: Path, choices: list[tuple[RoundPlan, RefreshState]]
) -> None:
    def stop_gently(swarm: Swarm, event: ev.Event) -> None:
        if isinstance(event, ev.RoundOpened) and event.round == 2 and swarm.coordinator is not None:
            swarm.coordinator.stop.request()

    config = budget_config(tmp_path, rounds=4)
    swarm = Swarm(tmp_path, replace(config, run=replace(config.run, min_peers=2)), stop_gently)
    await swarm.start_coordinator()
    swarm.start_peer(1)
    swarm.start_peer(2)
    assert swarm.coordinator is not None
    await asyncio.wait_for(swarm.coordinator.task, 30)
    swarm.on_event = lambda swarm, event: None
    await swarm.start_coordinator(resume=True, listen=swarm.address)
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
