"""Where other nodes can be dialled: what they said of themselves or others said of them, and connections to them."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tsr_swarm.discovery.addresses import address_for, dialable, dialable_address
from tsr_swarm.discovery.runs import parse_wanted_run
from tsr_swarm.errors import ConfigError, PeerError, UnreachableError
from tsr_swarm.telemetry.byte_counter import ByteCounter
from tsr_swarm.transport.address import parse_address
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.tcp_info import KernelBytes
from tsr_swarm.wire.fields import require_address, require_peer_id
from tsr_swarm.wire.v1 import swarm_pb2 as pb

MOST_CONTACTS = 1024
MOST_KEPT = 64  # on disk: enough to find the swarm again
MOST_CLIENTS = 1024  # that are kept; whoever moves leaves one behind
SAMPLE_SECONDS = 5.0  # between two samples of all connections, of which a reducer has hundreds


class AddressBook:
    """Addresses by peer_id, the newest word counts. Kept in ``path``, if there is one, so that a restart finds others.

    What was said is a hint: whoever is dialled may be somebody else.
    """

    def __init__(self, me: str, path: Path | None = None) -> None:
        self._me, self._path = me, path
        self._addresses: dict[str, str] = {}  # the newest last
        self._kept: Mapping[str, object] = {}
        self._met = ""
        self.run = ""  # NAME@RUNID of the run, as it is found in the DHT
        self.multiaddrs: tuple[str, ...] = ()  # of nodes of the DHT
        self.changes = 0  # of addresses, so far

    def load(self, met: str = "") -> None:
        """Take in what an earlier process kept that had begun at ``met``; a damaged file is as good as none."""
        self._met = met
        if self._path is None:
            return
        with suppress(
            OSError, ValueError, AttributeError, LookupError, TypeError, RecursionError, PeerError, ConfigError
        ):
            kept = json.loads(self._path.read_text("utf-8"))
            if kept["met"] != met:
                return  # another run, for all that is known
            for peer_id, address in kept["contacts"].items():
                require_peer_id("contacts", peer_id)
                self.update(peer_id, dialable_address("127.0.0.1", address))
            self.run, self.multiaddrs = str(parse_wanted_run(kept["run"])), dialable(kept["dht"])

    def update(self, peer_id: str, address: str) -> None:
        """``peer_id`` is at ``address``; "" says nothing."""
        if not address or peer_id == self._me:
            return
        self.changes += self._addresses.pop(peer_id, "") != address
        self._addresses[peer_id] = address
        if len(self._addresses) > MOST_CONTACTS:
            del self._addresses[next(iter(self._addresses))]

    def update_from(self, caller: str, contacts: Iterable[pb.Contact]) -> None:
        """Take in what somebody at host ``caller`` said, as far as it can be dialled from here. Raises PeerError."""
        for contact in contacts:
            require_peer_id("contacts", contact.peer_id)
            require_address("contacts", contact.address)
            self.update(contact.peer_id, dialable_address(caller, contact.address))

    def address(self, peer_id: str) -> str:
        """Where it was last said to be; "" unknown."""
        return self._addresses.get(peer_id, "")

    @property
    def addresses(self) -> list[str]:
        """All that are known, the newest first."""
        return list(reversed(self._addresses.values()))

    def seen_by(self, caller: str, peer_ids: Iterable[str]) -> dict[str, str]:
        """Where a caller at host ``caller`` can dial those of ``peer_ids`` that it can dial."""
        known = ((peer_id, self.address(peer_id)) for peer_id in dict.fromkeys(peer_ids))
        return {peer_id: seen for peer_id, address in known if address and (seen := address_for(caller, address))}

    def keep(self, peer_ids: Iterable[str]) -> None:
        """Keep the addresses of these for the next start, if they have changed. A disk that is full loses a hint."""
        wanted = {peer_id: self.address(peer_id) for peer_id in list(dict.fromkeys(peer_ids))[:MOST_KEPT]}
        wanted = {peer_id: address for peer_id, address in wanted.items() if address}
        kept = {"met": self._met, "contacts": wanted, "run": self.run, "dht": self.multiaddrs}
        if self._path is None or kept == self._kept or not (wanted or self.multiaddrs):
            return
        aside = self._path.with_suffix(".tmp")
        self._kept = kept
        with suppress(OSError):
            aside.write_text(json.dumps(kept), "utf-8")
            aside.replace(self._path)


class ClientPool:
    """Connections to other nodes, one an address: made with the first call, and kept.

    ``counter`` and ``kernel`` count this process's bytes.
    """

    def __init__(
        self, book: AddressBook, proxy: str | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.counter, self.kernel = ByteCounter(), KernelBytes([])
        self._book, self._proxy, self._clock = book, proxy, clock
        self._sample_at = float("-inf")
        self._clients: dict[str, tuple[SwarmClient, AsyncExitStack]] = {}  # by address, the one used last at the end

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kernel.sample()  # before the connections are gone
        while self._clients:
            await self._close(next(iter(self._clients)))

    async def to(self, peer_id: str) -> SwarmClient:
        """The connection to a node. Raises UnreachableError where its address is unknown."""
        address = self._book.address(peer_id)
        if not address:
            raise UnreachableError(f"Nobody has said where peer {peer_id[:8]} can be dialled.")
        return await self.at(address)

    async def at(self, address: str) -> SwarmClient:
        """The connection to an address. Raises ConfigError where it cannot be dialled."""
        known = self._clients.pop(address, None)
        if known is None:
            _, port = parse_address(address if self._proxy is None else self._proxy)
            self.kernel.watch(port)
            stack = AsyncExitStack()
            known = await stack.enter_async_context(SwarmClient(address, self.counter, self._proxy)), stack
        self._clients[address] = known
        if len(self._clients) > MOST_CLIENTS:
            await self._close(next(iter(self._clients)))
        return known[0]

    def sample(self) -> None:
        """Sample the kernel's totals now and then: of a connection that closes, the last sample counts."""
        now = self._clock()
        if now >= self._sample_at:
            self._sample_at = now + SAMPLE_SECONDS
            self.kernel.sample()

    async def _close(self, address: str) -> None:
        _, stack = self._clients.pop(address)
        await stack.aclose()
