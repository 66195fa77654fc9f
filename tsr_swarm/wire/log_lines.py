"""Lines of a run's log as they travel: much alike, and so a tenth of their length when compressed."""

from collections.abc import Sequence

from tsr_swarm.errors import PeerError
from tsr_swarm.wire.compression import compress, decompress
from tsr_swarm.wire.fields import require
from tsr_swarm.wire.v1 import swarm_pb2 as pb

MAX_LINES_BYTES = 8 << 20  # a line has 4 MiB at most, and lines after the first are added up to 1 MiB
_LEVEL = 3


def lines_to_proto(lines: Sequence[str], last: int) -> pb.WatchReply:
    """``lines`` are without newlines. ``last``: the number of the newest one."""
    raw = "\n".join(lines).encode()
    return pb.WatchReply(last=last, lines=compress(raw, _LEVEL) if lines else b"", lines_bytes=len(raw))


def lines_from_proto(message: pb.WatchReply) -> tuple[list[str], int]:
    """The lines, and the number of the newest one. What they say is not looked at. Raises PeerError."""
    require(message.lines_bytes <= MAX_LINES_BYTES, "lines", message.lines_bytes, f"at most {MAX_LINES_BYTES} bytes")
    if not message.lines:
        return [], message.last
    try:
        text = decompress(message.lines, message.lines_bytes).decode()
    except UnicodeDecodeError as error:
        raise PeerError("lines", "Lines of a log are no UTF-8; they are refused.") from error
    return text.split("\n"), message.last
