"""Streams of payload bytes, and what is counted of them: payloads under their kind, the rest of a message as control.

Both ends count the same: at the RPC boundary, after zstd, and without gRPC's, HTTP/2's and TCP's own bytes.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from google.protobuf.message import Message

from tsr_swarm.config.layout import PayloadKind
from tsr_swarm.errors import PeerError
from tsr_swarm.telemetry.byte_counter import ByteCounter, Direction
from tsr_swarm.transport.base import PIECE_BYTES
from tsr_swarm.wire.codec import Section
from tsr_swarm.wire.v1 import swarm_pb2 as pb

_KINDS = frozenset(kind.value for kind in PayloadKind)


def count_message(counter: ByteCounter, direction: Direction, message: Message, payload: bytes = b"") -> None:
    """Count a message as control, less the ``payload`` inside it, which is counted by its kind."""
    counter.add(direction, PayloadKind.CONTROL.value, message.ByteSize() - len(payload))


def count_chunk(counter: ByteCounter, direction: Direction, chunk: pb.StateChunk) -> None:
    """Count a piece of state and the message around it."""
    count_message(counter, direction, chunk, chunk.data)
    counter.add(direction, PayloadKind.STATE.value, len(chunk.data))


class SectionTally:
    """Counts the pieces of a stream under the kinds of the sections that they were cut from."""

    def __init__(self, counter: ByteCounter, direction: Direction, sections: Iterable[pb.Section | Section]) -> None:
        self._counter, self._direction = counter, direction
        self._left = deque((section.kind, section.wire_bytes) for section in sections)

    def add(self, message: Message, data: bytes) -> None:
        """Count ``data`` and the ``message`` that carries it."""
        count_message(self._counter, self._direction, message, data)
        rest = len(data)
        while rest:
            kind, left = self._left.popleft() if self._left else (PayloadKind.CONTROL.value, rest)
            taken = min(left, rest)
            # A name that another machine made up must not become a counter.
            self._counter.add(self._direction, kind if kind in _KINDS else PayloadKind.CONTROL.value, taken)
            rest -= taken
            if left > taken:
                self._left.appendleft((kind, left - taken))


class Collector:
    """Puts the received pieces of a stream together, and counts them: as many bytes as ``sections`` say, no more."""

    def __init__(self, counter: ByteCounter, sections: Sequence[pb.Section | Section]) -> None:
        self._expected = sum(section.wire_bytes for section in sections)
        self._tally = SectionTally(counter, Direction.RECEIVED, sections)
        self._pieces, self._size = list[bytes](), 0

    def add(self, message: Message, piece: bytes) -> None:
        """Take the next ``piece``, which came in ``message``. Raises PeerError for one that is empty or too long."""
        self._size += len(piece)
        if not piece or len(piece) > PIECE_BYTES or self._size > self._expected:
            came = f"A piece of {len(piece)} bytes came where {self._expected} were announced"
            raise PeerError("length", f"{came}; it is refused.")
        self._tally.add(message, piece)
        self._pieces.append(piece)

    def joined(self) -> bytes:
        """All bytes, at the end of the stream. Raises PeerError when some are missing."""
        if self._size != self._expected:
            came = f"{self._size} bytes came where {self._expected} were announced"
            raise PeerError("length", f"{came}; they are refused.")
        return b"".join(self._pieces)


def pieces(data: bytes | Sequence[bytes]) -> Iterator[bytes]:
    """Cut payload bytes for a stream."""
    for part in (data,) if isinstance(data, bytes) else data:
        for start in range(0, len(part), PIECE_BYTES):
            yield part[start : start + PIECE_BYTES]
