import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tsr_swarm.config.layout import packed_bytes
from tsr_swarm.errors import PeerError
from tsr_swarm.wire.packing import PACKED_BITS, pack, unpack

widths = st.sampled_from(PACKED_BITS)


def limit(bits: int) -> int:
    return (1 << (bits - 1)) - 1


@given(bits=widths, data=st.data())
def test_unpack_inverts_pack(bits: int, data: st.DataObject) -> None:
    numbers = st.integers(-limit(bits), limit(bits))
    values = data.draw(hnp.arrays(np.int32, st.integers(0, 40), elements=numbers))
    packed = pack(values, bits)
    assert len(packed) == packed_bytes(values.size, bits)
    assert np.array_equal(unpack(memoryview(packed), values.size, bits), values)


@given(bits=widths, data=st.data())
def test_any_bytes_of_the_right_length_unpack_in_range_or_are_refused(bits: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 20))
    raw = data.draw(st.binary(min_size=packed_bytes(count, bits), max_size=packed_bytes(count, bits)))
    try:
        values = unpack(memoryview(raw), count, bits)
    except PeerError as error:
        assert error.reason in ("range", "padding")  # noqa: PT017
    else:
        assert pack(values, bits) == raw  # one legal form for every payload


@pytest.mark.parametrize("bits", PACKED_BITS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_pack_refuses_what_does_not_fit(bits: int, sign: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        pack(np.array([0, sign * (limit(bits) + 1)], dtype=np.int32), bits)


@pytest.mark.parametrize("bits", [bits for bits in PACKED_BITS if bits >= 8])
def test_the_most_negative_value_is_refused(bits: int) -> None:
    planes = [0] * (bits // 8) if bits == 12 else [0] * (bits // 8 - 1)
    raw = bytes([*planes, 0x08 if bits == 12 else 0x80])
    with pytest.raises(PeerError) as refusal:
        unpack(memoryview(raw), 1, bits)
    assert refusal.value.reason == "range"


def test_padding_of_an_odd_count_must_be_zero() -> None:
    with pytest.raises(PeerError) as refusal:
        unpack(memoryview(b"\x01\x10"), 1, 12)
    assert refusal.value.reason == "padding"


@pytest.mark.parametrize("length", [0, 2, 4])
def test_a_wrong_length_is_refused(length: int) -> None:
    with pytest.raises(PeerError) as refusal:
        unpack(memoryview(bytes(length)), 2, 12)
    assert refusal.value.reason == "length"


def test_planes_of_twelve_bits_are_low_bytes_then_nibbles() -> None:
    assert pack(np.array([0x123, -1, 0x7FF], dtype=np.int32), 12).hex() == "23ffff" + "f107"


@pytest.mark.parametrize(("bits", "per_byte"), [(2, 5), (3, 2), (4, 2)])
def test_few_bits_share_a_byte(bits: int, per_byte: int) -> None:
    assert [packed_bytes(count, bits) for count in (0, 1, per_byte, per_byte + 1)] == [0, 1, 1, 2]
    assert pack(np.zeros(per_byte, dtype=np.int32), bits) == b"\x00"


def test_few_bits_number_the_legal_values_from_zero_outwards() -> None:
    assert pack(np.array([0, 1, -1, 1, 0], dtype=np.int32), 2) == bytes([0 + 1 * 3 + 2 * 9 + 1 * 27])
    assert pack(np.array([-3, 2, 3], dtype=np.int32), 3) == bytes([6 + 3 * 7, 5])
    assert pack(np.array([7, -7], dtype=np.int32), 4) == bytes([13 + 14 * 15])
