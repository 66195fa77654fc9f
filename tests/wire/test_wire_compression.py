import resource
import tracemalloc
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.examples import flip, refusal_of
from tsr_swarm.errors import PeerError
from tsr_swarm.wire.compression import MAX_WINDOW_BYTES, compress, decompress, max_wire_bytes

BOMB_BYTES = 512 << 20
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
RAW = bytes(range(256)) * 16
FRAME = compress(RAW, 3)


def zeros(count: int, **options: int) -> bytes:
    """A frame of ``count`` zero bytes that states its size, without holding them."""
    parameters = zstandard.ZstdCompressionParameters.from_level(3, write_checksum=True, **options)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=count)
    block = bytes(1 << 20)
    return b"".join(compressor.compress(block) for _ in range(count >> 20)) + compressor.flush()


def restated(frame: bytes, count: int) -> bytes:
    """``frame`` with a header that states ``count`` instead (both in four bytes, single segment)."""
    header = zstandard.get_frame_parameters(frame)
    assert header.content_size > 65791  # so that it is stated in four bytes
    has_window = not frame[4] & 0x20
    return b"\x28\xb5\x2f\xfd\xa4" + count.to_bytes(4, "little") + frame[9 + has_window :]


@given(raw=st.binary(max_size=5000), level=st.integers(1, 19))
def test_decompress_inverts_compress_within_the_announced_bound(raw: bytes, level: int) -> None:
    frame = compress(raw, level)
    assert len(frame) <= max_wire_bytes(len(raw))
    assert decompress(frame, len(raw)) == raw


@pytest.mark.parametrize("level", [1, 3, 19])
def test_a_large_payload_stays_inside_the_window_bound(level: int) -> None:
    raw = bytes(3 * MAX_WINDOW_BYTES)
    assert decompress(compress(raw, level), len(raw)) == raw


@given(data=st.binary(max_size=300), exact=st.integers(0, 2000))
def test_random_bytes_raise_only_peer_errors(data: bytes, exact: int) -> None:
    refusal_of(decompress, data, exact)
    refusal_of(decompress, FRAME[:4] + data, exact)


@given(bit=st.integers(0, 8 * len(FRAME) - 1))
def test_a_flipped_bit_is_refused_or_changes_nothing(bit: int) -> None:
    with suppress(PeerError):
        assert decompress(flip(FRAME, bit), len(RAW)) == RAW


TRUNCATED = [FRAME[: len(FRAME) - missing] for missing in (1, 3, 4, 5, 20, len(FRAME) - 4, len(FRAME) - 1, len(FRAME))]
CONTINUED = [FRAME + extra for extra in (b"\x00", FRAME, SKIPPABLE, compress(b"", 3))]


@pytest.mark.parametrize("frame", [*TRUNCATED, *CONTINUED])
def test_a_frame_must_end_where_its_bytes_end(frame: bytes) -> None:
    refusal_of(decompress, frame, len(RAW))


@pytest.mark.parametrize(
    ("frame", "exact", "reason"),
    [
        (SKIPPABLE + FRAME, len(RAW), "frame"),
        (
            zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(RAW),
            len(RAW),
            "content_size",
        ),
        (zstandard.ZstdCompressor(write_checksum=False).compress(RAW), len(RAW), "frame"),
        *((FRAME, exact, "content_size") for exact in (0, len(RAW) - 1, len(RAW) + 1)),
        (zeros(200 << 20, window_log=27), 200 << 20, "window"),
    ],
    ids=["skippable frame first", "no size", "no checksum", "empty", "shorter", "longer", "huge window"],
)
def test_a_frame_must_come_first_and_state_the_legal_size_a_checksum_and_a_small_window(
    frame: bytes, exact: int, reason: str
) -> None:
    assert refusal_of(decompress, frame, exact) == reason


def test_a_bomb_is_stopped_by_its_stated_size_and_by_what_comes_out() -> None:
    honest, exact = zeros(BOMB_BYTES), 1 << 20
    lying = restated(honest, exact)
    assert zstandard.get_frame_parameters(lying).content_size == exact
    assert len(honest) < max_wire_bytes(exact)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    assert refusal_of(decompress, honest, exact) == "content_size"
    assert refusal_of(decompress, lying, exact) in ("content_size", "frame")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * exact
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
