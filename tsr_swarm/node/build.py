"""What a node needs around it in its process: connections, a disk, and a server if others can dial it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.context import Seams, Start
from tsr_swarm.node.donor import DonorService
from tsr_swarm.node.events.run_log import RunLog
from tsr_swarm.node.node import SwarmNode
from tsr_swarm.node.round_cache import Headers
from tsr_swarm.node.service import NodeService
from tsr_swarm.node.sync.catch_up import Fetcher
from tsr_swarm.node.sync.donors import Donors
from tsr_swarm.node.sync.rounds import Frames
from tsr_swarm.node.sync.state import StateDownload
from tsr_swarm.transport.base import Caller


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What one process has for its node."""

    book: AddressBook
    clients: ClientPool
    states: Path  # where states are kept and downloaded to
    service: NodeService | None = None  # None for a node that nobody can dial
    run_log: RunLog | None = None  # likewise
    initial_peers: Callable[[Caller], list[str]] = lambda caller: []


@asynccontextmanager
async def hosted(start: Start, around: Around, seams: Seams) -> AsyncIterator[SwarmNode]:
    """A node with all that it needs; whatever it has begun is ended on the way out."""
    headers = Headers()

    def fetcher(own: Frames) -> Fetcher:
        sources = Donors(around.clients, seams.emit)
        return Fetcher(
            start.manifest,
            me=start.who.peer_id,
            first=start.first,
            sources=sources,
            states=StateDownload(sources, start.manifest, around.states),
            log=start.donor.delta_log if start.donor is not None else None,
            own=own,
            headers=headers,
        )

    async with AsyncExitStack() as stack:
        node = SwarmNode(start, around.book, around.clients, fetcher, seams)
        stack.push_async_callback(node.close)
        if around.service is not None and around.run_log is not None and start.donor is not None:
            stack.callback(around.run_log.follow, "", around.clients)
            contributions, freeze = node.reducing.contributions, node.following.freeze
            giving = DonorService(
                start.who.peer_id, start.donor, contributions, headers, node.makers, freeze, node.warn
            )
            stack.callback(giving.close)
            around.service.open(node, giving, around.run_log, around.initial_peers)
        yield node
