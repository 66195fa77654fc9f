"""Which bytes are of which kind: payload bytes under their kind, everything else of a message under control.

Both ends count the same: at the RPC boundary, after zstd, and without gRPC's, HTTP/2's and TCP's own bytes.
"""

from collections import deque
from collections.abc import Iterable

from google.protobuf.message import Message

from tsr_swarm.config.layout import PayloadKind
from tsr_swarm.telemetry.byte_counter import ByteCounter, Direction
from tsr_swarm.wire.codec import Section
from tsr_swarm.wire.v1 import swarm_pb2 as pb

_KINDS = frozenset(kind.value for kind in PayloadKind)


def count_message(ledger: ByteCounter, direction: Direction, message: Message, payload: bytes = b"") -> None:
    """Count a message as control, less the ``payload`` inside it, which is counted by its kind."""
    ledger.add(direction, PayloadKind.CONTROL.value, message.ByteSize() - len(payload))


def count_chunk(ledger: ByteCounter, direction: Direction, chunk: pb.StateChunk) -> None:
    """Count a piece of state and the message around it."""
    count_message(ledger, direction, chunk, chunk.data)
    ledger.add(direction, PayloadKind.STATE.value, len(chunk.data))


class SectionTally:
    """Counts the pieces of a stream under the kinds of the sections that they were cut from."""

    def __init__(self, ledger: ByteCounter, direction: Direction, sections: Iterable[pb.Section | Section]) -> None:
        self._ledger = ledger
        self._direction = direction
        self._left = deque((section.kind, section.wire_bytes) for section in sections)

    def add(self, message: Message, data: bytes) -> None:
        """Count ``data`` and the ``message`` that carries it."""
        count_message(self._ledger, self._direction, message, data)
        rest = len(data)
        while rest:
            kind, left = self._left.popleft() if self._left else (PayloadKind.CONTROL.value, rest)
            taken = min(left, rest)
            # A name that a stranger made up must not become a counter.
            self._ledger.add(self._direction, kind if kind in _KINDS else PayloadKind.CONTROL.value, taken)
            rest -= taken
            if left > taken:
                self._left.appendleft((kind, left - taken))
