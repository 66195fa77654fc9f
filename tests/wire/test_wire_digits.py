import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tsr_swarm.config.layout import digits_per_byte
from tsr_swarm.errors import PeerError
from tsr_swarm.wire.digits import pack_digits, unpack_digits

bases = st.integers(2, 256)


@given(base=bases)
def test_as_many_digits_share_a_byte_as_fit(base: int) -> None:
    count = digits_per_byte(base)

    assert base**count <= 256 < base ** (count + 1)


@given(base=bases, data=st.data())
def test_packing_writes_the_digits_of_one_number_a_byte(base: int, data: st.DataObject) -> None:
    digits = data.draw(hnp.arrays(np.int32, st.integers(0, 40), elements=st.integers(0, base - 1)))
    per_byte = digits_per_byte(base)

    packed = pack_digits(digits, base)

    groups = [digits[start : start + per_byte].tolist() for start in range(0, digits.size, per_byte)]
    assert list(packed) == [sum(digit * base**place for place, digit in enumerate(group)) for group in groups]
    assert np.array_equal(unpack_digits(memoryview(packed), digits.size, base), digits)


@given(base=bases, count=st.integers(0, 20), data=st.data())
def test_any_bytes_are_the_one_form_of_their_digits_or_refused(base: int, count: int, data: st.DataObject) -> None:
    length = -(-count // digits_per_byte(base))
    raw = data.draw(st.binary(min_size=length, max_size=length))
    try:
        digits = unpack_digits(memoryview(raw), count, base)
    except PeerError as error:
        assert error.reason in ("range", "padding")  # noqa: PT017
    else:
        assert pack_digits(digits, base) == raw


@pytest.mark.parametrize(
    ("raw", "count", "reason"),
    [(b"\xf3", 5, "range"), (b"\x03", 1, "padding"), (b"", 1, "length"), (b"00", 1, "length")],
)
def test_what_is_wrong_is_told_apart(raw: bytes, count: int, reason: str) -> None:
    with pytest.raises(PeerError) as refusal:
        unpack_digits(memoryview(raw), count, 3)
    assert refusal.value.reason == reason
