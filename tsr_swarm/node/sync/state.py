"""Fetching the consensus state from several donors at once: each chunk against the hash that one of them named.

That one is asked for chunks only where there are few others: it is the leader, who has enough to do. A donor that gives
a wrong chunk, or has not got the state, is left out of this download; one that stalls or dies loses what it was asked
for to the others. Chunks wait in a file, so that neither a break nor a restart costs them.
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

FEW_DONORS = 2  # with fewer than this many others, who described the state gives chunks too
CHUNK_SECONDS = 30.0  # a donor that takes longer for one, on average, is left out: it might mean to
WAIT_SECONDS = 60.0  # nothing is waited for without looking again


@dataclass(frozen=True, slots=True)
class Offer:
    """The state that is to be fetched, and who described it."""

    description: pb.StateDescription
    source: SwarmClient


@dataclass(slots=True)
class StateDownload:
    """What has arrived so far, in ``folder``, of the state that was described last."""

    sources: Donors
    manifest: Manifest
    folder: Path
    assembly: StateAssembly | None = None

    async def find(self, clients: Sequence[SwarmClient]) -> Offer:
        """What the first of ``clients`` that has a state says of it. Raises UnreachableError, or RunError."""
        begun = await asyncio.to_thread(begun_round, self.folder)
        digest = bytes.fromhex(self.manifest.digest)
        request = pb.DescribeStateRequest(manifest_digest=digest, round=begun)

        async def ask(client: SwarmClient, seconds: float) -> pb.StateDescription:
            description = await client.describe_state(request, min(seconds, DESCRIBE_SECONDS))
            if self.assembly is None or self.assembly.description != description:
                self.assembly = await asyncio.to_thread(StateAssembly, description, self.manifest, self.folder)
            return description

        try:
            return Offer(*await self.sources.ask(list(clients), ask, "A state"))
        except RefusedError as error:  # whoever has none now will have one
            raise UnreachableError(f"{error} The state will be fetched again.") from error

    async def fetch(
        self, offer: Offer, clients: Sequence[SwarmClient], should_stop: Callable[[], bool]
    ) -> tuple[StateAssembly, int]:
        """Return the complete state and how many gave of it. Raises UnreachableError for a break: call again."""
        assembly = self.assembly
        assert assembly is not None, "an offer was found"
        assert assembly.description == offer.description, "it is the newest one"
        donors = [client for client in clients if client is not offer.source]
        transfer = _Transfer(assembly, self.sources, donors, offer.source, should_stop)
        await transfer.run()
        if not assembly.is_complete:
            done = len(offer.description.chunk_hashes) - len(assembly.missing)
            raise UnreachableError(transfer.trouble or f"The state's download stopped after {done} chunks.")
        self.assembly = None
        return assembly, len(transfer.givers)


@dataclass(slots=True)
class _Transfer:
    """One attempt: a task for each donor, until all is here or nobody is left."""

    assembly: StateAssembly
    sources: Donors
    donors: Sequence[SwarmClient]
    source: SwarmClient  # who described it
    should_stop: Callable[[], bool]
    sharing: ChunkSchedule = field(init=False)
    givers: set[str] = field(default_factory=set)
    trouble: str = ""  # of the source
    _changed: Signal = field(default_factory=Signal)
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _background: Background = field(default_factory=Background)
    _has_source: bool = False

    async def run(self) -> None:
        self.sharing = ChunkSchedule(frozenset(self.assembly.missing))
        for donor in self.donors:
            self._start(donor)
        self._tell(self.sharing)
        try:
            await self._background.until(self._over)
        finally:
            await self._background.close()

    def _start(self, client: SwarmClient) -> None:
        self.sharing = self.sharing.add_donor(client.address)
        self._background.start(self._work(client))

    def _tell(self, sharing: ChunkSchedule) -> None:
        """Go on with what is known now: with the source too, if few others are left."""
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
                    await self._changed.wait_for(self._is_news(), WAIT_SECONDS)
                    continue
                await self._take(client, wanted)
                self._tell(self.sharing.end_answer(donor))
        except (UnreachableError, RefusedError, PeerError) as error:
            if client is self.source:
                self.trouble = f"{error} The state will be fetched again."
            if isinstance(error, PeerError):
                self.sources.accuse(client, error)
            self._tell(self.sharing.drop_donor(donor))

    def _is_news(self) -> Callable[[], bool]:
        before = self.sharing
        return lambda: self.sharing is not before

    async def _take(self, client: SwarmClient, wanted: range) -> None:
        """One request. Raises what is wrong with it, or a PeerError if less came than was asked for."""
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
                    self.givers.add(client.address)
                    self._tell(self.sharing.add_chunk(chunk.index))
                if self.should_stop() or not self.sharing.due_from(client.address):
                    return  # the rest came from others
        if self.sharing.due_from(client.address):
            raise PeerError("state", f"Chunks {wanted.start} to {wanted.stop - 1} of the state were not all given.")
