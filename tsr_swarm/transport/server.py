"""The gRPC server: collects and cuts streams, counts bytes, turns errors into statuses. Knows nothing of rounds."""

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from tsr_swarm.errors import PeerError, RunError, SwarmError
from tsr_swarm.telemetry.byte_counter import ByteCounter, Direction
from tsr_swarm.transport.address import Address, caller_of, parse_address
from tsr_swarm.transport.base import PIECE_BYTES, Caller, SwarmHandler
from tsr_swarm.transport.byte_accounting import SectionTally, count_chunk, count_message
from tsr_swarm.transport.collector import Collector
from tsr_swarm.transport.limits import (
    MAX_CONCURRENT_RPCS,
    MAX_CONTROL_BYTES,
    SERVER_OPTIONS,
    STALL_SECONDS,
    STOP_SECONDS,
    TRANSFER_SECONDS,
)
from tsr_swarm.transport.status import detail_of, metadata_of, status_of
from tsr_swarm.wire.gate import CheckedContribution
from tsr_swarm.wire.v1 import swarm_pb2 as pb
from tsr_swarm.wire.v1 import swarm_pb2_grpc

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Submission = AsyncIterator[pb.SubmitRequest]
_Q = TypeVar("_Q", bound=Message)
_R = TypeVar("_R", bound=Message)


@asynccontextmanager
async def serve(
    handler: SwarmHandler,
    listen: str,
    ledger: ByteCounter,
    *,
    stop_seconds: float = STOP_SECONDS,
    max_concurrent_rpcs: int = MAX_CONCURRENT_RPCS,
) -> AsyncIterator[int]:
    """Answer calls at ``listen`` (host:port, port 0 for any free one) and yield the port.

    On the way out, calls under way have ``stop_seconds`` to end and are then cancelled.
    Raises ConfigError for a bad address and RunError for a port that cannot be had.
    """
    address = parse_address(listen)
    server = grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=max_concurrent_rpcs)
    swarm_pb2_grpc.add_SwarmServicer_to_server(_Servicer(handler, ledger), server)  # type: ignore[no-untyped-call]
    try:
        _try_to_bind(address)
        port = server.add_insecure_port(str(address))
        if port == 0:
            raise RuntimeError("no port")
    except (OSError, RuntimeError) as error:
        raise RunError(f"Cannot listen on {address}: {_why_not(error)}.") from error
    await server.start()
    try:
        yield port
    finally:
        await server.stop(stop_seconds)


def _why_not(error: Exception) -> str:
    """The system's reason why nobody can listen there, which gRPC does not tell, and what to do about it."""
    if isinstance(error, OSError) and error.errno != errno.EADDRINUSE:
        return f"{error.strerror}; choose another address of this machine, or another port"
    return "the port is in use; stop the program that has it, or choose another port"


def _try_to_bind(address: Address) -> None:
    """Raise the OSError, of look-up or of binding, for which gRPC would write lines of its own."""
    family, kind, protocol, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC: a restart gets its port back at once
        probe.bind(place)


