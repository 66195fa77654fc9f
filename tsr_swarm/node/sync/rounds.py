"""Download published rounds: the newest shard by shard, those that were missed one after the other.

A chain hash covers a round and, through its parent, all rounds before it; but anybody can compute one. So rounds are
fetched backwards from the newest, whose chain hash a leader sent: each names the hash of the one before. A round with
another hash is not of this run, whoever sent it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from tsr_swarm.config.layout import Slot
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.errors import PeerError, UnreachableError
from tsr_swarm.exchange.reduction import Published, open_published
from tsr_swarm.lowrank.grid import Grid
from tsr_swarm.node.sync.donors import Donors, ShardDonors
from tsr_swarm.optim.periods import follows_manifest
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.limits import CONTROL_SECONDS, HELLO_SECONDS
from tsr_swarm.wire.codec import decode, wire_bytes
from tsr_swarm.wire.gate import check_published, max_published_bytes, published_by_shard
from tsr_swarm.wire.messages import PublishedHeader, sections_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

SHARDS_AT_A_TIME = 8
SECONDS_A_MEBIBYTE = 30.0  # of the round: a slower donor is left for another, if there is one; it may do so on purpose

FetchedRound = tuple[pb.PublishedHeader, bytes]
Stored = Callable[[int, bytes], Awaitable[FetchedRound | None]]  # by round and chain hash
# By round, shard and hashes: see ContributionStore.frames.
Frames = Callable[[int, int, Sequence[bytes]], tuple[object, bytes] | None]


@dataclass(frozen=True, slots=True)
class Announced:
    """The checked header of a round that is to be fetched: its chain hash says that it is of this run."""

    message: pb.PublishedHeader
    header: PublishedHeader
    slots: tuple[tuple[Slot, ...], ...]  # by shard

    @property
    def mebibytes(self) -> float:
        """The size of all shards as they travel."""
        return sum(wire_bytes(result.sections) for result in self.header.shards) / 2**20

    @property
    def seconds(self) -> float:
        """How long a donor may take for a part of the round while there are others to ask."""
        return CONTROL_SECONDS + SECONDS_A_MEBIBYTE * self.mebibytes


@dataclass
class RoundDownload:
    """Downloads rounds and checks them; they are applied elsewhere. ``me`` is this node's peer_id."""

    donors: Donors
    manifest: Manifest
    me: str

    @cached_property
    def max_bytes(self) -> int:
        """The most bytes that a round of this run can have."""
        return max_published_bytes(self.manifest)

    async def header(self, round: int, chain: bytes, donors: list[SwarmClient]) -> tuple[Announced, SwarmClient]:
        """Fetch the header of the round of this chain hash. Returns its donor too; failed ones leave ``donors``.

        Raises RefusedError if somebody answered, but nobody has it; else UnreachableError.
        """
        request = pb.FetchPublishedRequest(peer_id=self.me, round=round, chain=chain, header_only=True)

        async def ask(donor: SwarmClient, seconds: float) -> Announced:
            message, _ = await donor.fetch_published(request, self.max_bytes, min(seconds, HELLO_SECONDS))
            return await asyncio.to_thread(self._checked, message, round, chain)  # of many peers it takes seconds

        return await self.donors.ask(donors, ask, f"Round {round}", CONTROL_SECONDS)

    async def by_shards(self, announced: Announced, donors: ShardDonors, own: Frames) -> Published:
        """Fetch the round, each shard from ``own``, or else from ``donors``.

        Raises RefusedError if somebody answered, but nobody has a shard; else UnreachableError.
        """
        semaphore = asyncio.Semaphore(SHARDS_AT_A_TIME)
        header = announced.header

        async def fetch(shard: int) -> tuple[bytes, dict[Slot, Grid]]:
            async with semaphore:
                return await self._shard(announced, shard, donors, own)

        due = [shard for shard, result in enumerate(header.shards) if not result.void]
        tasks = [asyncio.create_task(fetch(shard)) for shard in due]
        try:
            parts = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        grids = {slot: grid for _, shard_grids in parts for slot, grid in shard_grids.items()}
        return Published(header, b"".join(data for data, _ in parts), grids)

    async def missed(
        self, first: int, newest: RoundRecord, donors: Sequence[SwarmClient], stored: Stored
    ) -> dict[int, FetchedRound]:
        """Fetch rounds ``first`` to ``newest``, from disk or else from donors, beginning with another one each round.

        They are held in memory: this is done when they are fewer bytes than a state, for which there is room.
        donors: the leader first; it is asked last, since it has enough to do.
        Raises RefusedError if somebody answered, but nobody keeps one of them; else UnreachableError.
        """
        fetched: dict[int, FetchedRound] = {}
        chain, leader = bytes.fromhex(newest.chain), donors[:1]
        order = [*donors[1:], *leader]
        for round in range(newest.round, first - 1, -1):
            found = await stored(round, chain)
            if found is None:
                call = partial(self._whole, round, chain)
                answer: tuple[FetchedRound, SwarmClient] = await self.donors.ask(order, call, f"Round {round}")
                found, _ = answer
            fetched[round], chain = found, found[0].plan.parent
            order = sorted([*order[1:], *order[:1]], key=leader.count)  # stable
        return fetched

    async def _whole(self, round: int, chain: bytes, donor: SwarmClient, seconds: float) -> FetchedRound:
        request = pb.FetchPublishedRequest(peer_id=self.me, round=round, chain=chain)
        message, data = await donor.fetch_published(request, self.max_bytes, seconds)
        _require_round(message, round, chain)
        await self.open(message, data)
        return message, data

    async def open(self, message: pb.PublishedHeader, data: bytes) -> Published:
        """Check and decode a whole round, on another thread. Raises PeerError."""
        return await asyncio.to_thread(open_published, self.manifest, message, data, message.plan.parent.hex())

    def _checked(self, message: pb.PublishedHeader, round: int, chain: bytes) -> Announced:
        """Check all of a round that can be checked without its shards. Raises PeerError."""
        _require_round(message, round, chain)
        manifest = self.manifest
        header = check_published(message, manifest=manifest, parent=message.plan.parent)
        if not follows_manifest(header.plan, manifest):
            raise PeerError("plan", f"Round {round} was not planned as the run's manifest says; it is refused.")
        return Announced(message, header, tuple(published_by_shard(header, manifest)))

    async def _shard(
        self, announced: Announced, shard: int, donors: ShardDonors, own: Frames
    ) -> tuple[bytes, dict[Slot, Grid]]:
        result, slots = announced.header.shards[shard], announced.slots[shard]
        round, hashes = announced.header.plan.round, [section.hash for section in result.sections]
        if (reduced_here := own(round, shard, hashes)) is not None:
            _, data = reduced_here
            return data, await asyncio.to_thread(decode, slots, result.sections, data)
        request = pb.FetchShardRequest(round=round, shard=shard, hashes=hashes)
        sections = sections_to_proto(result.sections)

        async def ask(client: SwarmClient, seconds: float) -> tuple[bytes, dict[Slot, Grid]]:
            seconds, silence = donors.seconds(client, announced.mebibytes, seconds)
            try:
                data = await client.fetch_shard(request, sections, seconds, silence)
                return data, await asyncio.to_thread(decode, slots, result.sections, data)
            except (UnreachableError, PeerError):
                donors.mark_failed(client)
                raise

        what = f"Shard {shard} of round {round}"
        found, _ = await self.donors.ask(donors.of(shard), ask, what, announced.seconds)
        return found


def _require_round(message: pb.PublishedHeader, round: int, chain: bytes) -> None:
    if (message.plan.round, message.chain) != (round, chain):
        raise PeerError("chain", f"What came as round {round} is not that round of this run.")
