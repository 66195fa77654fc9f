from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.wire.examples import refusal_of
from tsr_swarm.config.layout import digits_per_byte, packed_bytes, runs_bytes
from tsr_swarm.errors import PeerError
from tsr_swarm.wire import packing
from tsr_swarm.wire.packing import Integers

widths = st.sampled_from(packing.PACKED_BITS)
few_bits = st.sampled_from((2, 3, 4, 8))
bases = st.integers(2, 256)


def limit(bits: int) -> int:
    return (1 << (bits - 1)) - 1


@given(bits=widths, data=st.data())
def test_unpack_inverts_pack(bits: int, data: st.DataObject) -> None:
    numbers = st.integers(-limit(bits), limit(bits))
    values = data.draw(hnp.arrays(np.int32, st.integers(0, 40), elements=numbers))
    packed = packing.pack(values, bits)
    assert len(packed) == packed_bytes(values.size, bits)
    assert np.array_equal(packing.unpack(memoryview(packed), values.size, bits), values)


def assert_one_form(read: Callable[[memoryview], Integers], write: Callable[[Integers], bytes], raw: bytes) -> None:
    """Assert that ``raw`` is refused, or is what would be written for the values that are read from it."""
    try:
        values = read(memoryview(raw))
    except PeerError as error:
        assert error.reason in ("runs", "range", "padding", "length")  # noqa: PT017
    else:
        assert write(values) == raw


@given(bits=widths, count=st.integers(0, 20), data=st.data())
def test_numbers_have_one_legal_form(bits: int, count: int, data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=packed_bytes(count, bits), max_size=packed_bytes(count, bits)))
    assert_one_form(lambda data: packing.unpack(data, count, bits), lambda values: packing.pack(values, bits), raw)