class _Servicer(swarm_pb2_grpc.SwarmServicer):
    def __init__(self, handler: SwarmHandler, ledger: ByteCounter) -> None:
        self._handler = handler
        self._ledger = ledger

    async def Hello(self, request: pb.HelloRequest, context: Context) -> pb.HelloReply:
        return await self._unary(self._handler.hello, request, context)

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinReply:
        return await self._unary(self._handler.join, request, context)

    async def DescribeState(self, request: pb.DescribeStateRequest, context: Context) -> pb.StateDescription:
        return await self._unary(self._handler.describe_state, request, context)

    async def Poll(self, request: pb.PollRequest, context: Context) -> pb.PollReply:
        return await self._unary(self._handler.poll, request, context)

    async def Tell(self, request: pb.TellRequest, context: Context) -> pb.TellReply:
        return await self._unary(self._handler.tell, request, context)

    async def ListPeers(self, request: pb.ListPeersRequest, context: Context) -> pb.ListPeersReply:
        return await self._unary(self._handler.list_peers, request, context)

    async def CatchUp(self, request: pb.CatchUpRequest, context: Context) -> pb.CatchUpReply:
        return await self._unary(self._handler.catch_up, request, context)

    async def Report(self, request: pb.ReportRequest, context: Context) -> pb.ReportReply:
        return await self._unary(self._handler.report, request, context)

    async def Leave(self, request: pb.LeaveRequest, context: Context) -> pb.LeaveReply:
        return await self._unary(self._handler.leave, request, context)

    async def Watch(self, request: pb.WatchRequest, context: Context) -> pb.WatchReply:
        return await self._unary(self._handler.watch, request, context)

    async def FetchState(self, request: pb.FetchStateRequest, context: Context) -> None:
        async with _boundary(context):
            self._received(request)
            chunks = await self._handler.fetch_state(request, caller_of(context.peer()))
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                await _write(context, chunk)
                count_chunk(self._ledger, Direction.SENT, chunk)

    async def Submit(self, requests: Submission, context: Context) -> pb.SubmitReply:
        async with _boundary(context):
            caller = caller_of(context.peer())
            async with _deadline(TRANSFER_SECONDS):
                contribution = self._handler.expect(await self._envelope(requests), caller)
                data = await self._payload(requests, contribution)
            reply = await self._handler.submit(contribution, data, caller)
            count_message(self._ledger, Direction.SENT, reply)
        return reply

    async def FetchShard(self, request: pb.FetchShardRequest, context: Context) -> None:
        async with _boundary(context):
            self._received(request)
            sections, data = await self._handler.fetch_shard(request, caller_of(context.peer()))
            await self._send(context, pb.ShardPart, sections, data)

    async def FetchPublished(self, request: pb.FetchPublishedRequest, context: Context) -> None:
        async with _boundary(context):
            self._received(request)
            header, data = await self._handler.fetch_published(request, caller_of(context.peer()))
            first = pb.PublishedPart(header=header)
            await _write(context, first)
            count_message(self._ledger, Direction.SENT, first)
            sections = [section for shard in header.shards for section in shard.sections]
            await self._send(context, pb.PublishedPart, sections, b"" if request.header_only else data)

    async def _send(
        self,
        context: Context,
        part_of: type[pb.ShardPart] | type[pb.PublishedPart],
        sections: Sequence[pb.Section],
        data: bytes | Sequence[bytes],
    ) -> None:
        """Cut ``data``, which are the frames of ``sections``."""
        tally = SectionTally(self._ledger, Direction.SENT, sections)
        for piece in pieces(data):
            part = part_of(data=piece)
            await _write(context, part)
            tally.add(part, piece)

    async def _unary(
        self,
        answer: Callable[[_Q, Caller], Awaitable[_R]],
        request: _Q,
        context: Context,
    ) -> _R:
        async with _boundary(context):
            self._received(request)
            reply = await answer(request, caller_of(context.peer()))
            count_message(self._ledger, Direction.SENT, reply)
        return reply

    def _received(self, request: Message) -> None:
        size = request.ByteSize()
        if size > MAX_CONTROL_BYTES:
            raise PeerError("size", f"The request has {size} bytes, more than {MAX_CONTROL_BYTES}; it is refused.")
        count_message(self._ledger, Direction.RECEIVED, request)

    async def _envelope(self, requests: Submission) -> pb.Envelope:
        first = await _read(requests)
        if first is None or first.WhichOneof("part") != "envelope":
            raise PeerError("order", "A submission must start with its envelope; it is refused.")
        count_message(self._ledger, Direction.RECEIVED, first)
        return first.envelope

    async def _payload(self, requests: Submission, contribution: CheckedContribution) -> bytes:
        """Collect exactly as many bytes as the header of ``contribution`` announces."""
        tally = SectionTally(self._ledger, Direction.RECEIVED, contribution.header.sections)
        collector = Collector(contribution.wire_bytes, tally)
        while (request := await _read(requests)) is not None:
            collector.add(request, request.data)
        return collector.joined()


def pieces(data: bytes | Sequence[bytes]) -> Iterator[bytes]:
    """Cut payload bytes for a stream."""
    for part in (data,) if isinstance(data, bytes) else data:
        for start in range(0, len(part), PIECE_BYTES):
            yield part[start : start + PIECE_BYTES]


async def _read(requests: Submission) -> pb.SubmitRequest | None:
    async with _deadline(STALL_SECONDS):
        return await anext(requests, None)


async def _write(context: Context, message: Message) -> None:
    async with _deadline(STALL_SECONDS):
        await context.write(message)


@asynccontextmanager
async def _deadline(seconds: float) -> AsyncIterator[None]:
    # A caller need not set a deadline of its own, so a stream that stands still is ended from this side.
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise PeerError("stalled", f"The stream was not done within {seconds:g} s; it is ended, try again.") from error


@asynccontextmanager
async def _boundary(context: Context) -> AsyncIterator[None]:
    """Every error ends here: as a status and one sentence, never as a traceback on the other side."""
    try:
        yield
    except SwarmError as error:
        await context.abort(status_of(error), detail_of(error), metadata_of(error))
    except Exception:
        log.exception("A call of %s failed", caller_of(context.peer()).address)
        await context.abort(grpc.StatusCode.INTERNAL, "The other side failed unexpectedly; its log says why.")
