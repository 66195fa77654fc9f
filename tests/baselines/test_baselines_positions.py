"""The enumerative code: every set has a number of its own, below the number of sets."""

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.baselines.positions import code_bits, decode, encode


@given(st.data(), st.integers(1, 5000))
def test_a_set_comes_back_and_fits_its_bits(data, size):
    positions = sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=80)))
    number = encode(positions)
    assert number.bit_length() <= code_bits(size, len(positions))
    assert decode(number, size, len(positions)) == positions


def test_all_sets_are_numbered_without_a_gap():
    assert sorted(encode(chosen) for chosen in combinations(range(9), 4)) == list(range(math.comb(9, 4)))


@given(st.integers(1, 300), st.integers(0, 300))
def test_the_length_is_the_entropy_of_a_random_set(size, kept):
    kept = min(size, kept)
    entropy = math.log2(math.comb(size, kept))
    assert entropy - 1e-9 <= code_bits(size, kept) < entropy + 1


@pytest.mark.parametrize("number", [-1, 6])
def test_a_number_of_no_set_is_refused(number):
    with pytest.raises(ValueError, match="is not the number of 2 positions among 4"):
        decode(number, 4, 2)
