"""The calls that a node answers: the interface between the transport and the code that knows rounds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tsr_swarm.wire.v1 import swarm_pb2 as pb

if TYPE_CHECKING:  # it loads torch, which commands that only look on do without
    from tsr_swarm.wire.gate import CheckedContribution

PIECE_BYTES = 256 << 10  # how payloads are cut for a stream


@dataclass(frozen=True, slots=True)
class Caller:
    """The IP address that a call came from, without its port."""

    address: str


class SwarmHandler(Protocol):
    """Answers calls, one method an RPC. Only the size of messages is checked before; see wire/checks.py and gate.py.

    A SwarmError that is raised here reaches the caller as its class and sentence, any other error as a plain failure.
    """

    async def hello(self, request: pb.HelloRequest, caller: Caller) -> pb.HelloReply: ...
    async def join(self, request: pb.JoinRequest, caller: Caller) -> pb.JoinReply: ...
    async def describe_state(self, request: pb.DescribeStateRequest, caller: Caller) -> pb.StateDescription: ...

    async def fetch_state(self, request: pb.FetchStateRequest, caller: Caller) -> Iterator[pb.StateChunk]:
        """Give chunks in order. The iterator may compress as it goes: it is advanced on a worker thread."""
        ...

    async def poll(self, request: pb.PollRequest, caller: Caller) -> pb.PollReply:
        """Answer when there is news. Cancelled if the caller ends the call."""
        ...

    async def tell(self, request: pb.TellRequest, caller: Caller) -> pb.TellReply: ...
    async def list_peers(self, request: pb.ListPeersRequest, caller: Caller) -> pb.ListPeersReply: ...
    async def catch_up(self, request: pb.CatchUpRequest, caller: Caller) -> pb.CatchUpReply: ...

    def expect(self, envelope: pb.Envelope, caller: Caller) -> "CheckedContribution":
        """Check ``envelope``, or raise, before any of the bytes that may follow is received."""
        ...

    async def submit(self, contribution: "CheckedContribution", data: bytes, caller: Caller) -> pb.SubmitReply:
        """Take the payload of what ``expect`` has checked: exactly as many bytes as its header says."""
        ...

    async def fetch_shard(self, request: pb.FetchShardRequest, caller: Caller) -> tuple[Sequence[pb.Section], bytes]:
        """Give the sections of one shard and their frames, joined."""
        ...

    async def fetch_published(
        self, request: pb.FetchPublishedRequest, caller: Caller
    ) -> tuple[pb.PublishedHeader, bytes | Sequence[bytes]]:
        """Give the header of a round and its shards' bytes, joined or in order. ``header_only``: bytes are not sent."""
        ...

    async def report(self, request: pb.ReportRequest, caller: Caller) -> pb.ReportReply: ...
    async def leave(self, request: pb.LeaveRequest, caller: Caller) -> pb.LeaveReply: ...
    async def watch(self, request: pb.WatchRequest, caller: Caller) -> pb.WatchReply: ...
