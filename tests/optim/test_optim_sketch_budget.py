"""Which blocks send sketches within a budget, beside searches through all sets that fit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.steady import steady
from tsr_swarm.config.blocks import Block, BlockRole, plan_blocks
from tsr_swarm.config.layout import KB, core_upload, sketch_costs, upload_slots
from tsr_swarm.config.round_plan import Due, RoundPlan
from tsr_swarm.config.run import PeriodsConfig, RoundConfig, RunConfig, WireConfig
from tsr_swarm.lowrank.sketch import Captured
from tsr_swarm.optim import sketch_budget
from tsr_swarm.optim.periods import due_blocks, plan_round

BLOCKS = (
    Block(name="embed_tokens.weight", rows=96, cols=64, rank=16, role=BlockRole.EMBEDDING),
    Block(name="norm.weight", rows=1, cols=64, rank=0, role=BlockRole.DENSE),
    Block(name="up.weight", rows=160, cols=64, rank=16, role=BlockRole.MATRIX),
    Block(name="q.weight", rows=64, cols=64, rank=16, role=BlockRole.MATRIX),
    Block(name="k.weight", rows=64, cols=64, rank=16, role=BlockRole.MATRIX),
)
LOW_RANK = (0, 2, 3, 4)
WIRE = WireConfig()
CORES, COSTS = core_upload(BLOCKS, WIRE), sketch_costs(BLOCKS, WIRE)
LEAST = -(-(CORES + max(COSTS.values())) // KB)
ALL = -(-(CORES + sum(COSTS.values())) // KB)
VOID = frozenset[int]()


def config(budget: int, k_r: int = 20, k_r_embedding: int = 30) -> RunConfig:
    return RunConfig(
        optimizer=steady(local_space="full", aim="displacement", rank=16, embedding_rank=16),
        periods=PeriodsConfig(k_x=5, k_r=k_r, k_r_embedding=k_r_embedding),
        round=RoundConfig(budget_kb=budget),
        wire=WIRE,
    )


def plan_of(run: RunConfig, round: int, known: sketch_budget.RefreshState) -> RoundPlan:
    return sketch_budget.within_budget(plan_round(run, BLOCKS, round, ""), run, BLOCKS, known)


def upload(plan: RoundPlan) -> int:
    return sum(slot.raw_bytes for slot in upload_slots(BLOCKS, plan.due, WIRE))


def affordable(costs: Mapping[int, int], room: int) -> Iterator[frozenset[int]]:
    """Every set of blocks that fits."""
    sets = chain.from_iterable(combinations(costs, size) for size in range(len(costs) + 1))
    return (frozenset(chosen) for chosen in sets if sum(costs[index] for index in chosen) <= room)


items = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 50)), max_size=7)
captured = st.builds(Captured, kappa=st.floats(0, 1), energy=st.floats(0, 1e6))


@given(items, st.integers(0, 60), st.randoms(use_true_random=False))
def test_no_other_set_that_fits_comes_first_in_order(found: list[tuple[int, int]], room: int, random: object) -> None:
    costs = {index: cost for index, (cost, _) in enumerate(found)}
    order = list(costs)
    random.shuffle(order)  # type: ignore[attr-defined]

    def membership(chosen: frozenset[int]) -> Sequence[bool]:
        return [index in chosen for index in order]

    assert sketch_budget.choose_tangents(order, costs, room) == max(affordable(costs, room), key=membership)


@given(items, st.integers(0, 60))
def test_the_best_set_gains_less_than_the_first_block_passed_over_more(found: list[tuple[int, int]], room: int) -> None:
    costs = {index: max(1, cost) for index, (cost, _) in enumerate(found)}
    gains = {index: gain for index, (_, gain) in enumerate(found)}
    order = sorted(costs, key=lambda index: (Fraction(-gains[index], costs[index]), index))
    chosen = sketch_budget.choose_tangents(order, costs, room)
    best, chosen_gain = (sum(map(gains.__getitem__, s)) for s in (best_of(costs, gains, room), chosen))
    passed_over = [gains[index] for index in order if index not in chosen]
    assert chosen_gain == best if not passed_over else best - chosen_gain < passed_over[0]


@given(items, st.integers(1, 20), st.integers(0, 60))
def test_among_equal_costs_the_choice_is_the_best(found: list[tuple[int, int]], cost: int, room: int) -> None:
    costs, gains = dict.fromkeys(range(len(found)), cost), {index: gain for index, (_, gain) in enumerate(found)}
    chosen = sketch_budget.choose_tangents(sorted(costs, key=lambda index: -gains[index]), costs, room)
    assert sum(map(gains.__getitem__, chosen)) == sum(map(gains.__getitem__, best_of(costs, gains, room)))


def best_of(costs: Mapping[int, int], gains: Mapping[int, int], room: int) -> frozenset[int]:
    return max(affordable(costs, room), key=lambda chosen: sum(map(gains.__getitem__, chosen)))


def test_due_blocks_come_first_then_those_of_most_gain_a_byte_and_last_those_just_refreshed() -> None:
    seen = {
        0: Captured(0.0, 1e9),  # re-aimed a round ago: measured before
        1: Captured(0.9, 100.0),  # gains 10 for 10 bytes
        2: Captured(0.5, 100.0),  # gains 50 for 100 bytes
        3: Captured(0.1, 100.0),  # gains 90 for 30 bytes
        4: Captured(1.0, 1e9),  # gains nothing
        5: Captured(0.0, 0.0),  # likewise
        6: Captured(1.0, 0.0),  # due
    }
    refreshed = {0: 9, 1: 7, 2: 7, 3: 7, 4: 7, 5: 7, 6: 5, 7: 2, 8: 2, 9: 8}  # 7 and 8 are older than 6; 9: not seen
    periods = dict.fromkeys(refreshed, 5)
    costs = {**dict.fromkeys(refreshed, 10), 2: 100, 3: 30}
    known = sketch_budget.RefreshState(refreshed, seen)
    assert sketch_budget.preference(known, periods, costs, 10) == (7, 8, 6, 3, 1, 2, 0)


def test_a_sketch_that_costs_nothing_is_as_good_as_one_of_a_byte() -> None:
    known = sketch_budget.RefreshState({0: 5, 1: 5}, {0: Captured(0.5, 10.0), 1: Captured(0.5, 20.0)})
    assert sketch_budget.preference(known, {0: 9, 1: 9}, {0: -4, 1: 1}, 7) == (1, 0)
    assert sketch_budget.choose_tangents((1, 0), {0: -4, 1: 1}, 1) == {0, 1}


@given(st.dictionaries(st.sampled_from(LOW_RANK), captured), st.integers(LEAST, ALL + 1), st.integers(1, 40))
def test_an_upload_stays_within_the_budget_and_nothing_more_would_fit(
    seen: dict[int, Captured], budget: int, round: int
) -> None:
    run = config(budget)
    known = sketch_budget.RefreshState(sketch_budget.begin_refresh_state(run, BLOCKS, round).refreshed, seen)
    plan = plan_of(run, round, known)
    assert upload(plan) <= budget * KB
    periodic = due_blocks(run, BLOCKS, round).tangent
    wanted = periodic | {index for index, one in seen.items() if (1 - one.kappa) * one.energy > 0}
    assert plan.due.tangent <= wanted
    assert all(upload(plan) + COSTS[index] > budget * KB for index in wanted - plan.due.tangent)
    assert replace(plan, due=replace(plan.due, tangent=periodic)) == plan_round(run, BLOCKS, round, "")


def test_moments_that_are_due_leave_less_room_for_sketches() -> None:
    budget = 14
    begun = config(budget)
    run = replace(
        begun,
        optimizer=replace(begun.optimizer, inner="lordo", feedback=True),
        periods=PeriodsConfig(k_x=5, k_r=5, k_r_embedding=5, k_u=10, k_v=15),
    )
    shapes = {block.name: (block.rows, block.cols) if block.rank else (block.cols,) for block in BLOCKS}
    blocks = plan_blocks(shapes, run.optimizer, 64)
    known, rounds = sketch_budget.begin_refresh_state(run, blocks, 1), list[Due]()
    for round in range(1, 20):
        plan = sketch_budget.within_budget(plan_round(run, blocks, round, ""), run, blocks, known)
        assert sum(slot.raw_bytes for slot in upload_slots(blocks, plan.due, WIRE)) <= budget * KB
        known = sketch_budget.after_round(known, plan, VOID, {})
        rounds.append(plan.due)
    assert any(due.tangent and due.first for due in rounds)


def test_without_a_budget_a_plan_is_left_as_it_is() -> None:
    run = config(0)
    known = sketch_budget.RefreshState(dict.fromkeys(LOW_RANK, 1), dict.fromkeys(LOW_RANK, Captured(0.0, 1e6)))
    for round in range(1, 20):
        assert plan_of(run, round, known) == plan_round(run, BLOCKS, round, "")


@pytest.mark.parametrize("begin", [1, 2, 5, 6, 7, 13])
def test_where_nothing_is_measured_bases_are_refreshed_by_their_periods(begin: int) -> None:
    """So a restarted leader, which knows no measurement, asks for what any leader without a budget would."""
    run = config(ALL)
    known = sketch_budget.begin_refresh_state(run, BLOCKS, begin)
    for round in range(begin, begin + 30):
        plan = plan_of(run, round, known)
        assert plan.due == due_blocks(run, BLOCKS, round)
        known = sketch_budget.after_round(known, plan, VOID, {})


@given(st.lists(st.dictionaries(st.sampled_from(LOW_RANK), captured), min_size=25, max_size=25))
def test_every_block_is_refreshed_within_a_bounded_time(seen: list[dict[int, Captured]]) -> None:
    """Whatever is measured, and with the least budget: one more round for each block that may be before it."""
    run = config(LEAST)
    known, waited = sketch_budget.begin_refresh_state(run, BLOCKS, 1), dict.fromkeys(LOW_RANK, 0)
    for round, measured in enumerate(seen, start=1):
        plan = plan_of(run, round, known)
        waited = {index: 0 if index in plan.due.tangent else rounds + 1 for index, rounds in waited.items()}
        assert max(waited.values()) <= 6 + len(LOW_RANK)
        known = sketch_budget.after_round(known, plan, VOID, measured)


def test_a_void_block_is_still_due_and_the_newest_measurement_counts() -> None:
    run = config(ALL)
    known = sketch_budget.begin_refresh_state(run, BLOCKS, 1)
    plan = plan_of(run, 1, known)
    assert plan.due.tangent == set(LOW_RANK)
    known = sketch_budget.after_round(known, plan, frozenset({1, 2}), {0: Captured(0.5, 1.0), 3: Captured(0.25, 2.0)})
    assert known.refreshed == {0: 1, 2: -3, 3: 1, 4: 1}
    assert plan_of(run, 2, known).due.tangent == {0, 2, 3}, "room enough for what was just aimed too"
    again = sketch_budget.after_round(known, plan_of(run, 2, known), VOID, {3: Captured(1.0, 2.0)})
    assert again.captured == {0: Captured(0.5, 1.0), 3: Captured(1.0, 2.0)}


@given(st.lists(st.tuples(st.integers(1, 2**40), st.dictionaries(st.integers(0, 3), captured, max_size=4)), max_size=5))
def test_means_are_by_tokens_over_the_peers_that_measured(parts: list[tuple[int, dict[int, Captured]]]) -> None:
    means = sketch_budget.mean_captured(parts)
    assert means.keys() == {index for _, seen in parts for index in seen}
    for index, mean in means.items():
        of_block = [(tokens, seen[index]) for tokens, seen in parts if index in seen]
        total = sum(tokens for tokens, _ in of_block)
        kappa = sum((Fraction(one.kappa) * tokens for tokens, one in of_block), Fraction()) / total
        energy = sum((Fraction(one.energy) * tokens for tokens, one in of_block), Fraction()) / total
        assert mean.kappa == pytest.approx(float(kappa), rel=1e-12, abs=1e-300)
        assert mean.energy == pytest.approx(float(energy), rel=1e-12, abs=1e-300)
