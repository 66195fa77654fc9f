"""Published rounds, kept so that a peer that missed some can replay them instead of downloading the state."""

from collections import OrderedDict
from dataclasses import dataclass

from tsr_swarm.wire.v1 import swarm_pb2


@dataclass(frozen=True, slots=True)
class PublishedRound:
    """A committed round exactly as it goes over the wire."""

    header: swarm_pb2.PublishedHeader
    data: bytes


class DeltaLog:
    """The newest published rounds, at most ``max_bytes`` of them and always at least one."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rounds: OrderedDict[int, PublishedRound] = OrderedDict()
        self._bytes = 0

    def add(self, published: PublishedRound) -> None:
        """Keep the next round; the oldest make room."""
        self._rounds[published.header.plan.round] = published
        self._bytes += len(published.data)
        while self._bytes > self._max_bytes and len(self._rounds) > 1:
            _, oldest = self._rounds.popitem(last=False)
            self._bytes -= len(oldest.data)

    def get(self, round: int) -> PublishedRound | None:
        """A round that is still kept."""
        return self._rounds.get(round)
