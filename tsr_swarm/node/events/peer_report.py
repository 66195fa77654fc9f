"""What a peer reports after a round: the digest of its weights, and the bytes that it counted since its last report."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tsr_swarm.telemetry.byte_counter import ByteCounter, Direction
from tsr_swarm.transport.tcp_info import KernelBytes
from tsr_swarm.wire.v1 import swarm_pb2 as pb

SAMPLE_SECONDS = 5.0  # between two samples of all connections, of which a reducer has hundreds


@dataclass(slots=True, eq=False)
class PeerReporter:
    """Makes a peer's reports. Each byte is in one report only."""

    counter: ByteCounter
    kernel: KernelBytes
    peer_id: str
    clock: Callable[[], float] = time.monotonic
    _sample_at: float = float("-inf")
    _reported: dict[Direction, Counter[str]] = field(default_factory=lambda: {each: Counter() for each in Direction})
    _overhead: int = 0

    def sample(self) -> None:
        """Sample the kernel's totals now and then: of a connection that closes, the last sample counts."""
        now = self.clock()
        if now >= self._sample_at:
            self._sample_at = now + SAMPLE_SECONDS
            self.kernel.sample()

    def prepare(self, round: int, digest: bytes) -> pb.ReportRequest:
        """Make the report of a round that was applied just now, with all bytes since the last report."""
        sent, received = (self._take_unreported(direction) for direction in (Direction.SENT, Direction.RECEIVED))
        return pb.ReportRequest(
            peer_id=self.peer_id,
            round=round,
            digest=digest,
            sent=sent,
            received=received,
            overhead_bytes=self._take_overhead(),
        )

    def _take_unreported(self, direction: Direction) -> Counter[str]:
        new = Counter(self.counter.totals(direction)) - self._reported[direction]
        self._reported[direction] += new
        return new

    def _take_overhead(self) -> int:
        """Bytes that the kernel moved beyond those counted here: framing, headers, retransmissions. Call when idle."""
        totals = self.kernel.sample()
        counted = sum(sum(self.counter.totals(direction).values()) for direction in Direction)
        total = totals.sent + totals.received - counted if totals is not None else 0
        new = max(0, total - self._overhead)
        self._overhead += new
        return new
