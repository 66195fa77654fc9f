"""A small real handler, its server and clients. Run as a script, it serves one until its standard input closes."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import PeerError, RefusedError, RunError
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.telemetry.byte_counter import ByteCounter
from tsr_swarm.transport.base import Caller
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.server import serve
from tsr_swarm.wire.compression import compress
from tsr_swarm.wire.gate import CheckedContribution
from tsr_swarm.wire.messages import ContributionHeader, open_envelope
from tsr_swarm.wire.v1 import swarm_pb2 as pb


@dataclass
class SmallHandler:
    """Answers every call; the test sets what it answers."""

    manifest: bytes = b"{}"
    chunks: Sequence[bytes] = ()
    shard: tuple[Sequence[pb.Section], bytes] = ((), b"")
    received: list[pb.TellRequest] = field(default_factory=list)
    members: list[pb.Member] = field(default_factory=lambda: [pb.Member(peer_id=bytes(16), number=3)])
    published: tuple[pb.PublishedHeader, bytes | Sequence[bytes]] = (pb.PublishedHeader(), b"")
    error: Exception | None = None
    submitted: list[tuple[ContributionHeader, bytes, Caller]] = field(default_factory=list)
    callers: list[Caller] = field(default_factory=list)
    is_waiting: asyncio.Event = field(default_factory=asyncio.Event)
    has_hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    never: asyncio.Event = field(default_factory=asyncio.Event)

    async def hello(self, request: pb.HelloRequest, caller: Caller) -> pb.HelloReply:
        self.callers.append(caller)
        if self.error is not None:
            raise self.error
        return pb.HelloReply(protocol=request.protocol, manifest=self.manifest)

    async def join(self, request: pb.JoinRequest, caller: Caller) -> pb.JoinReply:
        return pb.JoinReply(number=1, name=request.name)

    async def describe_state(self, request: pb.DescribeStateRequest, caller: Caller) -> pb.StateDescription:
        return pb.StateDescription(round=5, chunk_hashes=[bytes(32)] * len(self.chunks))

    async def fetch_state(self, request: pb.FetchStateRequest, caller: Caller) -> Iterator[pb.StateChunk]:
        if request.round != 5:
            raise RefusedError("State 5 has replaced it; ask for that one.")
        numbers = range(request.first_chunk, len(self.chunks))
        return (pb.StateChunk(index=index, data=compress(self.chunks[index], 1)) for index in numbers)

    async def poll(self, request: pb.PollRequest, caller: Caller) -> pb.PollReply:
        if request.known:
            self.is_waiting.set()
            try:
                await self.never.wait()
            except asyncio.CancelledError:
                self.has_hung_up.set()
                raise
        return pb.PollReply(news=pb.News(version=1, number=request.number))

    async def tell(self, request: pb.TellRequest, caller: Caller) -> pb.TellReply:
        self.received.append(request)
        return pb.TellReply()

    async def list_peers(self, request: pb.ListPeersRequest, caller: Caller) -> pb.ListPeersReply:
        return pb.ListPeersReply(members=self.members)

    async def catch_up(self, request: pb.CatchUpRequest, caller: Caller) -> pb.CatchUpReply:
        return pb.CatchUpReply(state_round=request.applied)

    def expect(self, envelope: pb.Envelope, caller: Caller) -> CheckedContribution:
        header = open_envelope(envelope)
        if header.round != 7:
            raise PeerError("round", f"The payload is for round {header.round}, but round 7 is open.")
        return CheckedContribution(header, plan_round(RunConfig(), (), 7, ""), ())

    async def submit(self, contribution: CheckedContribution, data: bytes, caller: Caller) -> pb.SubmitReply:
        self.submitted.append((contribution.header, data, caller))
        return pb.SubmitReply(counted=True)

    async def fetch_shard(self, request: pb.FetchShardRequest, caller: Caller) -> tuple[Sequence[pb.Section], bytes]:
        if request.round != 7:
            raise RefusedError(f"Round {request.round} is not kept here; ask another node.")
        return self.shard

    async def fetch_published(
        self, request: pb.FetchPublishedRequest, caller: Caller
    ) -> tuple[pb.PublishedHeader, bytes | Sequence[bytes]]:
        return self.published

    async def report(self, request: pb.ReportRequest, caller: Caller) -> pb.ReportReply:
        raise RunError("The disk is full; free some space.")

    async def leave(self, request: pb.LeaveRequest, caller: Caller) -> pb.LeaveReply:
        return pb.LeaveReply()

    async def watch(self, request: pb.WatchRequest, caller: Caller) -> pb.WatchReply:
        return pb.WatchReply(last=1)


@dataclass
class Pair:
    """A server on a free port, a client of it, and what each of them counted."""

    handler: SmallHandler
    client: SwarmClient
    port: int
    server_counter: ByteCounter
    client_counter: ByteCounter


@pytest.fixture
def handler() -> SmallHandler:
    return SmallHandler()


@pytest.fixture
async def pair(handler: SmallHandler) -> AsyncIterator[Pair]:
    """Also checks that closing both leaves no task behind."""
    before = asyncio.all_tasks()
    server_counter, client_counter = ByteCounter(), ByteCounter()
    async with (
        serve(handler, "127.0.0.1:0", server_counter, stop_seconds=0.1) as port,
        SwarmClient(f"127.0.0.1:{port}", client_counter) as client,
    ):
        yield Pair(handler, client, port, server_counter, client_counter)
    assert asyncio.all_tasks() - {asyncio.current_task()} <= before


async def main() -> None:
    async with serve(SmallHandler(), "127.0.0.1:0", ByteCounter()) as port:
        print(port, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
