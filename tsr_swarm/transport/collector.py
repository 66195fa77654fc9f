"""Puts the pieces of a stream together, up to the byte that was announced and not beyond."""

from google.protobuf.message import Message

from tsr_swarm.errors import PeerError
from tsr_swarm.transport.base import PIECE_BYTES
from tsr_swarm.transport.byte_accounting import SectionTally


class Collector:
    """Collects exactly ``expected`` bytes and counts them. Never keeps a byte more."""

    def __init__(self, expected: int, tally: SectionTally) -> None:
        self._expected = expected
        self._tally = tally
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, message: Message, piece: bytes) -> None:
        """Take the next ``piece``, which came in ``message``. Raises PeerError for one that is empty or too long."""
        self._size += len(piece)
        if not piece or len(piece) > PIECE_BYTES or self._size > self._expected:
            raise PeerError(
                "length", f"A piece of {len(piece)} bytes came where {self._expected} were announced; it is refused."
            )
        self._tally.add(message, piece)
        self._pieces.append(piece)

    def joined(self) -> bytes:
        """All bytes, at the end of the stream. Raises PeerError when some are missing."""
        if self._size != self._expected:
            raise PeerError(
                "length", f"{self._size} bytes came where {self._expected} were announced; they are refused."
            )
        return b"".join(self._pieces)
