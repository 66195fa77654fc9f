"""Headers of the newest rounds at one node: who made a round's shards gives its header before it has all of them."""

from tsr_swarm.process.tasks import Signal
from tsr_swarm.wire.v1 import swarm_pb2 as pb

KEPT = 4  # a round of which several were proposed, and the one after it


class Headers:
    """One node's. Its event loop owns it. What is kept was checked: its chain hash is that of what it says."""

    def __init__(self) -> None:
        self._kept: dict[bytes, pb.PublishedHeader] = {}  # by chain hash, the newest last
        self._changed = Signal()

    def keep(self, header: pb.PublishedHeader) -> None:
        """It is here: whoever waits for it gets it."""
        self._kept.pop(header.chain, None)
        self._kept[header.chain] = header
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        self._changed.notify()

    async def get(self, round: int, chain: bytes, seconds: float = 0.0) -> pb.PublishedHeader | None:
        """That of this round and hash, as soon as it is here; None if it is not within ``seconds``."""
        if seconds:
            await self._changed.wait_for(lambda: chain in self._kept, seconds)
        header = self._kept.get(chain)
        return header if header is not None and header.plan.round == round else None
