"""What a peer answers: the seam between the transport and those who know about rounds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tsr_swarm.wire.gate import CheckedContribution
from tsr_swarm.wire.v1 import swarm_pb2 as pb

PIECE_BYTES = 256 << 10  # how payloads are cut for a stream


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the IP address the call came from, without its port."""

    address: str
    is_loopback: bool


class SwarmHandler(Protocol):
    """One method an RPC. Messages come in unchecked but for their size; see wire/checks.py and wire/gate.py.

    A SwarmError that is raised here reaches the caller as its class and sentence; anything else as a plain failure.
    """

    async def hello(self, request: pb.HelloRequest, caller: Caller) -> pb.HelloReply: ...

    async def join(self, request: pb.JoinRequest, caller: Caller) -> pb.JoinReply: ...

    async def describe_state(self, request: pb.DescribeStateRequest, caller: Caller) -> pb.StateDescription: ...

    async def fetch_state(self, request: pb.FetchStateRequest, caller: Caller) -> Iterator[pb.StateChunk]:
        """Chunks in order. The iterator may compress as it goes: it is advanced on a worker thread."""
        ...

    async def poll(self, request: pb.PollRequest, caller: Caller) -> pb.PollReply:
        """Answer when there is news. Cancelled where the caller hangs up meanwhile."""
        ...

    async def tell(self, request: pb.TellRequest, caller: Caller) -> pb.TellReply: ...

    async def list_peers(self, request: pb.ListPeersRequest, caller: Caller) -> pb.ListPeersReply: ...

    async def catch_up(self, request: pb.CatchUpRequest, caller: Caller) -> pb.CatchUpReply: ...

    def expect(self, envelope: pb.Envelope, caller: Caller) -> CheckedContribution:
        """Check ``envelope``, or raise, before any of the bytes that may follow is received."""
        ...

    async def submit(self, contribution: CheckedContribution, data: bytes, caller: Caller) -> pb.SubmitReply:
        """Take the payload of what ``expect`` has checked: exactly as many bytes as its header says."""
        ...

    async def fetch_shard(self, request: pb.FetchShardRequest, caller: Caller) -> tuple[Sequence[pb.Section], bytes]:
        """The sections of one shard and their frames, joined."""
        ...

    async def fetch_published(
        self, request: pb.FetchPublishedRequest, caller: Caller
    ) -> tuple[pb.PublishedHeader, bytes | Sequence[bytes]]:
        """The header of a round and its shards' bytes, joined or in order; no bytes go out for ``header_only``."""
        ...

    async def report(self, request: pb.ReportRequest, caller: Caller) -> pb.ReportReply: ...

    async def leave(self, request: pb.LeaveRequest, caller: Caller) -> pb.LeaveReply: ...

    async def watch(self, request: pb.WatchRequest, caller: Caller) -> pb.WatchReply: ...
