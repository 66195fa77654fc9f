"""The search for a rate ends with a worse neighbour on either side of the best, wherever the best is."""

import math
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from tests.bench.study.tuning import HIGHEST, LOWEST, beyond, is_at_edge, rates_to_try

LISTED = (1e-3, 3e-3, 1e-2)


def search(listed: tuple[float, ...], best: float) -> dict[float, float]:
    """Run what is asked for until nothing is, with losses that have one minimum, at ``best``."""
    done: dict[float, float] = {}
    for _ in count():
        missing = [rate for rate in rates_to_try(listed, done.get) if rate not in done]
        if not missing:
            return done
        done |= {rate: abs(math.log(rate / best)) for rate in missing}
    raise AssertionError


@given(st.floats(1e-4, 0.1))
def test_no_search_ends_with_the_best_at_an_edge(best: float) -> None:
    done = search(LISTED, best)
    assert not is_at_edge(done)
    assert done.keys() >= set(LISTED)
    found = min(done, key=lambda rate: done[rate])
    assert 1 / 1.9 < found / best < 1.9, "the nearest of rates that are about a factor of three apart"


@given(st.floats(1e-9, 1e3))
def test_every_search_ends_and_stays_where_a_rate_makes_sense(best: float) -> None:
    assert all(LOWEST <= rate <= HIGHEST for rate in search(LISTED, best))


def test_what_is_listed_comes_first_and_one_rate_alone_is_no_search() -> None:
    assert rates_to_try(LISTED, {1e-3: 1.0, 3e-3: 2.0}.get) == LISTED
    assert rates_to_try((1e-2,), {1e-2: 1.0}.get) == (1e-2,)


def test_the_next_rate_is_as_far_from_the_edge_as_its_neighbour() -> None:
    assert beyond({1e-3: 3.0, 2e-3: 2.0, 6e-3: 1.0}) == 1.8e-2
    assert beyond({1e-3: 1.0, 2e-3: 2.0, 6e-3: math.inf}) == 5e-4
    assert beyond({1e-3: 3.0, 2e-3: 1.0, 6e-3: 2.0}) is None
