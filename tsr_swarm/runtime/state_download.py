"""Fetching the consensus state: chunk by chunk, each against its hash, going on after a break where it stopped."""

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.errors import PeerError, RefusedError, UnreachableError
from tsr_swarm.runtime.state_chunks import StateAssembly
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.wire.v1 import swarm_pb2 as pb


@dataclass(slots=True)
class StateDownload:
    """What has arrived so far of the state that the coordinator described last."""

    client: SwarmClient
    manifest: Manifest
    assembly: StateAssembly | None = None

    async def fetch(self, should_stop: Callable[[], bool]) -> StateAssembly:
        """Return the complete state's chunks. Raises UnreachableError for a broken or false transfer: call again."""
        request = pb.DescribeStateRequest(manifest_digest=bytes.fromhex(self.manifest.digest))
        description = await self.client.describe_state(request)
        if self.assembly is None or self.assembly.description != description:
            self.assembly = StateAssembly(description, self.manifest)
        assembly = self.assembly
        try:
            await self._add_chunks(assembly, should_stop)
        except (PeerError, RefusedError) as error:  # a false chunk, or a newer state has replaced this one
            self.assembly = None
            raise UnreachableError(f"{error} The state will be fetched again.") from error
        if not assembly.is_complete:
            raise UnreachableError(f"The state's download stopped after {assembly.next_chunk} chunks.")
        self.assembly = None
        return assembly

    async def _add_chunks(self, assembly: StateAssembly, should_stop: Callable[[], bool]) -> None:
        request = pb.FetchStateRequest(round=assembly.description.round, first_chunk=assembly.next_chunk)
        async with aclosing(self.client.fetch_state(request)) as chunks:
            async for chunk in chunks:
                assembly.add(chunk)
                if should_stop():
                    return
