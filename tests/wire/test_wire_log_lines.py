"""Lines of a log as they travel: they come as they went, in fewer bytes, and bad ones are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.errors import PeerError
from tsr_swarm.telemetry import events as ev
from tsr_swarm.wire.compression import compress
from tsr_swarm.wire.log_lines import MAX_LINES_BYTES, lines_from_proto, lines_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

texts = st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"])))


@given(lines=texts, last=st.integers(0, 2**53))
def test_lines_come_as_they_went(lines: list[str], last: int) -> None:
    assert lines_from_proto(lines_to_proto(lines, last)) == (lines, last)


def test_lines_of_many_peers_take_a_fifth_of_their_bytes_or_less() -> None:
    lines = [
        ev.encode(ev.DigestReported(round=3, peer=f"{peer * 2**100:032x}", name=f"peer-{peer}", digest="a" * 64), peer)
        for peer in range(100)
    ]
    assert 5 * lines_to_proto(lines, 100).ByteSize() < sum(map(len, lines))


def test_the_longest_lines_that_a_log_gives_at_once_are_taken() -> None:
    line = "x" * ev.MAX_LINE
    assert lines_from_proto(lines_to_proto([line], 1)) == ([line], 1)


@given(frame=st.binary(max_size=64), size=st.integers(0, 2**32 - 1))
def test_damage_is_refused(frame: bytes, size: int) -> None:
    message = pb.WatchReply(lines=frame, lines_bytes=size)
    if not frame and size <= MAX_LINES_BYTES:
        assert lines_from_proto(message) == ([], 0)
        return
    with pytest.raises(PeerError):
        lines_from_proto(message)


@pytest.mark.parametrize("raw", [b"\xff\xfe", bytes(MAX_LINES_BYTES + 1)])
def test_what_is_no_text_or_too_long_is_refused(raw: bytes) -> None:
    with pytest.raises(PeerError, match=r"[Ll]ines"):
        lines_from_proto(pb.WatchReply(lines=compress(raw, 1), lines_bytes=len(raw)))


def test_a_frame_of_another_length_than_it_was_said_to_have_is_refused() -> None:
    message = lines_to_proto(["a" * 100, "b"], 2)
    message.lines_bytes -= 1
    with pytest.raises(PeerError):
        lines_from_proto(message)
