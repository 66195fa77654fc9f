"""Download the consensus state from several donors at once. One describes it; each chunk is checked by its hash there.

The describing donor is asked for chunks only if there are few others: it is the leader, which has enough to do. A donor
that sends a wrong chunk, or does not have the state, is left out of this download; the chunks of one that stalls or
dies are asked of the others. Chunks are kept in a file, so that neither a break nor a restart loses them.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.errors import PeerError, RefusedError, UnreachableError
from tsr_swarm.node.sync.donors import Donors
from tsr_swarm.process.tasks import Background, Signal
from tsr_swarm.rounds.catch_up import ChunkSchedule
from tsr_swarm.storage.state_file import StateAssembly, begun_round
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.limits import DESCRIBE_SECONDS, TRANSFER_SECONDS
from tsr_swarm.wire.v1 import swarm_pb2 as pb

FEW_DONORS = 2  # with fewer than this many others, the describing donor sends chunks too
CHUNK_SECONDS = 30.0  # a donor that takes longer for one, on average, is left out: it may do so on purpose
WAIT_SECONDS = 60.0  # every wait ends after so long, and looks again


@dataclass(slots=True)
class StateDownload:
    """Downloads states into ``folder``, and keeps what has arrived so far of the state that was described last."""

    donors: Donors
    manifest: Manifest
    folder: Path
    assembly: StateAssembly | None = None

    async def find(self, clients: Sequence[SwarmClient]) -> tuple[pb.StateDescription, SwarmClient]:
        """Return the description of a state by the first of ``clients`` that has one, and that client, its source.

        Raises UnreachableError, or RunError.
        """
        begun = await asyncio.to_thread(begun_round, self.folder)
        digest = bytes.fromhex(self.manifest.digest)
        request = pb.DescribeStateRequest(manifest_digest=digest, round=begun)

        async def ask(client: SwarmClient, seconds: float) -> pb.StateDescription:
            description = await client.describe_state(request, min(seconds, DESCRIBE_SECONDS))
            if self.assembly is None or self.assembly.description != description:
                self.assembly = await asyncio.to_thread(StateAssembly, description, self.manifest, self.folder)
            return description

        try:
            return await self.donors.ask(list(clients), ask, "A state")
        except RefusedError as error:  # a node that has none now will have one
            raise UnreachableError(f"{error} The state will be fetched again.") from error

    def abandon(self) -> None:
        """Forget the state that was found last with its chunks, so that donors are not asked for it again."""
        if self.assembly is not None:
            self.assembly.remove()
            self.assembly = None

    async def fetch(
        self, source: SwarmClient, clients: Sequence[SwarmClient], should_stop: Callable[[], bool]
    ) -> tuple[StateAssembly, int]:
        """Return the complete state that was found last, and the number of its donors.

        Raises UnreachableError if it breaks off: call again.
        """
        assembly = self.assembly
        assert assembly is not None, "a state was found"
        others = [client for client in clients if client is not source]
        transfer = _Transfer(assembly, self.donors, others, source, should_stop)
        await transfer.run()
        if not assembly.is_complete:
            done = len(assembly.description.chunk_hashes) - len(assembly.missing)
            raise UnreachableError(transfer.failure or f"The state's download stopped after {done} chunks.")
        self.assembly = None
        return assembly, len(transfer.used)


@dataclass(slots=True)
class _Transfer:
    """One attempt to download a state: a task for each donor, until all chunks are here or no donor is left."""

    assembly: StateAssembly
    donors: Donors
    others: Sequence[SwarmClient]  # all donors but the source
    source: SwarmClient  # the donor that described it
    should_stop: Callable[[], bool]
    sharing: ChunkSchedule = field(init=False)
    used: set[str] = field(default_factory=set)  # addresses of donors that sent a chunk
    failure: str = ""  # of the source
    _changed: Signal = field(default_factory=Signal)
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _background: Background = field(default_factory=Background)
    _has_source: bool = False

    async def run(self) -> None:
        self.sharing = ChunkSchedule(frozenset(self.assembly.missing))
        for client in self.others:
            self._start(client)
        self._update(self.sharing)
        try:
            await self._background.until(self._over)
        finally:
            await self._background.close()

    def _start(self, client: SwarmClient) -> None:
        self.sharing = self.sharing.add_donor(client.address)
        self._background.start(self._work(client))

    def _update(self, sharing: ChunkSchedule) -> None:
        """Wake the donors' tasks, and start one for the source too if few others are left."""
        self.sharing = sharing
        is_over = sharing.is_complete or self.should_stop()
        if not is_over and len(sharing.donors) < FEW_DONORS and not self._has_source:
            self._has_source = True
            self._start(self.source)
        if is_over or not self.sharing.donors:
            self._over.set()
        self._changed.notify()

    async def _work(self, client: SwarmClient) -> None:
        donor = client.address
        try:
            while not self.sharing.is_complete:
                self.sharing, wanted = self.sharing.next_range(donor)
                if wanted is None:
                    await self._wait_for_change()
                    continue
                await self._take(client, wanted)
                self._update(self.sharing.end_answer(donor))
        except (UnreachableError, RefusedError, PeerError) as error:
            if client is self.source:
                self.failure = f"{error} The state will be fetched again."
            if isinstance(error, PeerError):
                self.donors.accuse(client, error)
            self._update(self.sharing.drop_donor(donor))

    async def _wait_for_change(self) -> None:
        before = self.sharing
        await self._changed.wait_for(lambda: self.sharing is not before, WAIT_SECONDS)

    async def _take(self, client: SwarmClient, wanted: range) -> None:
        """Send one request. Raises what is wrong with its answer, a PeerError if it is incomplete."""
        request = pb.FetchStateRequest(
            round=self.assembly.description.round, first_chunk=wanted.start, chunks=len(wanted)
        )
        expected = iter(wanted)
        is_last_hope = client is self.source
        seconds = TRANSFER_SECONDS if is_last_hope else CHUNK_SECONDS * len(wanted)
        async with aclosing(client.fetch_state(request, seconds)) as answer:
            async for chunk in answer:
                if chunk.index != next(expected, None):
                    raise PeerError("state", f"State chunk {chunk.index} came where another was due.")
                if chunk.index in self.assembly.missing:
                    await asyncio.to_thread(self.assembly.check, chunk)
                    self.assembly.take(chunk.index)
                    self.used.add(client.address)
                    self._update(self.sharing.add_chunk(chunk.index))
                if self.should_stop() or not self.sharing.due_from(client.address):
                    return  # others sent the rest
        if self.sharing.due_from(client.address):
            raise PeerError("state", f"Chunks {wanted.start} to {wanted.stop - 1} of the state were not all given.")
