"""Keep a process announced in the DHT for as long as it runs. Training never depends on it."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from tsr_swarm.discovery.addresses import dialable, host_multiaddr, host_of, is_loopback, multiaddrs_for
from tsr_swarm.discovery.dht import DhtDirectory
from tsr_swarm.discovery.identity import Identity
from tsr_swarm.discovery.records import PeerRecord, Presence
from tsr_swarm.errors import SwarmError, UnreachableError
from tsr_swarm.telemetry.events import DhtFound, Event, Warned
from tsr_swarm.transport.address import Address

LOOK_SECONDS = 3.0  # between looks at first; doubled while nothing changes ...
MAX_LOOK_SECONDS = 30.0  # ... up to this
LIFETIME_SECONDS = 120.0  # of a record; renewed at every look, so a peer that is there was heard of half a minute ago


class Announcer:
    """Runs a DHT node for this process, keeps a record of the process in it, and tells whom else it finds there."""

    def __init__(self, identity: Identity, emit: Callable[[Event], None]) -> None:
        self._identity, self._emit = identity, emit
        self._directory: DhtDirectory | None = None
        self._has_warned = False
        self._listen: Address | None = None
        self._announce: Address | None = None
        self._multiaddrs: tuple[str, ...] = ()
        self.known: tuple[str, ...] = ()  # multiaddrs of the DHT's other nodes, as far as told

    @property
    def directory(self) -> DhtDirectory:
        """The DHT node. Raises UnreachableError while there is none."""
        if self._directory is None:
            raise UnreachableError("The DHT cannot be used: its node is not running.")
        return self._directory

    @property
    def seen_from(self) -> str:
        """The host that this node reaches the DHT at: loopback if all that it was told of is there, else "" """
        hosts = [host_of(multiaddr) for multiaddr in self.known or self._multiaddrs]
        return "127.0.0.1" if hosts and all(map(is_loopback, hosts)) else ""

    def multiaddrs_for(self, caller: str) -> tuple[str, ...]:
        """Give the multiaddrs at which a caller from host ``caller`` can dial this node, best first."""
        return multiaddrs_for(caller, self._multiaddrs, self._announce.host if self._announce else "")

    async def open(self, *, listen: Address | None, announce: Address | None, initial_peers: Sequence[str]) -> None:
        """Have a node that works; without ``listen`` it only dials out. Raises UnreachableError."""
        if self._directory is not None and self._directory.healthy():
            return
        await self.close()
        self._listen, self._announce, self.known = listen, announce, dialable(initial_peers)
        self._directory = await DhtDirectory.start(
            identity=self._identity,
            host_maddrs=[host_multiaddr(*listen)] if listen else [],
            announce_maddrs=[host_multiaddr(*announce)] if announce and announce.port else [],
            initial_peers=initial_peers,
        )
        self._multiaddrs = await self._directory.visible_maddrs()

    async def start(self, *, listen: Address | None, announce: Address | None, initial_peers: Sequence[str]) -> None:
        """As ``open``, but a DHT that fails is a warning, and who listens begins one where nobody answers."""
        try:
            try:
                await self.open(listen=listen, announce=announce, initial_peers=initial_peers)
            except UnreachableError:
                if not (listen and initial_peers):
                    raise
                await self.open(listen=listen, announce=announce, initial_peers=())
                self.known = dialable(initial_peers)
        except SwarmError as error:
            self._warn(error)

    async def keep_announcing(
        self, describe: Callable[[], Presence], looked: Callable[[], None] = lambda: None
    ) -> None:
        """Renew this process's record for as long as it runs; ``looked`` is called after every look at the others'.

        An event tells people when the names in them change.
        """
        seen: list[str] = []
        pause = LOOK_SECONDS
        while self._directory is not None:
            if not self._directory.healthy():  # its daemon has died, or every node that it knew
                await self.start(listen=self._listen, announce=self._announce, initial_peers=self.known)
            records = await self._look(self._directory, describe())
            names = None if records is None else sorted(record.name for record in records)
            has_changed = names is not None and names != seen
            pause = LOOK_SECONDS if has_changed else min(MAX_LOOK_SECONDS, 2 * pause)
            looked()
            if names is not None and has_changed:
                seen = names
                self._emit(DhtFound(records=len(seen), names=", ".join(seen)[:400]))
            await asyncio.sleep(pause)

    async def _look(self, directory: DhtDirectory, presence: Presence) -> Sequence[PeerRecord] | None:
        """Store this process's record and return all that are there; None if that failed."""
        now = time.time()
        reachable = self.multiaddrs_for("") or dialable(self._multiaddrs)
        record = PeerRecord(
            **asdict(presence),
            peer_id=self._identity.peer_id,
            dht=next(iter(reachable), ""),
            issued=now,
            expires=now + LIFETIME_SECONDS,
        )
        try:
            await directory.announce(record)
            records = await directory.records(presence.run_id)
        except SwarmError as error:
            self._warn(error)
            return None
        self._has_warned = False
        is_here = is_loopback(self.seen_from)  # a stranger's loopback is not this machine's
        others = {found.dht for found in records if found.dht and is_loopback(host_of(found.dht)) == is_here}
        self.known = dialable([*sorted(others - {record.dht}), *self.known])
        return records

    def _warn(self, error: SwarmError) -> None:
        """Emit a warning, but only the first until the DHT works again."""
        if not self._has_warned:
            self._emit(Warned(message=f"{error} Training goes on without the DHT."))
        self._has_warned = True

    async def close(self) -> None:
        if self._directory is not None:
            await self._directory.close()
