from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.wire.bits import from_bits, to_bits


@given(places=st.sets(st.integers(0, 8191)))
def test_a_set_comes_back_from_as_few_bytes_as_can_be(places: set[int]) -> None:
    bits = to_bits(places)
    assert from_bits(bits) == places
    assert len(bits) == (max(places) // 8 + 1 if places else 0)


@given(bits=st.binary(max_size=1024))
def test_any_bits_are_a_set(bits: bytes) -> None:
    assert len(from_bits(bits)) == sum(byte.bit_count() for byte in bits)
    assert to_bits(from_bits(bits)) == bits.rstrip(b"\0")


def test_the_first_place_is_the_lowest_bit_of_the_first_byte() -> None:
    assert to_bits([9, 0]) == bytes([1, 2])
