"""A run's events from elsewhere, through the Watch call of its nodes."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable

from tsr_swarm import __version__
from tsr_swarm.cli.streams import catch_up
from tsr_swarm.errors import RefusedError, UnreachableError
from tsr_swarm.monitor.sources import FIRST_PAUSE, LONGEST_PAUSE, WatchSource
from tsr_swarm.telemetry.events import decode_stamped
from tsr_swarm.telemetry.fold import fold
from tsr_swarm.telemetry.ledger import ByteLedger
from tsr_swarm.telemetry.log import NEWEST, Watch
from tsr_swarm.telemetry.snapshot import SwarmSnapshot

WAIT_MS = 15_000


@contextlib.asynccontextmanager
async def calling(coordinator: str, wait_ms: int = WAIT_MS) -> AsyncIterator[Watch]:
    """Give ``watch(after) -> (lines, newest number)``, which waits up to ``wait_ms`` for news. Raises SwarmError."""
    from tsr_swarm.transport.client import SwarmClient
    from tsr_swarm.wire.lines import lines_from_proto
    from tsr_swarm.wire.v1 import swarm_pb2 as pb

    async with SwarmClient(coordinator, ByteLedger()) as client:

        async def watch(after: int) -> tuple[list[str], int]:
            reply = await client.watch(pb.WatchRequest(after=after, wait_ms=wait_ms))
            return lines_from_proto(reply)

        yield watch


async def reach(coordinator: str, wait: float) -> None:
    """Return once somebody can be watched there, tried for ``wait`` seconds. Raises SwarmError."""
    from tsr_swarm.transport.retry import retry_while_unreachable

    def say(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    async with calling(coordinator, wait_ms=0) as watch:
        await retry_while_unreachable(lambda: watch(NEWEST), wait, say)


@contextlib.asynccontextmanager
async def watching(coordinator: str) -> AsyncIterator[WatchSource]:
    """What a screen follows; raises nothing when a node is away, but goes on with another, or tries again."""
    from tsr_swarm.config.manifest import PROTOCOL_VERSION
    from tsr_swarm.transport.client import SwarmClient
    from tsr_swarm.wire.lines import lines_from_proto
    from tsr_swarm.wire.v1 import swarm_pb2 as pb

    clients: dict[str, SwarmClient] = {}
    manifests: dict[str, bytes] = {}  # by address, of who has answered there

    async def greet(address: str) -> SwarmClient:
        """Connect to a node of this run: peers name addresses at which anybody may be."""
        if address not in clients:
            clients[address] = await stack.enter_async_context(SwarmClient(address, ByteLedger()))
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
        yield WatchSource(dial, [coordinator], time.time)


async def read_all(watch: Watch) -> tuple[SwarmSnapshot, int]:
    """All that the coordinator keeps, added up, and the number of its newest event. Needs a watch that never waits."""
    snapshot, newest = SwarmSnapshot(), 0
    while True:
        lines, newest = await watch(newest)
        if not lines:
            return snapshot, newest
        snapshot = _add(snapshot, lines)


async def follow(watch: Watch, see: Callable[[str], None]) -> None:
    """Pass every line to ``see`` until the run is finished. Raises only if the coordinator never answered."""
    snapshot, newest, pause = SwarmSnapshot(), 0, 0.0
    while True:
        try:
            lines, newest = await watch(newest)
            pause = 0.0
        except UnreachableError as error:
            if newest == 0:
                raise
            if pause == 0.0:
                print(f"{error} Trying again.", file=sys.stderr)
            pause = min(max(FIRST_PAUSE, 2 * pause), LONGEST_PAUSE)
            await asyncio.sleep(pause)
            continue
        for line in lines:
            see(line)
            await catch_up()
        snapshot = _add(snapshot, lines)
        if snapshot.finished is not None:
            await catch_up(is_over=True)
            return


def _add(snapshot: SwarmSnapshot, lines: list[str]) -> SwarmSnapshot:
    for line in lines:
        stamped = decode_stamped(line)
        if stamped is not None:
            snapshot = fold(snapshot, stamped.time, stamped.event)
    return snapshot
