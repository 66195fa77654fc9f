"""``tsr-swarm monitor``: look at a run from anywhere, through the Watch call of its nodes."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from functools import partial

from tsr_swarm import __version__
from tsr_swarm.cli.options import Coordinator, Json, Plain, Wait
from tsr_swarm.cli.output import Mode, choose_mode, print_aside, print_line
from tsr_swarm.cli.process import catch_up, run_process
from tsr_swarm.config.manifest import PROTOCOL_VERSION
from tsr_swarm.errors import RefusedError
from tsr_swarm.monitor.sources import WAIT_SECONDS, Source, WatchSource
from tsr_swarm.process.machine_limits import require_process_room
from tsr_swarm.process.shutdown import Shutdown, run_unless
from tsr_swarm.telemetry.byte_counter import ByteCounter
from tsr_swarm.telemetry.events import decode_stamped
from tsr_swarm.telemetry.fold import fold_all
from tsr_swarm.telemetry.log import NEWEST, Watch
from tsr_swarm.telemetry.snapshot import SwarmSnapshot

WAIT_MS = int(1000 * WAIT_SECONDS)


def monitor(coordinator: Coordinator, wait: Wait = 60.0, plain: Plain = False, json: Json = False) -> None:
    mode = choose_mode(plain=plain, json=json)
    require_process_room()
    from tsr_swarm.transport.client import retry_while_unreachable

    async def work(stop: Shutdown) -> None:
        async with calling(coordinator) as watch:  # what happens before a node answers is no part of the run
            await run_unless(stop.graceful, retry_while_unreachable(lambda: watch(NEWEST), wait, print_aside))
        if stop.graceful.is_set():
            return
        async with watching(coordinator, lambda error: print_aside(f"{error} Trying again.")) as source:
            if mode is Mode.SCREEN:
                from tsr_swarm.cli.screen import show_source

                await show_source(source, coordinator, "The monitor is closed; training goes on.", stop)
            else:
                await run_unless(stop.graceful, follow(source, partial(print_line, mode)))
                await run_unless(stop.graceful, catch_up(is_over=True))

    run_process(mode, work)


@contextlib.asynccontextmanager
async def calling(coordinator: str) -> AsyncIterator[Watch]:
    """Give ``watch(after) -> (lines, newest number)``, which does not wait for new lines. Raises SwarmError."""
    from tsr_swarm.transport.client import SwarmClient
    from tsr_swarm.wire.messages import lines_from_proto
    from tsr_swarm.wire.v1 import swarm_pb2 as pb

    async with SwarmClient(coordinator, ByteCounter()) as client:

        async def watch(after: int) -> tuple[list[str], int]:
            return lines_from_proto(await client.watch(pb.WatchRequest(after=after)))

        yield watch


@contextlib.asynccontextmanager
async def watching(
    coordinator: str, on_silence: Callable[[str], None] = lambda sentence: None
) -> AsyncIterator[WatchSource]:
    """Give what a monitor follows. When a node is away it goes on with another, or tries again, without an error.

    ``on_silence`` gets a sentence each time that no node answers any more.
    """
    from tsr_swarm.transport.client import SwarmClient
    from tsr_swarm.wire.messages import lines_from_proto
    from tsr_swarm.wire.v1 import swarm_pb2 as pb

    clients: dict[str, SwarmClient] = {}
    manifests: dict[str, bytes] = {}  # by address, of nodes that have answered

    async def greet(address: str) -> SwarmClient:
        """Connect to a node of this run: at an address that a peer names there may be any program."""
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
            return lines_from_proto(await client.watch(pb.WatchRequest(after=after, wait_ms=WAIT_MS)))

        return watch

    async with contextlib.AsyncExitStack() as stack:
        yield WatchSource(dial, [coordinator], time.time, on_silence=on_silence)


async def read_all(watch: Watch) -> SwarmSnapshot:
    """The snapshot of all events that the coordinator keeps. ``watch`` must not wait for new ones."""
    snapshot, newest = SwarmSnapshot(), 0
    while True:
        lines, newest = await watch(newest)
        if not lines:
            return snapshot
        snapshot = fold_all(snapshot, filter(None, map(decode_stamped, lines)))


async def follow(source: Source, see: Callable[[str], None]) -> SwarmSnapshot:
    """Pass every line to ``see``, to the end of the source or of the run. Returns what the lines add up to."""
    snapshot = SwarmSnapshot()
    async for line in source.lines():
        see(line)
        await catch_up()
        snapshot = fold_all(snapshot, filter(None, [decode_stamped(line)]))
        if snapshot.finished is not None and isinstance(source, WatchSource) and source.is_caught_up:
            break
    return snapshot
