"""A small real handler, its server and clients. Run as a module, it serves one until its standard input closes."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from google.protobuf.message import Message

from tests.fixtures import assert_no_task_is_left, round_plan
from tsr_swarm.errors import PeerError, RefusedError
from tsr_swarm.telemetry.byte_counter import ByteCounter
from tsr_swarm.transport.base import Caller
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.server import serve
from tsr_swarm.wire.compression import compress
from tsr_swarm.wire.gate import CheckedContribution
from tsr_swarm.wire.messages import ContributionHeader, open_envelope
from tsr_swarm.wire.v1 import swarm_pb2 as pb

REPLIES: dict[str, Message] = {
    "hello": pb.HelloReply(protocol=3),
    "join": pb.JoinReply(number=1, name="ann"),
    "describe_state": pb.StateDescription(round=5),
    "poll": pb.PollReply(news=pb.News(version=1)),
    "tell": pb.TellReply(),
    "list_peers": pb.ListPeersReply(unchanged=True),
    "catch_up": pb.CatchUpReply(state_round=4),
    "report": pb.ReportReply(),
    "leave": pb.LeaveReply(),
    "watch": pb.WatchReply(last=1),
}


@dataclass
class SmallHandler:
    """Answers every call with what the test has set; the calls of one message each way with ``replies``."""

    replies: dict[str, Message] = field(default_factory=REPLIES.copy)
    chunks: Sequence[bytes] = ()
    shard: tuple[Sequence[pb.Section], bytes] = ((), b"")
    published: tuple[pb.PublishedHeader, bytes | Sequence[bytes]] = (pb.PublishedHeader(), b"")
    error: Exception | None = None
    received: list[Message] = field(default_factory=list)
    callers: set[Caller] = field(default_factory=set)
    submitted: list[tuple[ContributionHeader, bytes]] = field(default_factory=list)
    is_waiting: asyncio.Event = field(default_factory=asyncio.Event)
    has_hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    def __getattr__(self, name: str) -> Callable[[Message, Caller], Awaitable[Message]]:
        """The method for a call of one message each way."""
        if name not in REPLIES:
            raise AttributeError(name)

        async def answer(request: Message, caller: Caller) -> Message:
            self.received.append(request)
            self.callers.add(caller)
            if self.error is not None:
                raise self.error
            if isinstance(request, pb.PollRequest) and request.known:
                await self.wait()
            return self.replies[name]

        return answer

    async def wait(self) -> None:
        self.is_waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.has_hung_up.set()
            raise

    async def fetch_state(self, request: pb.FetchStateRequest, caller: Caller) -> Iterator[pb.StateChunk]:
        if request.round != 5:
            raise RefusedError("State 5 has replaced it; ask for that one.")
        numbers = range(request.first_chunk, len(self.chunks))
        return (pb.StateChunk(index=index, data=compress(self.chunks[index], 1)) for index in numbers)

    def expect(self, envelope: pb.Envelope, caller: Caller) -> CheckedContribution:
        header = open_envelope(envelope)
        if header.round != 7:
            raise PeerError("round", f"The payload is for round {header.round}, but round 7 is open.")
        return CheckedContribution(header, round_plan(7), ())

    async def submit(self, contribution: CheckedContribution, data: bytes, caller: Caller) -> pb.SubmitReply:
        self.submitted.append((contribution.header, data))
        return pb.SubmitReply(counted=True)

    async def fetch_shard(self, request: pb.FetchShardRequest, caller: Caller) -> tuple[Sequence[pb.Section], bytes]:
        if request.round != 7:
            raise RefusedError(f"Round {request.round} is not kept here; ask another node.")
        return self.shard

    async def fetch_published(
        self, request: pb.FetchPublishedRequest, caller: Caller
    ) -> tuple[pb.PublishedHeader, bytes | Sequence[bytes]]:
        return self.published


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
    await assert_no_task_is_left(before)


async def main() -> None:
    async with serve(SmallHandler(), "127.0.0.1:0", ByteCounter()) as port:
        print(port, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
