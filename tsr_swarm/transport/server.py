"""The gRPC server: collects and cuts streams, counts bytes, turns errors into statuses. Knows nothing of rounds."""

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from tsr_swarm.errors import PeerError, RunError, SwarmError
from tsr_swarm.telemetry.byte_counter import ByteCounter, Direction
from tsr_swarm.telemetry.text import reason_text
from tsr_swarm.transport.address import Address, caller_of, parse_address
from tsr_swarm.transport.base import Caller, SwarmHandler
from tsr_swarm.transport.byte_accounting import Collector, SectionTally, count_chunk, count_message, pieces
from tsr_swarm.transport.limits import (
    MAX_CONCURRENT_RPCS,
    MAX_CONTROL_BYTES,
    SERVER_OPTIONS,
    STALL_SECONDS,
    STOP_SECONDS,
    TRANSFER_SECONDS,
)
from tsr_swarm.transport.status import status_of
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
    counter: ByteCounter,
    *,
    stop_seconds: float = STOP_SECONDS,
    max_concurrent_rpcs: int = MAX_CONCURRENT_RPCS,
) -> AsyncIterator[int]:
    """Answer calls at ``listen`` (host:port, port 0 for any free one) and yield the port.

    On the way out, calls under way have ``stop_seconds`` to end and are then cancelled.
    Raises ConfigError for a bad address and RunError for a port that cannot be used.
    """
    address = parse_address(listen)
    server = grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=max_concurrent_rpcs)
    swarm_pb2_grpc.add_SwarmServicer_to_server(_Servicer(handler, counter), server)  # type: ignore[no-untyped-call]
    try:
        _try_to_bind(address)
        port = server.add_insecure_port(str(address))
        if port == 0:
            raise RuntimeError("no port")
    except (OSError, RuntimeError) as error:
        # The system's reason, which gRPC does not give, and what to do about it.
        why = "the port is in use; stop the program that has it, or choose another port"
        if isinstance(error, OSError) and error.errno != errno.EADDRINUSE:
            why = f"{reason_text(error)}; choose another address of this machine, or another port"
        raise RunError(f"Cannot listen on {address}: {why}.") from error
    await server.start()
    try:
        yield port
    finally:
        await server.stop(stop_seconds)


def _try_to_bind(address: Address) -> None:
    """Raise the OSError of look-up or binding, before gRPC meets it and writes lines of its own."""
    family, kind, protocol, _, name = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC: a restart gets its port back at once
        probe.bind(name)


def _unary(answer: Callable[[SwarmHandler], Callable[[_Q, Caller], Awaitable[_R]]]) -> Any:
    """A method of the servicer that takes one message and returns one."""

    async def method(self: "_Servicer", request: _Q, context: Context) -> _R:
        async with self.call(context, request) as caller:
            reply = await answer(self.handler)(request, caller)
            count_message(self.counter, Direction.SENT, reply)
        return reply

    return method


class _Servicer(swarm_pb2_grpc.SwarmServicer):
    """Answers calls through ``handler`` and counts their bytes."""

    def __init__(self, handler: SwarmHandler, counter: ByteCounter) -> None:
        self.handler = handler
        self.counter = counter

    Hello = _unary(lambda handler: handler.hello)
    Join = _unary(lambda handler: handler.join)
    DescribeState = _unary(lambda handler: handler.describe_state)
    Poll = _unary(lambda handler: handler.poll)
    Tell = _unary(lambda handler: handler.tell)
    ListPeers = _unary(lambda handler: handler.list_peers)
    CatchUp = _unary(lambda handler: handler.catch_up)
    Report = _unary(lambda handler: handler.report)
    Leave = _unary(lambda handler: handler.leave)
    Watch = _unary(lambda handler: handler.watch)

    async def FetchState(self, request: pb.FetchStateRequest, context: Context) -> None:
        async with self.call(context, request) as caller:
            chunks = await self.handler.fetch_state(request, caller)
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                await _write(context, chunk)
                count_chunk(self.counter, Direction.SENT, chunk)

    async def Submit(self, requests: Submission, context: Context) -> pb.SubmitReply:
        async with self.call(context) as caller:
            async with _deadline(TRANSFER_SECONDS):
                first = await _read(requests)
                if first is None or first.WhichOneof("part") != "envelope":
                    raise PeerError("order", "A submission must start with its envelope; it is refused.")
                count_message(self.counter, Direction.RECEIVED, first)
                contribution = self.handler.expect(first.envelope, caller)
                collector = Collector(self.counter, contribution.header.sections)
                while (request := await _read(requests)) is not None:
                    collector.add(request, request.data)
            reply = await self.handler.submit(contribution, collector.joined(), caller)
            count_message(self.counter, Direction.SENT, reply)
        return reply

    async def FetchShard(self, request: pb.FetchShardRequest, context: Context) -> None:
        async with self.call(context, request) as caller:
            sections, data = await self.handler.fetch_shard(request, caller)
            await self._send(context, pb.ShardPart, sections, data)

    async def FetchPublished(self, request: pb.FetchPublishedRequest, context: Context) -> None:
        async with self.call(context, request) as caller:
            header, data = await self.handler.fetch_published(request, caller)
            first = pb.PublishedPart(header=header)
            await _write(context, first)
            count_message(self.counter, Direction.SENT, first)
            sections = [section for shard in header.shards for section in shard.sections]
            await self._send(context, pb.PublishedPart, sections, b"" if request.header_only else data)

    async def _send(
        self,
        context: Context,
        part_of: type[pb.ShardPart] | type[pb.PublishedPart],
        sections: Sequence[pb.Section],
        data: bytes | Sequence[bytes],
    ) -> None:
        """Send ``data``, which are the frames of ``sections``, in pieces."""
        tally = SectionTally(self.counter, Direction.SENT, sections)
        for piece in pieces(data):
            part = part_of(data=piece)
            await _write(context, part)
            tally.add(part, piece)

    @asynccontextmanager
    async def call(self, context: Context, request: Message | None = None) -> AsyncIterator[Caller]:
        """Count the ``request`` and turn every error into a status and one sentence, never a traceback."""
        caller = caller_of(context.peer())
        try:
            if request is not None:
                size = request.ByteSize()
                if size > MAX_CONTROL_BYTES:
                    raise PeerError(
                        "size", f"The request has {size} bytes, more than {MAX_CONTROL_BYTES}; it is refused."
                    )
                count_message(self.counter, Direction.RECEIVED, request)
            yield caller
        except SwarmError as error:
            await context.abort(*status_of(error))
        except grpc.aio.InternalError as error:
            # the caller hung up while it was sent something: there is nobody to tell
            log.debug("A call of %s broke off: %s", caller.address, error)
        except Exception:
            log.exception("A call of %s failed", caller.address)
            await context.abort(grpc.StatusCode.INTERNAL, "The other side failed unexpectedly; its log says why.")


async def _read(requests: Submission) -> pb.SubmitRequest | None:
    async with _deadline(STALL_SECONDS):
        return await anext(requests, None)


async def _write(context: Context, message: Message) -> None:
    async with _deadline(STALL_SECONDS):
        await context.write(message)


@asynccontextmanager
async def _deadline(seconds: float) -> AsyncIterator[None]:
    # A caller may have set no deadline, so this side ends a stream that stands still.
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise PeerError("stalled", f"The stream was not done within {seconds:g} s; it is ended, try again.") from error
