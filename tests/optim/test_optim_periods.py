"""The schedule: what is due in which round, and at which rate."""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.steady import steady
from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import Due
from tsr_swarm.config.run import PeriodsConfig, RunConfig
from tsr_swarm.optim import periods
from tsr_swarm.optim.inner_optimizer import MOMENTUM

BLOCKS = (
    Block(name="embed_tokens.weight", rows=8, cols=4, rank=2, role=BlockRole.EMBEDDING),
    Block(name="up.weight", rows=4, cols=4, rank=2, role=BlockRole.MATRIX),
    Block(name="norm.weight", rows=1, cols=4, rank=0, role=BlockRole.DENSE),
)
PERIODS = PeriodsConfig(k_x=5, k_r=10, k_r_embedding=15)
AIMS = st.sampled_from(
    (
        {},
        {"aim": "dct"},
        {"aim": "seed"},
        {"aim": "gradient", "local_space": "full", "inner": "lordo"},
        {"aim": "displacement", "local_space": "full", "inner": "lordo"},
    )
)
BOTH, EMBEDDING, MATRIX = frozenset({0, 1}), frozenset({0}), frozenset({1})


def config(**optimizer: object) -> RunConfig:
    return RunConfig(optimizer=replace(steady(), **optimizer), periods=PERIODS)  # type: ignore[arg-type]


def test_a_block_sends_its_range_once_a_period_and_its_projection_the_round_after() -> None:
    due = [periods.plan_round(config(), BLOCKS, round, "").due for round in range(1, 8)]

    assert [plan.range for plan in due] == [BOTH, frozenset(), MATRIX, EMBEDDING, MATRIX, frozenset(), BOTH]
    assert [plan.project for plan in due] == [frozenset(), *(plan.range for plan in due[:-1])]


@given(st.integers(1, 9), st.integers(1, 9))
def test_every_block_has_its_turn_once_in_each_period(matrix: int, embedding: int) -> None:
    run = replace(config(), periods=PeriodsConfig(k_x=5, k_r=5 * matrix, k_r_embedding=5 * embedding))
    due = [periods.due_blocks(run, BLOCKS, round) for round in range(1, 4 * matrix * embedding + 1)]
    for index, period in ((0, embedding), (1, matrix)):
        turns = [round for round, plan in enumerate(due) if index in plan.range]
        assert turns[0] < period
        assert all(later - earlier == period for earlier, later in pairwise(turns))
        assert [round for round, plan in enumerate(due) if index in plan.project] == [
            round + 1 for round in turns if round + 1 < len(due)
        ]


def test_bases_are_drawn_at_the_end_of_every_period_and_numbered() -> None:
    due = [periods.plan_round(config(aim="seed"), BLOCKS, round, "").due for round in range(1, 7)]

    assert [plan.draw for plan in due] == [(), ((1, 1),), ((0, 1),), ((1, 2),), (), ((0, 2), (1, 3))]
    assert all(not plan.tangent | plan.range | plan.project for plan in due)
    assert due[5].refresh == BOTH


@pytest.mark.parametrize(
    ("local_space", "aim", "due"),
    [
        ("core", "gradient", Due(project=BOTH)),
        ("full", "displacement", Due(tangent=BOTH)),
        ("full", "gradient", Due(tangent=BOTH, project=BOTH)),
        ("mixed", "gradient", Due(tangent=BOTH, project=BOTH)),
    ],
)
def test_what_a_refresh_asks_for_follows_from_space_and_aim(local_space: str, aim: str, due: Due) -> None:
    round = 2 if aim == "gradient" else 1
    assert periods.plan_round(config(local_space=local_space, aim=aim), BLOCKS, round, "").due == due


@given(st.integers(1, 60), st.integers(0, 40), st.integers(0, 100))
def test_a_plan_counts_steps_by_rounds_and_has_the_rates_of_its_first_and_last_step(
    round: int, warmup: int, decay: int
) -> None:
    settings = config(warmup_steps=warmup, decay_steps=decay)

    plan = periods.plan_round(settings, BLOCKS, round, "ab")

    assert (plan.round, plan.parent, plan.steps, plan.first_step) == (round, "ab", 5, (round - 1) * 5)
    assert plan.lr_first == periods.learning_rate(settings.optimizer, plan.first_step)
    assert plan.lr_last == periods.learning_rate(settings.optimizer, plan.first_step + 4)


