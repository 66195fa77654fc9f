import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tsr_swarm.config.layout import runs_bytes
from tsr_swarm.errors import PeerError
from tsr_swarm.wire.runs import pack_runs, unpack_runs

widths = st.sampled_from((2, 3, 4, 8))


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
def sparse(draw: st.DrawFn, bits: int) -> NDArray[np.int32]:
    limit = 2 ** (bits - 1) - 1
    stretches = st.lists(st.tuples(st.integers(0, 800), st.integers(-limit, limit)), min_size=1, max_size=8)
    return np.array([v for zeros, end in draw(stretches) for v in [*[0] * zeros, end]], dtype=np.int32)


def joined(values: NDArray[np.int32], bits: int) -> bytes:
    return b"".join(pack_runs(values, bits, runs_bytes(values.size, bits)))


@given(bits=widths, data=st.data())
def test_unpack_inverts_pack_at_the_one_length(bits: int, data: st.DataObject) -> None:
    values = data.draw(sparse(bits))

    packed = joined(values, bits)

    assert len(packed) == runs_bytes(values.size, bits)
    assert np.array_equal(unpack_runs(memoryview(packed), values.size, bits), values)


@given(bits=widths, data=st.data())
def test_runs_count_the_zeros_before_each_number(bits: int, data: st.DataObject) -> None:
    values = data.draw(sparse(bits))

    runs, levels, padding = pack_runs(values, bits, runs_bytes(values.size, bits))

    assert list(runs) == slow_runs(values.tolist())
    assert not any(padding)
    if bits == 8:  # a byte each
        assert list(levels) == [2 * (abs(v) - 1) + (v < 0) for v in values.tolist() if v]


@given(bits=widths, data=st.data())
def test_no_zeros_at_all_still_fit(bits: int, data: st.DataObject) -> None:
    signs = data.draw(hnp.arrays(np.int32, st.integers(1, 40), elements=st.sampled_from((-1, 1))))

    assert np.array_equal(unpack_runs(memoryview(joined(signs, bits)), signs.size, bits), signs)


@given(bits=widths, count=st.integers(1, 20), data=st.data())
def test_any_bytes_are_the_one_form_of_their_values_or_refused(bits: int, count: int, data: st.DataObject) -> None:
    length = runs_bytes(count, bits)
    byte = st.sampled_from((0, 1, 2, 3, 9, 254, 255)) | st.integers(0, 255)
    raw = bytes(data.draw(st.lists(byte, min_size=length, max_size=length)))
    try:
        values = unpack_runs(memoryview(raw), count, bits)
    except PeerError as error:
        assert error.reason in ("runs", "range", "padding", "length")  # noqa: PT017
    else:
        assert joined(values, bits) == raw


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\x01\x01\x01\x01\x01", "runs"),  # no end
        (b"\x02\x02\x02\x00\x00", "runs"),  # beyond the three numbers there are
        (b"\xff\x00\x00\x00\x00", "runs"),  # zeros that lead nowhere
        (b"\x01\x00\x02\x00\x00", "padding"),  # two levels for one number
        (b"\x01\x00\x00\x00\x01", "padding"),
    ],
)
def test_what_is_wrong_is_told_apart(raw: bytes, reason: str) -> None:
    assert len(raw) == runs_bytes(3, 2)
    with pytest.raises(PeerError) as refusal:
        unpack_runs(memoryview(raw), 3, 2)
    assert refusal.value.reason == reason


@pytest.mark.parametrize("value", [2, -2])
def test_what_does_not_fit_is_not_packed(value: int) -> None:
    with pytest.raises(ValueError, match="does not fit 2 bits"):
        pack_runs(np.array([0, value], dtype=np.int32), 2, 100)
