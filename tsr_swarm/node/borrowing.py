"""What this peer has borrowed of the shared data: which part it trains on, and how much of that counts."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from tsr_swarm.rounds.leases import Lease


@dataclass(frozen=True, slots=True)
class Claim:
    """What a peer says of its lease: how many ``tokens`` of it are in rounds that counted its work, of ``size``."""

    lease: Lease | None
    tokens: int = 0
    size: int = 0  # 0: its holder has not begun

    @property
    def is_full(self) -> bool:
        """Batches are random windows: a part is done when as many tokens as it has were trained on."""
        return 0 < self.size <= self.tokens


class LeaseHolder:
    """One peer's. The leader's answers and the rounds that count come on the event loop, training is on its thread."""

    def __init__(self, read_part: Callable[[int], int]) -> None:
        """read_part: train on this part from now on; returns its tokens. Raises ConfigError."""
        self._read_part = read_part
        self._lease: Lease | None = None  # as the leader said last
        self._reading = Claim(None)  # as training began last

    @property
    def claim(self) -> Claim:
        """What is said of it to a leader."""
        reading = self._reading
        return reading if reading.lease == self._lease else Claim(self._lease)

    def hear(self, lease: Lease | None) -> None:
        """From the next round on this peer trains on that; None: on its home part, without a lease."""
        self._lease = lease

    def begin(self, home: int) -> None:
        """A round's training begins; on the training thread. Raises ConfigError if the data is not there."""
        lease = self._lease
        size = self._read_part(home if lease is None else lease.part)
        if lease != self._reading.lease:
            self._reading = Claim(lease, 0, size)

    def count(self, tokens: int) -> None:
        """So many are in a round that stands; called between two trainings."""
        self._reading = replace(self._reading, tokens=self._reading.tokens + tokens)
