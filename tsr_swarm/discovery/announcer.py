"""Keep a process announced in the DHT for as long as it runs. Training never depends on it."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

from tsr_swarm.discovery.addresses import host_multiaddr
from tsr_swarm.discovery.dht import DhtDirectory
from tsr_swarm.discovery.identity import Identity
from tsr_swarm.discovery.records import PeerRecord, PeerRole
from tsr_swarm.errors import SwarmError
from tsr_swarm.telemetry.events import DhtFound, Event, Warned
from tsr_swarm.transport.address import Address

LOOK_SECONDS = 3.0  # between looks at first; doubled while nothing changes ...
MAX_LOOK_SECONDS = 60.0  # ... up to this
LIFETIME_SECONDS = 180.0  # of a record; renewed at every look


class Announcer:
    """Runs a DHT node for this process, keeps a record of the process in it, and tells whom else it finds there.

    A DHT that fails is a warning.
    """

    def __init__(self, identity: Identity, run_id: str, emit: Callable[[Event], None]) -> None:
        self._identity = identity
        self._run_id = run_id
        self._emit = emit
        self._directory: DhtDirectory | None = None
        self._has_warned = False
        self.multiaddrs: tuple[str, ...] = ()

    async def start(self, *, listen: Address | None, announce: Address | None, initial_peers: Sequence[str]) -> None:
        """Start the node; without ``listen`` it only dials out."""
        self._restart = partial(self.start, listen=listen, announce=announce, initial_peers=initial_peers)
        try:
            self._directory = await DhtDirectory.start(
                identity=self._identity,
                host_maddrs=[host_multiaddr(*listen)] if listen else [],
                announce_maddrs=[host_multiaddr(*announce)] if announce else [],
                initial_peers=initial_peers,
            )
            self.multiaddrs = await self._directory.visible_maddrs()
        except SwarmError as error:
            self._warn(error)

    async def keep_announcing(self, name: str, address: str, role: PeerRole) -> None:
        """Renew this process's record for as long as it runs, and emit an event when the records found change."""
        seen: list[str] = []
        pause = LOOK_SECONDS
        while self._directory is not None:
            if not self._directory.healthy():  # its daemon has died, or every node that it knew
                await self.close()
                await self._restart()
            names = await self._announce(self._directory, name, address, role) if self._directory.healthy() else None
            has_changed = names is not None and names != seen
            pause = LOOK_SECONDS if has_changed else min(MAX_LOOK_SECONDS, 2 * pause)
            if names is not None and has_changed:
                seen = names
                self._emit(DhtFound(records=len(seen), names=", ".join(seen)[:400]))
            await asyncio.sleep(pause)

    async def _announce(self, directory: DhtDirectory, name: str, address: str, role: PeerRole) -> list[str] | None:
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

    def _warn(self, error: SwarmError) -> None:
        """Emit a warning, but only the first until the DHT works again."""
        if not self._has_warned:
            self._emit(Warned(message=f"{error} Training goes on without the DHT."))
        self._has_warned = True

    async def close(self) -> None:
        if self._directory is not None:
            await self._directory.close()