@given(st.integers(0, 10**6), st.integers(0, 1000), st.integers(0, 1000))
def test_a_rate_is_above_zero_and_never_above_the_set_one(step: int, warmup: int, decay: int) -> None:
    optimizer = steady(lr=0.01, warmup_steps=warmup, decay_steps=decay)

    assert 0 < periods.learning_rate(optimizer, step) <= 0.01 * (1 + 1e-12)


def test_the_rate_warms_up_in_a_line_and_stays() -> None:
    optimizer = steady(lr=1.0, warmup_steps=4, decay_steps=0)

    assert [periods.learning_rate(optimizer, step) for step in (0, 1, 2, 3, 4, 10**6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_the_rate_falls_as_a_cosine_to_a_tenth_and_stays() -> None:
    optimizer = steady(lr=1.0, warmup_steps=4, decay_steps=100)

    rates = [periods.learning_rate(optimizer, step) for step in (4, 54, 104, 1000)]

    assert rates == pytest.approx([1, 0.55, 0.1, 0.1])


def test_weight_decay_is_one_factor_for_the_whole_round() -> None:
    plan = periods.plan_round(config(lr=0.1, warmup_steps=0, weight_decay=0.5), BLOCKS, 3, "")

    assert plan.decay == pytest.approx(math.prod([1 - 0.1 * 0.5] * 5))
    assert periods.plan_round(config(), BLOCKS, 3, "").decay == 1


@given(beta=st.floats(0.01, 0.9999), k_x=st.integers(1, 500))
def test_a_half_life_is_the_nearest_whole_number_of_rounds(beta: float, k_x: int) -> None:
    period = periods.half_life(beta, k_x)
    assert period >= k_x
    assert period % k_x == 0
    if period > k_x:  # half of a moment is gone after a number of steps that is nearer to it than to its neighbours
        assert beta ** (period + 0.51 * k_x) <= 0.5 <= beta ** (period - 0.51 * k_x)


def test_automatic_periods_are_the_half_lives_of_what_the_inner_optimizer_keeps() -> None:
    betas = (0.9, 0.99)
    assert [periods.half_life(beta, 5) for beta in (0.0, *betas, MOMENTUM)] == [5, 5, 70, 15]
    assert periods.moment_periods("auto", "auto", 5, "adam", betas) == (5, 70)
    assert periods.moment_periods("auto", 0, 5, "muon", betas) == (15, 0)
    assert periods.moment_periods(20, 40, 5, "adam", betas) == (20, 40)
    assert periods.own_moment_periods(moments(k_u=0, k_v="auto")) == (0, 70)


def moments(**changes: object) -> RunConfig:
    return RunConfig(optimizer=steady(), periods=replace(PERIODS, **changes))  # type: ignore[arg-type]


@given(st.integers(1, 6), st.integers(1, 6))
def test_moments_of_a_block_alone_are_due_in_the_round_that_ends_their_period(first: int, second: int) -> None:
    """As in DES-LOC, whose step t (from 0) begins with an average where t is a multiple of the period."""
    firsts = RunConfig(optimizer=steady(aim="seed"), periods=replace(PERIODS, k_u=5 * first))
    seconds = replace(firsts, periods=replace(PERIODS, k_v=5 * second))
    for round in range(1, 40):
        assert (0 in periods.due_blocks(firsts, BLOCKS[1:], round).first) == (round % first == 0)
        assert (0 in periods.due_blocks(seconds, BLOCKS[1:], round).second) == (round % second == 0)


@given(AIMS, st.integers(0, 6), st.integers(0, 6), st.integers(2, 5), st.integers(2, 5), st.integers(1, 100))
def test_every_block_with_moments_is_due_once_in_any_window_as_long_as_their_period(
    aim: dict[str, Any], first: int, second: int, matrix: int, embedding: int, start: int
) -> None:
    changes = {"k_u": 5 * first, "k_v": 5 * second, "k_r": 5 * matrix, "k_r_embedding": 5 * embedding}
    run = RunConfig(optimizer=steady(**aim), periods=replace(PERIODS, **changes))
    many = [replace(block, is_lordo=aim.get("inner") == "lordo") for block in BLOCKS * 3]
    have = Counter(index for index, block in enumerate(many) if block.moment_shape)
    for kind, period in (("first", first), ("second", second)):
        window = [periods.due_blocks(run, many, round) for round in range(start, start + (period or 40))]
        assert Counter(index for due in window for index in getattr(due, kind)) == (have if period else Counter())


@given(st.integers(1, 9), st.integers(1, 9))
def test_blocks_choose_columns_once_a_period_and_all_have_within_the_first(matrix: int, embedding: int) -> None:
    run = replace(config(aim="dct"), periods=PeriodsConfig(k_x=5, k_r=5 * matrix, k_r_embedding=5 * embedding))
    due = [periods.due_blocks(run, BLOCKS, round) for round in range(1, 3 * matrix * embedding + 1)]
    for index, period in ((0, embedding), (1, matrix)):
        turns = [round for round, plan in enumerate(due) if index in plan.choose]
        assert turns == list(range(turns[0], len(due), period))
        assert turns[0] < period


def test_moments_are_not_averaged_by_default() -> None:
    due = [periods.plan_round(config(), BLOCKS, round, "").due for round in range(1, 40)]
    assert not any(one.first or one.second for one in due)


@given(st.integers(1, 60), st.sampled_from(("first", "second")), st.sampled_from((BOTH, EMBEDDING, frozenset[int]())))
def test_whose_moments_are_due_is_not_the_leaders_choice(round: int, kind: str, blocks: frozenset[int]) -> None:
    run = moments(k_u=15, k_v=20)
    plan = periods.plan_round(run, BLOCKS, round, "")
    asked = replace(plan, due=replace(plan.due, **{kind: blocks}))
    assert periods.follows_manifest(asked, Manifest("run", run, BLOCKS)) == (asked == plan)


SUBSETS = [frozenset(blocks) for blocks in ((), (0,), (1,), (0, 1))]


@given(st.integers(1, 40), st.sampled_from(SUBSETS))
def test_a_leader_may_choose_whose_sketches_it_asks_for_where_bases_follow_displacements(
    round: int, tangent: frozenset[int]
) -> None:
    run = config(local_space="full", aim="displacement")
    plan = periods.plan_round(run, BLOCKS, round, "")
    assert periods.follows_manifest(replace(plan, due=replace(plan.due, tangent=tangent)), Manifest("run", run, BLOCKS))


@given(st.integers(1, 40), st.sampled_from(SUBSETS))
def test_elsewhere_sketches_follow_their_periods(round: int, tangent: frozenset[int]) -> None:
    for run in (config(local_space="full"), config(local_space="mixed"), config(), config(aim="seed")):
        plan = periods.plan_round(run, BLOCKS, round, "")
        asked = replace(plan, due=replace(plan.due, tangent=tangent))
        assert periods.follows_manifest(asked, Manifest("run", run, BLOCKS)) == (tangent == plan.due.tangent)


@pytest.mark.parametrize(
    "change",
    [
        {"due": Due(tangent=frozenset({2}))},
        {"due": Due(tangent=frozenset({0, 1, 2}))},
        {"due": Due(tangent=frozenset({7}))},
        {"due": Due(tangent=BOTH, range=MATRIX)},
        {"due": Due(tangent=BOTH, project=MATRIX)},
        {"due": Due(tangent=BOTH, choose=MATRIX)},
        {"due": Due(tangent=MATRIX, draw=((0, 1),))},
        {"due": Due(tangent=BOTH, first=BOTH)},
        {"due": Due(tangent=BOTH, second=MATRIX)},
        {"first_step": 1},
        {"steps": 6},
        {"seed": 1},
        {"lr_first": 0.5},
        {"lr_last": 0.5},
        {"decay": 0.5},
    ],
)
def test_a_leader_may_choose_nothing_else(change: dict[str, Any]) -> None:
    run = config(local_space="full", aim="displacement")
    plan = periods.plan_round(run, BLOCKS, 1, "")
    assert periods.follows_manifest(plan, Manifest("run", run, BLOCKS))
    assert not periods.follows_manifest(replace(plan, **change), Manifest("run", run, BLOCKS))