@pytest.mark.parametrize("bits", packing.PACKED_BITS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_pack_refuses_what_does_not_fit(bits: int, sign: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        packing.pack(np.array([0, sign * (limit(bits) + 1)], dtype=np.int32), bits)


def test_planes_of_sixteen_bits_are_low_bytes_then_high_bytes() -> None:
    assert packing.pack(np.array([0x123, -1, 0x7FF], dtype=np.int32), 16).hex() == "23ffff" + "01ff07"


def test_few_bits_number_the_legal_values_from_zero_outwards() -> None:
    assert packing.pack(np.array([0, 1, -1, 1, 0], dtype=np.int32), 2) == bytes([0 + 1 * 3 + 2 * 9 + 1 * 27])
    assert packing.pack(np.array([-3, 2, 3], dtype=np.int32), 3) == bytes([6 + 3 * 7, 5])
    assert packing.pack(np.array([7, -7], dtype=np.int32), 4) == bytes([13 + 14 * 15])


@given(base=bases)
def test_as_many_digits_share_a_byte_as_fit(base: int) -> None:
    count = digits_per_byte(base)
    assert base**count <= 256 < base ** (count + 1)


@given(base=bases, data=st.data())
def test_packing_writes_the_digits_of_one_number_a_byte(base: int, data: st.DataObject) -> None:
    digits = data.draw(hnp.arrays(np.int32, st.integers(0, 40), elements=st.integers(0, base - 1)))
    per_byte = digits_per_byte(base)
    packed = packing.pack_digits(digits, base)
    groups = [digits[start : start + per_byte].tolist() for start in range(0, digits.size, per_byte)]
    assert list(packed) == [sum(digit * base**power for power, digit in enumerate(group)) for group in groups]
    assert np.array_equal(packing.unpack_digits(memoryview(packed), digits.size, base), digits)


@given(base=bases, count=st.integers(0, 20), data=st.data())
def test_digits_have_one_legal_form(base: int, count: int, data: st.DataObject) -> None:
    length = -(-count // digits_per_byte(base))
    raw = data.draw(st.binary(min_size=length, max_size=length))
    assert_one_form(
        lambda data: packing.unpack_digits(data, count, base), lambda digits: packing.pack_digits(digits, base), raw
    )


def slow_runs(values: list[int]) -> list[int]:
    """The runs' bytes, value by value."""
    runs, zeros = [], 0
    for value in values:
        if value == 0:
            zeros += 1
            continue
        while zeros >= 254:
            runs.append(255)
            zeros -= 254
        runs.append(zeros + 1)
        zeros = 0
    return [*runs, 0]


@st.composite
def sparse(draw: st.DrawFn, bits: int) -> Integers:
    """Stretches of zeros, or none at all, each before one number."""
    zeros = draw(st.sampled_from((0, 800)))
    stretches = st.lists(
        st.tuples(st.integers(0, zeros), st.integers(-limit(bits), limit(bits))), min_size=1, max_size=40
    )
    return np.array([v for count, end in draw(stretches) for v in [*[0] * count, end]], dtype=np.int32)


def joined(values: Integers, bits: int) -> bytes:
    return b"".join(packing.pack_runs(values, bits, runs_bytes(values.size, bits)))


@given(bits=few_bits, data=st.data())
def test_unpacking_inverts_packing_of_runs_at_the_one_length(bits: int, data: st.DataObject) -> None:
    values = data.draw(sparse(bits))
    packed = joined(values, bits)
    assert len(packed) == runs_bytes(values.size, bits)
    assert np.array_equal(packing.unpack_runs(memoryview(packed), values.size, bits), values)


@given(bits=few_bits, data=st.data())
def test_runs_count_the_zeros_before_each_number(bits: int, data: st.DataObject) -> None:
    values = data.draw(sparse(bits))
    runs, levels, padding = packing.pack_runs(values, bits, runs_bytes(values.size, bits))
    assert list(runs) == slow_runs(values.tolist())
    assert not any(padding)
    if bits == 8:  # a byte each
        assert list(levels) == [2 * (abs(v) - 1) + (v < 0) for v in values.tolist() if v]


@given(bits=few_bits, count=st.integers(1, 20), data=st.data())
def test_runs_have_one_legal_form(bits: int, count: int, data: st.DataObject) -> None:
    length = runs_bytes(count, bits)
    byte = st.sampled_from((0, 1, 2, 3, 9, 254, 255)) | st.integers(0, 255)
    raw = bytes(data.draw(st.lists(byte, min_size=length, max_size=length)))
    assert_one_form(lambda data: packing.unpack_runs(data, count, bits), lambda values: joined(values, bits), raw)


FAULTS: list[tuple[Callable[..., Integers], tuple[int, int], str, list[bytes]]] = [
    (packing.unpack, (1, 8), "range", [b"\x80"]),  # the most negative value
    (packing.unpack, (1, 16), "range", [b"\x00\x80"]),
    (packing.unpack, (2, 16), "length", [b"", bytes(3), bytes(5)]),
    (packing.unpack_digits, (5, 3), "range", [b"\xf3"]),
    (packing.unpack_digits, (1, 3), "padding", [b"\x03"]),
    (packing.unpack_digits, (1, 3), "length", [b"", b"00"]),
    (packing.unpack_runs, (3, 2), "runs", [b"\x01\x01\x01\x01\x01"]),  # no end
    (packing.unpack_runs, (3, 2), "runs", [b"\x02\x02\x02\x00\x00"]),  # beyond the three numbers there are
    (packing.unpack_runs, (3, 2), "runs", [b"\xff\x00\x00\x00\x00"]),  # zeros that lead nowhere
    (packing.unpack_runs, (3, 2), "padding", [b"\x01\x00\x02\x00\x00", b"\x01\x00\x00\x00\x01"]),
]


@pytest.mark.parametrize(("read", "size", "reason", "wrong"), FAULTS)
def test_each_fault_has_its_reason(
    read: Callable[..., Integers], size: tuple[int, int], reason: str, wrong: list[bytes]
) -> None:
    for raw in wrong:
        assert refusal_of(read, memoryview(raw), *size) == reason


@pytest.mark.parametrize("value", [2, -2])
def test_runs_refuse_what_does_not_fit(value: int) -> None:
    with pytest.raises(ValueError, match="does not fit 2 bits"):
        packing.pack_runs(np.array([0, value], dtype=np.int32), 2, 100)
