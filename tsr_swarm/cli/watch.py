"""A run's events from elsewhere, through the Watch call of its nodes."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable

from tsr_swarm import __version__
from tsr_swarm.cli.output import print_aside
from tsr_swarm.cli.streams import catch_up
from tsr_swarm.errors import RefusedError
from tsr_swarm.monitor.sources import WAIT_SECONDS, WatchSource
from tsr_swarm.telemetry.byte_counter import ByteCounter
from tsr_swarm.telemetry.events import decode_stamped
from tsr_swarm.telemetry.fold import fold
from tsr_swarm.telemetry.log import NEWEST, Watch
from tsr_swarm.telemetry.snapshot import SwarmSnapshot

WAIT_MS = int(1000 * WAIT_SECONDS)


@contextlib.asynccontextmanager
async def calling(coordinator: str) -> AsyncIterator[Watch]:
    """Give ``watch(after) -> (lines, newest number)``, which does not wait for news. Raises SwarmError."""
    from tsr_swarm.transport.client import SwarmClient
    from tsr_swarm.wire.messages import lines_from_proto
    from tsr_swarm.wire.v1 import swarm_pb2 as pb

    async with SwarmClient(coordinator, ByteCounter()) as client:

        async def watch(after: int) -> tuple[list[str], int]:
            return lines_from_proto(await client.watch(pb.WatchRequest(after=after)))

        yield watch


async def reach(coordinator: str, wait: float) -> None:
    """Return once somebody can be watched there, tried for ``wait`` seconds. Raises SwarmError."""
    from tsr_swarm.transport.client import retry_while_unreachable

    async with calling(coordinator) as watch:
        await retry_while_unreachable(lambda: watch(NEWEST), wait, print_aside)


@contextlib.asynccontextmanager
async def watching(
    coordinator: str, on_silence: Callable[[str], None] = lambda sentence: None
) -> AsyncIterator[WatchSource]:
    """What a monitor follows; raises nothing when a node is away, but goes on with another, or tries again.

    ``on_silence`` is told, in a sentence, each time that nobody answers any more.
    """
    from tsr_swarm.config.manifest import PROTOCOL_VERSION
    from tsr_swarm.transport.client import SwarmClient
    from tsr_swarm.wire.messages import lines_from_proto
    from tsr_swarm.wire.v1 import swarm_pb2 as pb

    clients: dict[str, SwarmClient] = {}
    manifests: dict[str, bytes] = {}  # by address, of who has answered there

    async def greet(address: str) -> SwarmClient:
        """Connect to a node of this run: peers name addresses at which anybody may be."""
        if address not in clients:
            clients[address] = await stack.enter_async_context(SwarmClient(address, ByteCounter()))
        if address not in manifests:
            greeting = pb.HelloRequest(protocol=PROTOCOL_VERSION, package_version=__version__)
            manifests[address] = (await clients[address].hello(greeting)).manifest
        if manifests[address] != manifests.get(coordinator, manifests[address]):
            raise RefusedError(f"{address} belongs to another run; name a node of this one.")
        return clients[address]

    def dial(address: str) -> Watch:
        async def watch(after: int) -> tuple[list[str], int]:
            client = await greet(address)
            reply = await client.watch(pb.WatchRequest(after=after, wait_ms=WAIT_MS))
            return lines_from_proto(reply)

        return watch

    async with contextlib.AsyncExitStack() as stack:
        yield WatchSource(dial, [coordinator], time.time, on_silence=on_silence)


async def read_all(watch: Watch) -> tuple[SwarmSnapshot, int]:
    """All that the coordinator keeps, added up, and the number of its newest event. Needs a watch that never waits."""
    snapshot, newest = SwarmSnapshot(), 0
    while True:
        lines, newest = await watch(newest)
        if not lines:
            return snapshot, newest
        snapshot = _add(snapshot, lines)


async def follow(source: WatchSource, see: Callable[[str], None]) -> None:
    """Pass every line to ``see`` until the run is finished; one that was resumed after it had is not."""
    snapshot = SwarmSnapshot()
    async for line in source.lines():
        see(line)
        await catch_up()
        snapshot = _add(snapshot, [line])
        if snapshot.finished is not None and source.is_caught_up:
            await catch_up(is_over=True)
            return


def _add(snapshot: SwarmSnapshot, lines: list[str]) -> SwarmSnapshot:
    for line in lines:
        stamped = decode_stamped(line)
        if stamped is not None:
            snapshot = fold(snapshot, stamped.time, stamped.event)
    return snapshot
