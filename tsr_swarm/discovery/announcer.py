"""A process's place in the DHT: a node, a record kept fresh, and whom it found. Training never depends on it."""

import asyncio
import time
from collections.abc import Callable, Sequence

from tsr_swarm.discovery.addresses import host_multiaddr
from tsr_swarm.discovery.dht import DhtDirectory
from tsr_swarm.discovery.identity import Identity
from tsr_swarm.discovery.records import PeerRecord, PeerRole
from tsr_swarm.errors import SwarmError
from tsr_swarm.telemetry.events import DhtFound, Event, Warned

LOOK_SECONDS = 3.0  # between looks at first; doubled while nothing changes ...
MAX_LOOK_SECONDS = 60.0  # ... up to this
LIFETIME_SECONDS = 180.0  # of a record; renewed at every look

Place = tuple[str, int]  # host and port


class Discovery:
    """One DHT node and its record."""

    def __init__(self, identity: Identity, run_id: str, emit: Callable[[Event], None]) -> None:
        self._identity = identity
        self._run_id = run_id
        self._emit = emit
        self._directory: DhtDirectory | None = None
        self._has_warned = False
        self._arguments: tuple[Place | None, Place | None, Sequence[str]] = (None, None, ())
        self.multiaddrs: tuple[str, ...] = ()

    async def start(self, *, listen: Place | None, announce: Place | None, initial_peers: Sequence[str]) -> None:
        """Start the node; without ``listen`` it only dials out. A DHT that fails is a warning."""
        self._arguments = (listen, announce, initial_peers)
        try:
            self._directory = await DhtDirectory.start(
                identity=self._identity,
                clock=time.time,
                host_maddrs=[host_multiaddr(*listen)] if listen else [],
                announce_maddrs=[host_multiaddr(*announce)] if announce else [],
                initial_peers=initial_peers,
                client_only=listen is None,
            )
            self.multiaddrs = await self._directory.visible_maddrs()
        except SwarmError as error:
            self._warn(error)

    async def keep_announcing(self, name: str, address: str, role: PeerRole) -> None:
        """Renew this process's record for as long as it runs, and tell when the records found change."""
        seen: list[str] = []
        pause = LOOK_SECONDS
        while self._directory is not None:
            if not self._directory.healthy():
                await self._start_again()
            names = await self._meet(self._directory, name, address, role) if self._directory.healthy() else None
            pause = LOOK_SECONDS if names not in (None, seen) else min(MAX_LOOK_SECONDS, 2 * pause)
            if names not in (None, seen):
                seen = names or []
                self._emit(DhtFound(records=len(seen), names=", ".join(seen)[:400]))
            await asyncio.sleep(pause)

    async def _meet(self, directory: DhtDirectory, name: str, address: str, role: PeerRole) -> list[str] | None:
        """Store this process's record and return the names in all that are there; None if that failed."""
        now = time.time()
        record = PeerRecord(
            run_id=self._run_id,
            peer_id=self._identity.peer_id,
            name=name,
            address=address,
            role=role,
            issued=now,
            expires=now + LIFETIME_SECONDS,
        )
        try:
            await directory.announce(record)
            names = sorted(found.name for found in await directory.records(self._run_id))
        except SwarmError as error:
            self._warn(error)
            return None
        self._has_warned = False
        return names

    async def _start_again(self) -> None:
        """The daemon died, or every node it knew did."""
        await self.close()
        listen, announce, initial_peers = self._arguments
        await self.start(listen=listen, announce=announce, initial_peers=initial_peers)

    def _warn(self, error: SwarmError) -> None:
        """Once, until it works again."""
        if not self._has_warned:
            self._emit(Warned(message=f"{error} Training goes on without the DHT."))
        self._has_warned = True

    async def close(self) -> None:
        """Stop the node."""
        if self._directory is not None:
            await self._directory.close()
