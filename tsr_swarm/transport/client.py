"""The gRPC client: one typed method an RPC, each with a deadline, each raising the package's own errors."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from tsr_swarm.errors import ConfigError, PeerError, RefusedError, UnreachableError
from tsr_swarm.telemetry.byte_counter import ByteCounter, Direction
from tsr_swarm.telemetry.text import seconds_text
from tsr_swarm.transport.address import parse_address
from tsr_swarm.transport.byte_accounting import Collector, SectionTally, count_chunk, count_message, pieces
from tsr_swarm.transport.limits import (
    CONTROL_SECONDS,
    DEADLINE_GRACE_SECONDS,
    DESCRIBE_SECONDS,
    HELLO_SECONDS,
    POLL_SECONDS,
    STALL_SECONDS,
    TRANSFER_SECONDS,
    client_options,
)
from tsr_swarm.transport.status import error_of, timed_out
from tsr_swarm.wire.messages import MAX_HEADER_BYTES, parse
from tsr_swarm.wire.v1 import swarm_pb2 as pb
from tsr_swarm.wire.v1 import swarm_pb2_grpc

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0  # seconds between two calls of one that is not reached

_M = TypeVar("_M", bound=Message)
_T = TypeVar("_T")


class SwarmClient:
    """Calls one address. Connects with the first call, and again when the connection is lost.

    Every method raises UnreachableError (no answer in time; trying again may help), RefusedError or PeerError (with
    the sentence of the other side). ``seconds`` is the deadline of the whole call.
    """

    def __init__(self, address: str, counter: ByteCounter, proxy: str | None = None) -> None:
        """Raises ConfigError unless ``address`` is a host:port that can be dialled.

        ``proxy``: the host:port of an HTTP proxy to connect through.
        """
        target = parse_address(address)
        if target.port == 0:
            raise ConfigError(f"'{address}' has port 0, which cannot be dialled; write the port the other side shows.")
        self.address = str(target)
        self._counter = counter
        self._options = client_options(proxy)

    async def __aenter__(self) -> Self:
        # With its scheme, so that "unix:1" is the host of that name, not a socket on this machine.
        self._channel = grpc.aio.insecure_channel(f"dns:///{self.address}", options=self._options)
        self._stub: Any = swarm_pb2_grpc.SwarmStub(self._channel)  # type: ignore[no-untyped-call]
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._channel.close(None)

    async def hello(self, request: pb.HelloRequest, seconds: float = HELLO_SECONDS) -> pb.HelloReply:
        return await self._unary("Hello", request, pb.HelloReply, seconds)

    async def join(self, request: pb.JoinRequest) -> pb.JoinReply:
        return await self._unary("Join", request, pb.JoinReply)

    async def describe_state(
        self, request: pb.DescribeStateRequest, seconds: float = DESCRIBE_SECONDS
    ) -> pb.StateDescription:
        return await self._unary("DescribeState", request, pb.StateDescription, seconds)

    async def poll(self, request: pb.PollRequest, seconds: float = POLL_SECONDS) -> pb.PollReply:
        """Ask for news; the other side holds the call until there is some, or for a while."""
        return await self._unary("Poll", request, pb.PollReply, seconds)

    async def tell(self, request: pb.TellRequest, seconds: float = CONTROL_SECONDS) -> None:
        """Send a message; returns once the other side has it."""
        await self._unary("Tell", request, pb.TellReply, seconds)

    async def list_peers(self, request: pb.ListPeersRequest) -> pb.ListPeersReply:
        return await self._unary("ListPeers", request, pb.ListPeersReply)

    async def catch_up(self, request: pb.CatchUpRequest) -> pb.CatchUpReply:
        return await self._unary("CatchUp", request, pb.CatchUpReply)

    async def report(self, request: pb.ReportRequest, seconds: float = CONTROL_SECONDS) -> pb.ReportReply:
        return await self._unary("Report", request, pb.ReportReply, seconds)

    async def leave(self, request: pb.LeaveRequest, seconds: float = CONTROL_SECONDS) -> pb.LeaveReply:
        return await self._unary("Leave", request, pb.LeaveReply, seconds)

    async def watch(self, request: pb.WatchRequest) -> pb.WatchReply:
        """Ask for lines of the log; the other side holds the call for the request's wait_ms at most."""
        return await self._unary("Watch", request, pb.WatchReply, request.wait_ms / 1000 + CONTROL_SECONDS)

    async def submit(self, envelope: pb.Envelope, data: bytes, seconds: float = TRANSFER_SECONDS) -> pb.SubmitReply:
        """Send an envelope and the sections' joined frames; a refusal ends the upload at once."""
        header = parse(pb.ContributionHeader, envelope.header, MAX_HEADER_BYTES)
        tally = SectionTally(self._counter, Direction.SENT, header.sections)
        async with self._deadline("Submit", seconds):
            reply: pb.SubmitReply = await self._stub.Submit(self._submission(envelope, data, tally), timeout=seconds)
        count_message(self._counter, Direction.RECEIVED, reply)
        return reply

    async def fetch_shard(
        self,
        request: pb.FetchShardRequest,
        sections: Sequence[pb.Section],
        seconds: float = TRANSFER_SECONDS,
        silence: float = STALL_SECONDS,
    ) -> bytes:
        """Fetch the frames of a shard's ``sections``, exactly as many bytes as these announce, unchecked.

        ``sections`` must have been bounded: that many bytes are taken in. ``silence``: after so many seconds in which
        nothing came, it is given up. Raises PeerError when more or fewer bytes come.
        """
        collector = Collector(self._counter, sections)
        async with aclosing(self._stream("FetchShard", request, seconds, silence)) as parts:
            async for part in parts:
                collector.add(part, part.data)
        return collector.joined()

    async def fetch_published(
        self, request: pb.FetchPublishedRequest, max_bytes: int, seconds: float = TRANSFER_SECONDS
    ) -> tuple[pb.PublishedHeader, bytes]:
        """Fetch a round: its header, and exactly the bytes that its sections announce, unchecked.

        Of a request with ``header_only``, the bytes are b"". Raises PeerError when the header announces more than
        ``max_bytes``, or when more or fewer bytes come.
        """
        async with aclosing(self._stream("FetchPublished", request, seconds)) as parts:
            first = await anext(parts, None)
            if first is None or first.WhichOneof("part") != "header":
                raise PeerError("order", "A published round must start with its header; it is refused.")
            count_message(self._counter, Direction.RECEIVED, first)
            sections = [section for shard in first.header.shards for section in shard.sections]
            expected = sum(section.wire_bytes for section in sections)
            if expected > max_bytes:
                raise PeerError("length", f"The round has {expected} bytes, more than {max_bytes}; it is refused.")
            collector = Collector(self._counter, [] if request.header_only else sections)
            async for part in parts:
                collector.add(part, part.data)
        return first.header, collector.joined()

    async def fetch_state(
        self, request: pb.FetchStateRequest, seconds: float = TRANSFER_SECONDS
    ) -> AsyncGenerator[pb.StateChunk, None]:
        """Yield chunks as they come, unchecked. Close the iterator (``aclosing``) to end the download early."""
        async with aclosing(self._stream("FetchState", request, seconds)) as chunks:
            async for chunk in chunks:
                count_chunk(self._counter, Direction.RECEIVED, chunk)
                yield chunk

    async def _unary(self, method: str, request: Message, kind: type[_M], seconds: float = CONTROL_SECONDS) -> _M:
        """Make a call whose reply is one message of this ``kind``."""
        with self._counted(request):
            async with self._deadline(method, seconds):
                reply: _M = await getattr(self._stub, method)(request, timeout=seconds)
        count_message(self._counter, Direction.RECEIVED, reply)
        return reply

    async def _stream(
        self, method: str, request: Message, seconds: float, silence: float = STALL_SECONDS
    ) -> AsyncGenerator[Any, None]:
        """Messages of a reply stream; ``silence`` of so many seconds ends it, long before its deadline."""
        async with self._deadline(method, seconds):
            call = getattr(self._stub, method)(request, timeout=seconds)
        try:
            with self._counted(request):
                while True:
                    async with self._deadline(method, min(seconds, silence)):
                        message = await call.read()
                    if message is grpc.aio.EOF:  # type: ignore[attr-defined]
                        return
                    yield message
        finally:
            call.cancel()

    def _submission(self, envelope: pb.Envelope, data: bytes, tally: SectionTally) -> Iterator[pb.SubmitRequest]:
        """Give the requests of one upload. Each is counted when the next is asked for: then it has been written."""
        first = pb.SubmitRequest(envelope=envelope)
        yield first
        count_message(self._counter, Direction.SENT, first)
        for piece in pieces(data):
            request = pb.SubmitRequest(data=piece)
            yield request
            tally.add(request, piece)

    @contextmanager
    def _counted(self, request: Message) -> Iterator[None]:
        """Count a request once it is answered, even with a refusal: what was never sent must not be counted."""
        try:
            yield
        except (RefusedError, PeerError):
            count_message(self._counter, Direction.SENT, request)
            raise
        count_message(self._counter, Direction.SENT, request)

    @asynccontextmanager
    async def _deadline(self, method: str, seconds: float) -> AsyncIterator[None]:
        """Hold the deadline and map errors.

        gRPC holds it too, but not while its connection is stuck behind an upload to a process that has stopped:
        there a call with half a second ended after ten, when the keepalive gave up.
        """
        try:
            async with asyncio.timeout(seconds + DEADLINE_GRACE_SECONDS):
                yield
        except TimeoutError as error:
            raise timed_out(self.address, method, seconds) from error
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure, self.address, method, seconds) from failure
        except grpc.aio.UsageError as error:
            raise UnreachableError(f"The connection to {self.address} was closed before {method}.") from error


async def retry_while_unreachable(
    call: Callable[[], Awaitable[_T]],
    seconds: float,
    say: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> _T:
    """The result of ``call``, repeated for ``seconds`` while it raises UnreachableError; 0: it is called once.

    say: gets one sentence when the first call has failed and others follow.

    Raises the last UnreachableError, with how long it was tried, and at once any other error of ``call``.
    """
    began, pause = clock(), FIRST_PAUSE
    try:
        return await call()
    except UnreachableError as error:
        if clock() - began >= seconds:
            raise
        failure = error
    say(f"{failure} Trying again for {seconds_text(seconds)}.")
    while (left := seconds - (clock() - began)) > 0:
        await sleep(min(pause, left))
        pause = min(2 * pause, LONGEST_PAUSE)
        try:
            async with asyncio.timeout(max(LONGEST_PAUSE, seconds - (clock() - began))):
                return await call()
        except UnreachableError as error:
            failure = error
        except TimeoutError:
            break
    raise UnreachableError(f"{failure} Tried for {seconds_text(seconds)}; --wait sets for how long.") from failure
