"""Fetching rounds that were missed, from donors first and the coordinator last.

A chain hash says what a round is and, through the rounds before it, what all of them are; but anybody can compute one.
So rounds are fetched from the newest, whose chain hash the coordinator told, backwards: each names the hash of the one
before. What does not have the hash it should is not the run's, whoever gave it.
"""

import asyncio
from dataclasses import dataclass, field

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.errors import PeerError, RefusedError, UnreachableError
from tsr_swarm.runtime.reduction import open_published
from tsr_swarm.runtime.sources import Sources
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.wire.gate import max_published_bytes
from tsr_swarm.wire.v1 import swarm_pb2 as pb

FetchedRound = tuple[pb.PublishedHeader, bytes]


@dataclass(slots=True)
class RoundDownload:
    """Rounds as they were published, checked and not yet applied."""

    sources: Sources
    manifest: Manifest
    peer_id: str
    max_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.max_bytes = max_published_bytes(self.manifest)

    async def fetch(self, first: int, last: int, chain: str) -> dict[int, FetchedRound]:
        """Rounds ``first`` to ``last``, of which the last one's chain hash is ``chain``.

        In memory: a peer takes this way when they are fewer bytes than a state, for which it has the room.
        Raises RefusedError or PeerError when not even the coordinator gives them, and UnreachableError.
        """
        fetched: dict[int, FetchedRound] = {}
        async with self.sources.opened() as donors:
            for round in range(last, first - 1, -1):
                fetched[round] = await self._from_anybody(donors, round, chain)
                chain = fetched[round][0].plan.parent.hex()
        return fetched

    async def from_coordinator(self, round: int) -> FetchedRound:
        """One round, not checked: whoever applies it knows what it has to follow."""
        request = pb.FetchPublishedRequest(peer_id=self.peer_id, round=round)
        return await self.sources.coordinator.fetch_published(request, self.max_bytes)

    async def _from_anybody(self, donors: list[SwarmClient], round: int, chain: str) -> FetchedRound:
        """Ask the donors in turn, each round another one first; whoever fails is taken out of ``donors``."""
        start = round % len(donors) if donors else 0
        for donor in [*donors[start:], *donors[:start]]:
            try:
                return await self._from(donor, round, chain)
            except RefusedError:
                continue  # it has others
            except UnreachableError:
                donors.remove(donor)
            except PeerError as error:
                donors.remove(donor)
                self.sources.accuse(donor, error)
        return await self._from(self.sources.coordinator, round, chain)

    async def _from(self, client: SwarmClient, round: int, chain: str) -> FetchedRound:
        request = pb.FetchPublishedRequest(peer_id=self.peer_id, round=round)
        message, data = await client.fetch_published(request, self.max_bytes)
        if (message.plan.round, message.chain.hex()) != (round, chain):
            raise PeerError("chain", f"What came as round {round} is not that round of this run.")
        await asyncio.to_thread(open_published, self.manifest, message, data, message.plan.parent.hex())
        return message, data
