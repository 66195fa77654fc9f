"""A real NodeContext for tests of single parts: what its decisions would take in and people would be told is kept."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.context import NodeContext, NodeInfo, policy_of
from tsr_swarm.node.events.run_log import RunLog
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.raft_state import HardState, RoundRecord
from tsr_swarm.rounds.state import Node, NodeIdentity, PeerState
from tsr_swarm.rounds.step import begin
from tsr_swarm.telemetry.byte_counter import ByteCounter
from tsr_swarm.telemetry.events import Event, Warned
from tsr_swarm.telemetry.log import EventLog
from tsr_swarm.transport.server import serve
from tsr_swarm.transport.tcp_info import KernelBytes

FIRST = "f" * 32  # the coordinator
E = TypeVar("E", bound=pt.Event)


class RecordingDriver:
    """A driver that decides nothing: ``node`` is what the test says, events are kept."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.events: list[pt.Event] = []
        self.changed = asyncio.Event()

    def put(self, event: pt.Event) -> None:
        self.events.append(event)
        self.changed.set()

    def change(self, update: Callable[[Node], Node]) -> None:
        self.node = update(self.node)

    async def seen(self, kind: type[E], count: int = 1) -> list[E]:
        """So many events of this kind, once they have come."""
        async with asyncio.timeout(10):
            while len(found := [event for event in self.events if isinstance(event, kind)]) < count:
                self.changed.clear()
                await self.changed.wait()
        return found


class RecordingHost:
    """A program around the node that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []  # of the node
        self.run_events: list[Event] = []  # of the run

    @property
    def warnings(self) -> list[str]:
        return [event.message for event in [*self.events, *self.run_events] if isinstance(event, Warned)]

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def sample_traffic(self) -> None:
        pass

    async def applied(self, *of: object) -> None:
        pass

    async def restored(self, *of: object) -> None:
        pass

    async def score(self, round: int, consensus: Consensus) -> float | None:
        return None


def make_context(me: str, manifest: Manifest, clients: ClientPool | None = None, **info: Any) -> NodeContext:
    """A node that has just started. ``info``: what it says of itself, else than usual; ``first`` is the coordinator."""
    first, book = info.pop("first", FIRST), AddressBook(me)
    said = {"name": "peer", "address": "", "local_space": "core", "device": "cpu", **info}
    host = RecordingHost()
    context = NodeContext(
        info=NodeInfo(peer_id=me, **said),
        manifest=manifest,
        config=manifest.config,
        first=first,
        host=host,
        book=book,
        clients=clients or ClientPool(book, ByteCounter(), KernelBytes([])),
        run_log=RunLog(EventLog(lambda: 0.0), host.run_events.append),
    )
    identity = NodeIdentity(
        me=me,
        incarnation=1,
        trains=context.info.trains,
        is_dialable=bool(context.info.address),
        first=first,
        sizes=manifest.shard_bytes,
        policy=policy_of(manifest.config),
    )
    context.driver = RecordingDriver(begin(identity, HardState(RoundRecord(voters=(first,))), PeerState(), 0.0))
    return context


def follow(context: NodeContext, leader: str) -> None:
    """Have ``context``'s node follow this leader."""
    context.driver.change(lambda node: replace(node, tracking=replace(node.tracking, leader=leader)))


@asynccontextmanager
async def open_context(me: str, manifest: Manifest, **info: Any) -> AsyncIterator[NodeContext]:
    """As make_context; connections and background tasks are ended on the way out."""
    context = make_context(me, manifest, **info)
    async with context.clients:
        try:
            yield context
        finally:
            await context.background.close()


@asynccontextmanager
async def serving(handler: object) -> AsyncIterator[str]:
    """The address at which ``handler`` answers the calls that it knows."""
    async with serve(handler, "127.0.0.1:0", ByteCounter(), stop_seconds=0.1) as port:
        yield f"127.0.0.1:{port}"
