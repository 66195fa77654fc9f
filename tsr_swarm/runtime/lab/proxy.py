"""A lab of proxies, for those who may not make namespaces: each peer's calls go through an HTTP proxy of its own.

What it shapes are streams, not packets: nothing is lost, a piece that would have been comes later by the time of a
retransmission, and all that follows waits behind it. Connections across a partition stall until it is over.
"""

import asyncio
import math
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial

from tsr_swarm.errors import SwarmError
from tsr_swarm.runtime.lab.link import QUEUE_SECONDS, Line, Pipe, pipes
from tsr_swarm.runtime.lab.network import Pairs

MODE = "proxy"
REASON = "each peer's calls go through a proxy of its own, lost packets cost time only, and there is no DHT"
COORDINATOR = 0
PIECE_BYTES = 8192
PACKET_BYTES = 1448  # of a stream in one packet
RETRANSMIT_SECONDS = 0.2  # at least
MAX_PIECES = 256  # of one connection in each stage
SOCKET_BYTES = 64 << 10  # what the kernel may hold besides: little, or a rate would be felt late
HEAD_BYTES = 8192

_Piece = tuple[float, bytes]  # when it is at the end of its stage; b"" is the end


class Proxies:
    """One proxy for each peer. Made by ``open``; closed when ``exits`` are."""

    def __init__(self, lines: Mapping[int, Line], seed: int) -> None:
        self._lines = lines
        self._pipes = pipes(lines, seed)
        self._ports: dict[int, int] = {}
        self._address = ""  # the coordinator's, the one that may be asked for
        self._cut: frozenset[frozenset[int]] = frozenset()
        self._flows = asyncio.Event()  # set, and replaced, whenever what is cut changes
        self._connections: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, exits: AsyncExitStack, lines: Mapping[int, Line], seed: int) -> "Proxies":
        """Start a proxy on loopback for every peer in ``lines``."""
        proxies = cls(lines, seed)
        exits.push_async_callback(proxies._close_connections)
        for who in lines:
            if who != COORDINATOR:
                listener = socket.create_server(("127.0.0.1", 0))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
                server = await asyncio.start_server(partial(proxies._accept, who), sock=listener, limit=HEAD_BYTES)
                exits.callback(server.close)
                proxies._ports[who] = listener.getsockname()[1]
        return proxies

    def coordinator_arguments(self) -> list[str]:
        return ["--listen", "127.0.0.1:0", "--no-dht"]

    def peer_arguments(self, who: int, address: str) -> list[str]:
        self._address = address
        return ["--coordinator", address, "--no-dht", "--proxy", f"127.0.0.1:{self._ports[who]}"]

    def command(self, who: int, command: Sequence[str]) -> list[str]:
        return list(command)

    def cut(self, pairs: Pairs) -> None:
        self._cut = frozenset(pairs)
        self._flows.set()
        self._flows = asyncio.Event()

    async def broken(self) -> SwarmError:
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
        """One CONNECT and what follows it."""
        head = await reader.readuntil(b"\r\n\r\n")
        if not self._address or not head.startswith(f"CONNECT {self._address} ".encode()):
            writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            return
        await self._until_flowing(who)
        await asyncio.sleep(self._round_trip(who))  # as connecting takes one
        host, _, port = self._address.rpartition(":")
        there, back = await asyncio.open_connection(host, int(port), limit=HEAD_BYTES)
        try:
            back.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            (up, down), (inward, outward) = self._pipes[who], self._pipes[COORDINATOR][::-1]
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(who, reader, back, (up, inward)))
                group.create_task(self._carry(who, there, writer, (outward, down)))
        except* OSError:
            pass  # either side has gone
        finally:
            back.close()

    async def _carry(
        self, who: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: tuple[Pipe, Pipe]
    ) -> None:
        """One direction of a connection, over two pipes, to its end."""
        queues = [asyncio.Queue[_Piece](_pieces(way, self._round_trip(who))) for _ in range(3)]
        async with asyncio.TaskGroup() as group:
            for pipe, before, after in zip(way, queues[:-1], queues[1:], strict=True):
                group.create_task(self._pass(who, pipe, before, after))
            group.create_task(self._write(who, queues[-1], writer))
            while piece := await reader.read(PIECE_BYTES):
                await _wait_for_room(way[0])
                await queues[0].put((time.monotonic(), piece))
            await queues[0].put((time.monotonic(), b""))

    async def _pass(self, who: int, pipe: Pipe, before: asyncio.Queue[_Piece], after: asyncio.Queue[_Piece]) -> None:
        piece, held_until = b".", 0.0
        while piece:
            when, piece = await before.get()
            await _sleep_until(when)
            await _wait_for_room(pipe)
            arrival = pipe.carry(time.monotonic(), len(piece))
            if sum(pipe.loses() for _ in range(math.ceil(len(piece) / PACKET_BYTES))):
                held_until = arrival + max(RETRANSMIT_SECONDS, self._round_trip(who))
            await after.put((max(arrival, held_until), piece))

    async def _write(self, who: int, queue: asyncio.Queue[_Piece], writer: asyncio.StreamWriter) -> None:
        while True:
            when, piece = await queue.get()
            await _sleep_until(when)
            await self._until_flowing(who)
            if not piece:
                break
            writer.write(piece)
            await writer.drain()
        with suppress(OSError):
            writer.write_eof()

    async def _until_flowing(self, who: int) -> None:
        while frozenset((who, COORDINATOR)) in self._cut:
            await self._flows.wait()

    def _round_trip(self, who: int) -> float:
        return self._lines[who].rtt + self._lines[COORDINATOR].rtt


def _pieces(way: tuple[Pipe, Pipe], round_trip: float) -> int:
    """How many pieces may wait in each stage: about what fills the slowest pipe, as a TCP sender would find out."""
    rate = min((pipe.rate for pipe in way if pipe.rate is not None), default=None)
    if rate is None:
        return MAX_PIECES
    return min(MAX_PIECES, max(2, math.ceil(rate / 8 * (QUEUE_SECONDS / 3 + round_trip) / PIECE_BYTES)))


async def _wait_for_room(pipe: Pipe) -> None:
    if (excess := pipe.backlog(time.monotonic()) - QUEUE_SECONDS) > 0:
        await asyncio.sleep(excess)


async def _sleep_until(when: float) -> None:
    if (seconds := when - time.monotonic()) > 0:
        await asyncio.sleep(seconds)
