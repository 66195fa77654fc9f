"""The nodes that a node downloads from: others that can be dialled, none of which is trusted without a check."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tsr_swarm.errors import ConfigError, PeerError, RefusedError, UnreachableError
from tsr_swarm.node.address_book import ClientPool
from tsr_swarm.telemetry.events import Event, Warned
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.limits import STALL_SECONDS, TRANSFER_SECONDS

# While the run waits for this node, the reducer of a shard may be silent for so long, and may take so long in all for
# each MiB of the round and once more. The node that proposes the round has all shards, and is asked next.
REDUCER_SECONDS = 3.0

T = TypeVar("T")


@dataclass(slots=True)
class Donors:
    """Clients of donors. A donor that once sent something wrong is asked last, and warned of once."""

    pool: ClientPool
    emit: Callable[[Event], None]
    _accused: set[str] = field(default_factory=set)  # addresses

    async def clients(self, donors: Iterable[str]) -> list[SwarmClient]:
        """Clients of the nodes ``donors`` in this order, each address once; they connect with the first call.

        Nodes whose address is not known, or cannot be dialled, are left out.
        """
        found: dict[str, SwarmClient] = {}
        for donor in donors:
            try:
                client = await self.pool.to(donor)
            except (UnreachableError, ConfigError):
                continue
            found.setdefault(client.address, client)
        return sorted(found.values(), key=lambda client: client.address in self._accused)  # stable

    async def ask(
        self,
        clients: list[SwarmClient],
        call: Callable[[SwarmClient, float], Awaitable[T]],
        what: str,
        seconds: float = TRANSFER_SECONDS,
    ) -> tuple[T, SwarmClient]:
        """Return the first good answer to ``call``, and the client that gave it. Remove failed ones from ``clients``.

        ``call`` is given a client and the ``seconds`` that it may take. The last client may take TRANSFER_SECONDS,
        since the slow connection may be this node's own. Raises RefusedError if somebody answered, but nobody has
        ``what``; else UnreachableError.
        """
        refusal: RefusedError | None = None
        for left, client in zip(range(len(clients) - 1, -1, -1), list(clients), strict=True):
            try:
                return await call(client, seconds if left else TRANSFER_SECONDS), client
            except RefusedError as error:
                refusal = error  # it may have something else
                continue
            except UnreachableError:
                pass
            except PeerError as error:
                self.accuse(client, error)
            if client in clients:
                clients.remove(client)
        raise refusal or UnreachableError(f"{what} cannot be had from anybody who can be reached now.")

    def accuse(self, client: SwarmClient, error: Exception) -> None:
        """Ask a donor that sent something wrong last from now on."""
        if client.address not in self._accused:
            self.emit(Warned(message=f"Donor {client.address} is asked last from now on: {error}"))
        self._accused.add(client.address)


@dataclass(slots=True)
class ShardDonors:
    """Which clients are asked for a shard of one round, in which order, and for how long.

    reducers: by shard, the node that averaged it; None if it cannot be dialled. donors: may have every shard.
    is_awaited: the run waits for this node.
    """

    reducers: Sequence[SwarmClient | None]
    donors: Sequence[SwarmClient]
    is_awaited: bool = False
    _failed: set[SwarmClient] = field(default_factory=set)

    def of(self, shard: int) -> list[SwarmClient]:
        """The reducer of ``shard`` first, unless it has failed with another shard, and then donors."""
        reducer = self.reducers[shard] if shard < len(self.reducers) else None
        first = [] if reducer is None or reducer in self._failed else [reducer]
        return list(dict.fromkeys([*first, *self.donors]))

    def seconds(self, client: SwarmClient, mebibytes: float, at_most: float) -> tuple[float, float]:
        """How long a client may take for a shard of a round of so many MiB, and how long it may be silent."""
        if self.is_awaited and client not in self.donors:
            return min(at_most, REDUCER_SECONDS * (1 + mebibytes)), REDUCER_SECONDS
        return at_most, STALL_SECONDS

    def mark_failed(self, client: SwarmClient) -> None:
        """Do not ask a client first again: it did not send a shard, or sent a wrong one."""
        self._failed.add(client)
