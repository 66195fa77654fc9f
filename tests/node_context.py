"""A real NodeContext for tests of single parts: what its decisions would take in and people would be told is kept."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.context import NodeContext, NodeInfo
from tsr_swarm.node.events.run_log import RunLog
from tsr_swarm.node.node import SavedState, SwarmNode
from tsr_swarm.node.round_cache import Headers
from tsr_swarm.node.service import NodeService
from tsr_swarm.node.weights import PlainWeights
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.raft_state import HardState, RoundRecord
from tsr_swarm.rounds.state import Node
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.storage.state_store import StateStore
from tsr_swarm.telemetry.byte_counter import ByteCounter
from tsr_swarm.telemetry.events import Event, Warned
from tsr_swarm.telemetry.log import EventLog
from tsr_swarm.transport.server import serve

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
    def __init__(self) -> None:
        self.events: list[Event] = []  # of the node
        self.run_events: list[Event] = []  # of the run

    @property
    def warnings(self) -> list[str]:
        return [event.message for event in [*self.events, *self.run_events] if isinstance(event, Warned)]

    def emit(self, event: Event) -> None:
        self.events.append(event)

    async def score(self, *of: object) -> None:
        pass

    applied = restored = score


def make_node(me: str, manifest: Manifest, workspace: Any = None, **info: Any) -> SwarmNode:
    """The real parts of a node that has just started, without weights.

    ``info``: what it says of itself, else than usual; ``first`` is the coordinator.
    """
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
        clients=ClientPool(book),
        run_log=RunLog(EventLog(lambda: 0.0), host.run_events.append),
    )
    hard_state = HardState(RoundRecord(voters=(first,)))
    saved = SavedState(
        hard_state=hard_state, weights=PlainWeights(None), record=None, folder=Path(), workspace=workspace
    )
    node = SwarmNode(context, saved)
    context.driver = RecordingDriver(context.state)
    return node


def make_donor(
    me: str, manifest: Manifest, folder: Path, headers: Headers | None = None
) -> tuple[NodeService, StateStore]:
    """A node that gives what is in ``folder``, and has just started."""
    log = RoundLog(folder / "published", 1 << 24)
    log.open()
    store = StateStore(manifest, folder / "states", log)
    store.open()
    node = make_node(me, manifest)
    node.headers = headers or node.headers
    return NodeService(node, store, lambda caller: []), store


def follow(context: NodeContext, leader: str) -> None:
    context.driver.change(lambda node: replace(node, tracking=replace(node.tracking, leader=leader)))


@asynccontextmanager
async def open_node(me: str, manifest: Manifest, *more: Any, **info: Any) -> AsyncIterator[SwarmNode]:
    """As make_node; connections and background tasks are ended on the way out."""
    node = make_node(me, manifest, *more, **info)
    async with node.context.clients:
        try:
            yield node
        finally:
            await node.context.background.close()


@asynccontextmanager
async def serving(handler: object) -> AsyncIterator[str]:
    """The address at which ``handler`` answers the calls that it knows."""
    async with serve(handler, "127.0.0.1:0", ByteCounter(), stop_seconds=0.1) as port:
        yield f"127.0.0.1:{port}"
