"""Who is asked for which shard of a round, in which order, and for how long."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.limits import STALL_SECONDS

# While the run waits for this node, of who made a shard: without a byte, and in all as long again for each MiB of the
# round, as its shards come over one line. Whoever proposes the round has all bytes, and is asked next.
MAKER_SECONDS = 3.0


@dataclass(slots=True)
class ShardGivers:
    """Of one round. ``makers``: by shard, as far as they can be asked. ``donors`` may have every shard of it.

    is_awaited: the run waits for this node.
    """

    makers: Sequence[SwarmClient | None]
    donors: Sequence[SwarmClient]
    is_awaited: bool = False
    _failed: set[SwarmClient] = field(default_factory=set)

    def of(self, shard: int) -> list[SwarmClient]:
        """Its maker first, unless that has failed with another shard, and then donors."""
        maker = self.makers[shard] if shard < len(self.makers) else None
        first = [] if maker is None or maker in self._failed else [maker]
        return list(dict.fromkeys([*first, *self.donors]))

    def seconds(self, client: SwarmClient, mebibytes: float, at_most: float) -> tuple[float, float]:
        """How long it may take for a shard of a round of so many MiB, and how long it may be silent."""
        if self.is_awaited and client not in self.donors:
            return min(at_most, MAKER_SECONDS * (1 + mebibytes)), MAKER_SECONDS
        return at_most, STALL_SECONDS

    def fails(self, client: SwarmClient) -> None:
        """It did not give a shard, or gave another one."""
        self._failed.add(client)
