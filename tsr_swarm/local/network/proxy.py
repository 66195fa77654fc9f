"""A network of HTTP proxies, one for the calls of each node, for those who may not make namespaces.

Each node listens at a port that was reserved for it, so that a proxy knows whose link is at the other end. The proxies
shape streams, not packets: instead of being lost, a piece comes later by the time of a retransmission, and all that
follows waits behind it. Connections across a partition stall until it is over.
"""

import asyncio
import math
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial

from tsr_swarm.errors import SwarmError
from tsr_swarm.local.faults import COORDINATOR
from tsr_swarm.local.network.packets import QUEUE_SECONDS, HomeLine, Pairs, Pipe, pipes

MODE = "proxy"
REASON = "everybody's calls go through a proxy of its own, lost packets cost time only, and there is no DHT"
HOST = "127.0.0.1"
PIECE_BYTES = 8192
PACKET_BYTES = 1448  # of a stream in one packet
RETRANSMIT_SECONDS = 0.2  # at least
MAX_PIECES = 256  # of one connection in each queue
SOCKET_BYTES = 64 << 10  # what the kernel may hold besides: little, or a rate would be felt late
HEAD_BYTES = 8192

_Piece = tuple[float, bytes]  # when it leaves its pipe; b"" is the end of the stream


class Proxies:
    """A LocalNetwork of proxies. Made by ``open``; closed when its ``exits`` are."""

    def __init__(self, lines: Mapping[int, HomeLine], seed: int) -> None:
        self._lines = lines
        self._pipes = pipes(lines, seed)
        self._proxies: dict[int, str] = {}  # their addresses, by node
        self._addresses: dict[int, str] = {}  # where nodes listen
        self._cut: frozenset[frozenset[int]] = frozenset()
        self._flows = asyncio.Event()  # set, and replaced, whenever the cut pairs change
        self._connections: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, exits: AsyncExitStack, lines: Mapping[int, HomeLine], seed: int) -> "Proxies":
        """Start a proxy on loopback for every node of ``lines``, and reserve a port for each that can be dialled."""
        proxies = cls(lines, seed)
        exits.push_async_callback(proxies._close_connections)
        for who, line in lines.items():
            listener = socket.create_server((HOST, 0))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
            server = await asyncio.start_server(partial(proxies._accept, who), sock=listener, limit=HEAD_BYTES)
            exits.callback(server.close)
            proxies._proxies[who] = _address_of(listener)
            if not line.nat:
                proxies._addresses[who] = _address_of(exits.enter_context(_reserve_port()))
        return proxies

    def coordinator_arguments(self, address: str = "") -> list[str]:
        return self._arguments(COORDINATOR)

    def peer_arguments(self, who: int, address: str) -> list[str]:
        return ["--coordinator", address, *self._arguments(who)]

    def _arguments(self, who: int) -> list[str]:
        listen = ["--listen", self._addresses[who]] if who in self._addresses else []
        return [*listen, "--no-dht", "--proxy", self._proxies[who]]

    def command(self, who: int, command: Sequence[str]) -> list[str]:
        return list(command)

    def cut(self, pairs: Pairs) -> None:
        self._cut = frozenset(pairs)
        self._flows.set()
        self._flows = asyncio.Event()

    async def failure(self) -> SwarmError:
        return await asyncio.Future()

    async def _close_connections(self) -> None:
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, who: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
                await self._serve(who, reader, writer)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, who: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one CONNECT and the connection that follows it."""
        head = await reader.readuntil(b"\r\n\r\n")
        asked = [other for other, at in self._addresses.items() if head.startswith(f"CONNECT {at} ".encode())]
        if not asked or asked == [who]:
            writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            return
        [other] = asked
        between = frozenset((who, other))
        await self._until_flowing(between)
        await asyncio.sleep(self._round_trip(between))  # as connecting takes one
        host, _, port = self._addresses[other].rpartition(":")
        there, back = await asyncio.open_connection(host, int(port), limit=HEAD_BYTES)
        try:
            back.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            (up, down), (outward, inward) = self._pipes[who], self._pipes[other]
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(between, reader, back, (up, inward)))
                group.create_task(self._carry(between, there, writer, (outward, down)))
        except* OSError:
            pass  # either side has gone
        finally:
            back.close()

    async def _carry(
        self,
        between: frozenset[int],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        path: tuple[Pipe, Pipe],
    ) -> None:
        """Carry one direction of a connection over two pipes to its end."""
        queues = [asyncio.Queue[_Piece](_pieces(path, self._round_trip(between))) for _ in range(3)]
        async with asyncio.TaskGroup() as group:
            for pipe, before, after in zip(path, queues[:-1], queues[1:], strict=True):
                group.create_task(self._pass(between, pipe, before, after))
            group.create_task(self._write(between, queues[-1], writer))
            while piece := await reader.read(PIECE_BYTES):
                await _wait_for_room(path[0])
                await queues[0].put((time.monotonic(), piece))
            await queues[0].put((time.monotonic(), b""))

    async def _pass(
        self, between: frozenset[int], pipe: Pipe, before: asyncio.Queue[_Piece], after: asyncio.Queue[_Piece]
    ) -> None:
        piece, held_until = b".", 0.0
        while piece:
            when, piece = await before.get()
            await _sleep_until(when)
            await _wait_for_room(pipe)
            arrival = pipe.carry(time.monotonic(), len(piece))
            if sum(pipe.loses() for _ in range(math.ceil(len(piece) / PACKET_BYTES))):
                held_until = arrival + max(RETRANSMIT_SECONDS, self._round_trip(between))
            await after.put((max(arrival, held_until), piece))

    async def _write(self, between: frozenset[int], queue: asyncio.Queue[_Piece], writer: asyncio.StreamWriter) -> None:
        while True:
            when, piece = await queue.get()
            await _sleep_until(when)
            await self._until_flowing(between)
            if not piece:
                break
            writer.write(piece)
            await writer.drain()
        with suppress(OSError):
            writer.write_eof()

    async def _until_flowing(self, between: frozenset[int]) -> None:
        while between in self._cut:
            await self._flows.wait()

    def _round_trip(self, between: frozenset[int]) -> float:
        return sum(self._lines[who].rtt for who in between)


def _reserve_port() -> socket.socket:
    """Keep a free port from being given to a process that does not ask for it by number."""
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: two may have it if one does not listen
    kept.bind((HOST, 0))
    return kept


def _address_of(listener: socket.socket) -> str:
    return f"{HOST}:{listener.getsockname()[1]}"


def _pieces(path: tuple[Pipe, Pipe], round_trip: float) -> int:
    """How many pieces may wait in each queue: about what fills the slowest pipe, as a TCP sender would find out."""
    rate = min((pipe.rate for pipe in path if pipe.rate is not None), default=None)
    if rate is None:
        return MAX_PIECES
    return min(MAX_PIECES, max(2, math.ceil(rate / 8 * (QUEUE_SECONDS / 3 + round_trip) / PIECE_BYTES)))


async def _wait_for_room(pipe: Pipe) -> None:
    if (excess := pipe.backlog(time.monotonic()) - QUEUE_SECONDS) > 0:
        await asyncio.sleep(excess)


async def _sleep_until(when: float) -> None:
    if (seconds := when - time.monotonic()) > 0:
        await asyncio.sleep(seconds)
