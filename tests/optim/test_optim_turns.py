"""Rounds are level: where loads are laid, and how full that leaves a round."""

from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.optim.turns import MOST_ROUNDS, Load, Turn, common_period, level

SIZES = st.integers(0, 1000)
PASSES = st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=3)


@st.composite
def loads(draw: st.DrawFn) -> Load:
    period = draw(st.sampled_from((1, 2, 3, 5, 8, 997, 5000)))  # some without a common multiple that is looked at
    offsets = draw(st.sampled_from((range(period), range(period)[::-1], range(1), range(period - 1, period))))
    return Load(period, draw(PASSES), offsets)


@given(st.dictionaries(st.integers(), loads(), max_size=6))
def test_each_load_has_a_turn_that_it_may_have(given_loads: dict[int, Load]) -> None:
    turns = level(given_loads)
    assert list(turns) == list(given_loads)
    assert turns == level(given_loads)
    for key, load in given_loads.items():
        assert turns[key].period == load.period
        assert turns[key].offset in load.offsets


@given(loads())
def test_a_load_alone_begins_where_it_would_best(load: Load) -> None:
    if len(load.passes) <= load.period:  # else its own rounds lie on one another, and begin anywhere alike
        assert level({"alone": load})["alone"].offset == load.offsets[0]


@given(st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=40), st.integers(1, 12))
def test_no_round_is_fuller_than_the_mean_and_one_load(sizes: list[tuple[int, int]], period: int) -> None:
    """The bound of list scheduling (Graham, 1966), which holds each way where a load is as large up as down."""
    alike = [sent for sent, _ in sizes]
    turns = level({key: Load(period, [(size, size)], range(period)) for key, size in enumerate(alike)})
    filled = [sum(size for key, size in enumerate(alike) if turns[key].is_in(round)) for round in range(period)]
    assert sum(filled) == sum(alike)
    assert period * max(filled) <= sum(alike) + (period - 1) * max(alike)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 40))
def test_equal_loads_of_several_kinds_differ_by_one_a_round(first: int, second: int, count: int) -> None:
    """Of two kinds with periods of their own, as those of first and second moments."""
    kinds = {"u": first, "v": first * second}
    turns = level({(kind, key): Load(p, [(9, 9)], range(p)) for kind, p in kinds.items() for key in range(count)})
    filled = [sum(turn.is_in(round) for turn in turns.values()) for round in range(first * second)]
    mean = count * (second + 1) / (first * second)
    assert mean - 2 < min(filled) <= max(filled) < mean + 2


def test_what_goes_up_and_what_comes_down_are_levelled_both() -> None:
    """Though there is a hundred times as much of one as of the other."""
    up, down = Load(2, [(100, 0)], range(2)), Load(2, [(0, 1)], range(2))
    turns = level({"a": up, "b": down, "c": up, "d": down})
    assert turns["a"].offset != turns["c"].offset
    assert turns["b"].offset != turns["d"].offset


def test_what_has_no_choice_is_in_the_way_of_what_has_one() -> None:
    turns = level({"free": Load(3, [(9, 9)], range(3)), "fixed": Load(3, [(1, 1)], range(1))})
    assert turns == {"free": Turn(3, 1), "fixed": Turn(3, 0)}


def test_the_passes_of_a_load_fill_one_round_after_the_other() -> None:
    turns = level({"two": Load(3, [(6, 6), (6, 6)], range(3)), "one": Load(3, [(5, 5)], range(3))})
    assert turns == {"two": Turn(3, 0), "one": Turn(3, 2)}


def test_a_turn_comes_once_a_period_and_not_before_the_first_round() -> None:
    assert [round for round in range(-4, 9) if Turn(4, 3).is_in(round)] == [3, 7]
    assert (common_period([]), common_period([4, 6]), common_period([1009, 1013])) == (1, 12, MOST_ROUNDS)
