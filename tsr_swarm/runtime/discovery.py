"""A process's place in the DHT: a node, a record kept fresh, and whom it found. Training never depends on it."""

import asyncio
import time
from collections.abc import Callable, Sequence

from tsr_swarm.errors import SwarmError
from tsr_swarm.swarm.addresses import host_multiaddr
from tsr_swarm.swarm.dht import DhtDirectory
from tsr_swarm.swarm.identity import Identity
from tsr_swarm.swarm.records import PeerRecord, Role
from tsr_swarm.telemetry.events import DhtFound, Event, Warned

LOOK_SECONDS = 3.0  # between looks at first; doubled while nothing changes ...
MAX_LOOK_SECONDS = 60.0  # ... up to this
LIFETIME_SECONDS = 180.0  # of a record; renewed at every look


class Discovery:
    """One DHT node and its record."""

    def __init__(self, identity: Identity, run_id: str, emit: Callable[[Event], None]) -> None:
        self._identity = identity
        self._run_id = run_id
        self._emit = emit
        self._directory: DhtDirectory | None = None
        self.multiaddrs: tuple[str, ...] = ()

    async def start(
        self, *, listen: tuple[str, int] | None, announce: tuple[str, int] | None, initial_peers: Sequence[str]
    ) -> None:
        """Start the node; without ``listen`` it only dials out. A DHT that fails is a warning."""
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

    async def keep_announcing(self, name: str, address: str, role: Role) -> None:
        """Renew this process's record for as long as it runs, and tell when the peers found change."""
        seen: list[str] = []
        pause = LOOK_SECONDS
        while self._directory is not None:
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
                await self._directory.announce(record)
                names = sorted(found.name for found in await self._directory.records(self._run_id))
            except SwarmError as error:
                self._warn(error)
                names = seen
            pause = LOOK_SECONDS if names != seen else min(MAX_LOOK_SECONDS, 2 * pause)
            if names != seen:
                self._emit(DhtFound(records=len(names), names=", ".join(names)[:400]))
                seen = names
            await asyncio.sleep(pause)

    def _warn(self, error: SwarmError) -> None:
        self._emit(Warned(message=f"{error} Training goes on without the DHT."))

    async def close(self) -> None:
        """Stop the node."""
        if self._directory is not None:
            await self._directory.close()
