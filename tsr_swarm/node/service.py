"""A node's answers to calls: each put to the part of the node that knows. Decides nothing itself."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tsr_swarm import __version__
from tsr_swarm.config.manifest import PROTOCOL_VERSION
from tsr_swarm.errors import UnreachableError
from tsr_swarm.node import message_codec
from tsr_swarm.node.donor import DonorService
from tsr_swarm.node.events.run_log import RunLog
from tsr_swarm.node.handshake import require_protocol, require_run
from tsr_swarm.node.leader import Leader
from tsr_swarm.node.node import SwarmNode
from tsr_swarm.transport.base import Caller
from tsr_swarm.wire import checks
from tsr_swarm.wire.gate import CheckedContribution
from tsr_swarm.wire.log_lines import lines_to_proto
from tsr_swarm.wire.run_rules import rules_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

MAX_CONTACTS = 16


@dataclass(frozen=True, slots=True)
class _Open:
    node: SwarmNode
    giving: DonorService
    run_log: RunLog
    initial_peers: Callable[[Caller], list[str]]


class NodeService:
    """Implements transport.base.SwarmHandler."""

    def __init__(self) -> None:
        self._open: _Open | None = None

    def open(
        self, node: SwarmNode, giving: DonorService, run_log: RunLog, initial_peers: Callable[[Caller], list[str]]
    ) -> None:
        """Answer from now on; before, callers are told to try again."""
        self._open = _Open(node, giving, run_log, initial_peers)

    @property
    def _at(self) -> "_Open":
        if self._open is None:
            raise UnreachableError("This node is starting; try again in a moment.")
        return self._open

    # --- meeting ------------------------------------------------------------------------------------------------

    async def hello(self, request: pb.HelloRequest, caller: Caller) -> pb.HelloReply:
        """Tell what run this is; refuse another protocol."""
        require_protocol(request)
        node = self._at.node
        return pb.HelloReply(
            protocol=PROTOCOL_VERSION,
            package_version=__version__,
            manifest=node.manifest.encoded,
            initial_peers=self._at.initial_peers(caller),
            unix_time=time.time(),
            peer_id=node.me,
            first=node.first,
            contacts=message_codec.contacts_to_proto(node.post.seen_by(caller, node.contacts).items())[:MAX_CONTACTS],
            rules=rules_to_proto(node.config),
        )

    async def join(self, request: pb.JoinRequest, caller: Caller) -> pb.JoinReply:
        """Admit a peer of this very run, if this node leads."""
        return self._leading().admit(request, caller)

    async def poll(self, request: pb.PollRequest, caller: Caller) -> pb.PollReply:
        """Answer when there is news for this peer."""
        node = self._at.node
        if node.leading is not None:
            checks.check_poll(request)
            node.leading.chronicle.progressed(request.peer_id, request.progress)
        return await node.post.poll(request, caller)

    async def tell(self, request: pb.TellRequest, caller: Caller) -> pb.TellReply:
        """Take in a message of another node."""
        return await self._at.node.post.tell(request, caller)

    async def list_peers(self, request: pb.ListPeersRequest, caller: Caller) -> pb.ListPeersReply:
        """Who takes part, if this node leads."""
        node = self._at.node
        require_run(node.manifest, request.manifest_digest)
        self._leading()
        return node.membership.answer(request, node.admitted)

    # --- contributions ------------------------------------------------------------------------------------------

    def expect(self, envelope: pb.Envelope, caller: Caller) -> CheckedContribution:
        """Check an upload's envelope before any of its bytes are taken."""
        return self._at.node.reducing.expect(envelope)

    async def submit(self, contribution: CheckedContribution, data: bytes, caller: Caller) -> pb.SubmitReply:
        """Take a contribution's shard."""
        return await self._at.node.reducing.submit(contribution, data)

    async def report(self, request: pb.ReportRequest, caller: Caller) -> pb.ReportReply:
        """Take a peer's digest and bytes, if this node leads."""
        checks.check_report(request)
        return await self._leading().chronicle.report(request)

    # --- giving -------------------------------------------------------------------------------------------------

    async def describe_state(self, request: pb.DescribeStateRequest, caller: Caller) -> pb.StateDescription:
        """Name a recent state."""
        return await self._at.giving.describe_state(request)

    async def fetch_state(self, request: pb.FetchStateRequest, caller: Caller) -> Iterator[pb.StateChunk]:
        """Serve chunks of a state that is kept here."""
        return self._at.giving.fetch_state(request)

    async def catch_up(self, request: pb.CatchUpRequest, caller: Caller) -> pb.CatchUpReply:
        """What a laggard has to know."""
        return await self._at.giving.catch_up(request)

    async def fetch_published(
        self, request: pb.FetchPublishedRequest, caller: Caller
    ) -> tuple[pb.PublishedHeader, bytes]:
        """Serve a round."""
        return await self._at.giving.fetch_published(request)

    async def fetch_shard(self, request: pb.FetchShardRequest, caller: Caller) -> tuple[Sequence[pb.Section], bytes]:
        """Serve a shard."""
        return await self._at.giving.fetch_shard(request)

    # --- for people ---------------------------------------------------------------------------------------------

    async def watch(self, request: pb.WatchRequest, caller: Caller) -> pb.WatchReply:
        """Serve the events after the ones that this monitor, or another node, has seen."""
        checks.check_watch(request)
        run_log = self._at.run_log
        if not request.without_progress:
            await run_log.read()
        await run_log.log.wait(request.after, request.wait_ms / 1000)
        lines, last = run_log.log.since(request.after, with_progress=not request.without_progress)
        return lines_to_proto(lines, last)

    async def leave(self, request: pb.LeaveRequest, caller: Caller) -> pb.LeaveReply:
        """Let a peer go."""
        checks.check_leave(request)
        self._at.node.left(request.peer_id, request.reason)
        return pb.LeaveReply()

    def _leading(self) -> Leader:
        leading = self._at.node.leading
        if leading is None:
            raise UnreachableError("This node does not lead; ask it who does.")
        return leading
