"""Whom a node downloads from: others that can be dialled, none of which is believed without a check."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from tsr_swarm.errors import ConfigError, PeerError, RefusedError, UnreachableError
from tsr_swarm.node.address_book import ClientPool
from tsr_swarm.telemetry.events import Event, Warned
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.limits import TRANSFER_SECONDS

T = TypeVar("T")


@dataclass(slots=True)
class Donors:
    """Connections to donors. Who once gave something wrong is asked last, and people are told of it once."""

    lines: ClientPool
    emit: Callable[[Event], None]
    _accused: set[str] = field(default_factory=set)  # addresses

    async def clients(self, donors: Iterable[str]) -> list[SwarmClient]:
        """Clients of the nodes ``donors`` in this order, each once; they connect with the first call.

        Whose address nobody has said, or cannot be dialled, is left out.
        """
        found: dict[str, SwarmClient] = {}
        for donor in donors:
            try:
                client = await self.lines.to(donor)
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
        """The first good answer to ``call``, and who gave it. Who fails is taken out of ``clients``.

        ``call`` is given a client and the seconds that it may take: ``seconds``, but for the last one, since the slow
        line may be this node's own. Raises RefusedError where somebody answered, but nobody has ``what``; else
        UnreachableError.
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
        """Tell people of a donor that gave something wrong."""
        if client.address not in self._accused:
            self.emit(Warned(message=f"Donor {client.address} is asked last from now on: {error}"))
        self._accused.add(client.address)
