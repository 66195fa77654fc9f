"""Where a peer downloads: donors it was told of, and the coordinator, which alone is believed without a check."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from tsr_swarm.swarm.addresses import dialable_address, join_address, split_address
from tsr_swarm.telemetry.events import Event, Warned
from tsr_swarm.telemetry.ledger import ByteLedger
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.kernel_bytes import KernelBytes


@dataclass(slots=True)
class Sources:
    """The donors are those that the coordinator named last."""

    coordinator: SwarmClient
    ledger: ByteLedger
    kernel: KernelBytes
    emit: Callable[[Event], None]
    proxy: str | None = None
    donors: tuple[str, ...] = field(default=())

    def tell(self, addresses: Iterable[str]) -> None:
        """Take other donors from now on, each once; what cannot be dialled is left out, and the coordinator."""
        here, _ = split_address(self.coordinator.address)
        dialable = (join_address(*split_address(a)) for a in addresses if dialable_address(here, a))
        self.donors = tuple(address for address in dict.fromkeys(dialable) if address != self.coordinator.address)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[list[SwarmClient]]:
        """Clients of the donors; each connects with its first call."""
        async with AsyncExitStack() as stack:
            clients = []
            for address in self.donors:
                self.kernel.watch(split_address(address)[1])
                clients.append(await stack.enter_async_context(SwarmClient(address, self.ledger, self.proxy)))
            try:
                yield clients
            finally:
                self.kernel.sample()  # before the connections are gone

    def accuse(self, client: SwarmClient, error: Exception) -> None:
        """Tell people of a donor that gave something wrong."""
        self.emit(Warned(message=f"Donor {client.address} is not asked again in this download: {error}"))
