"""The network of proxies, between real sockets."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from tests.processes import argument
from tsr_swarm.local.network.packets import HomeLine
from tsr_swarm.local.network.proxy import RETRANSMIT_SECONDS, Proxies

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]
SECONDS = 20.0
COORDINATOR, PEER, OTHER = range(3)


@asynccontextmanager
async def lab(**lines: HomeLine) -> AsyncIterator[tuple[Proxies, str]]:
    """Proxies of a ``coordinator``, a ``peer`` and an ``other``, and the coordinator's address.

    All but the peer, which calls, send back what they get.
    """
    echoes: list[asyncio.Task[None] | None] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        echoes.append(asyncio.current_task())
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def echoes_end() -> None:
        await asyncio.gather(*filter(None, echoes))

    async with AsyncExitStack() as exits, asyncio.timeout(SECONDS):
        exits.push_async_callback(echoes_end)
        shaped = {who: lines.get(name, HomeLine()) for who, name in enumerate(("coordinator", "peer", "other"))}
        proxies = await Proxies.open(exits, shaped, seed=0)
        addresses = [
            argument(proxies.coordinator_arguments(), "--listen"),
            argument(proxies.peer_arguments(OTHER, ""), "--listen"),
        ]
        for address in filter(None, addresses):
            server = await asyncio.start_server(echo, *address.split(":"))
            exits.callback(server.close)
        yield proxies, addresses[0]


async def dial(proxies: Proxies, address: str, who: int = PEER) -> tuple[bytes, Ends]:
    """The answer of one's proxy to CONNECT, and the connection."""
    arguments = proxies.peer_arguments(who, "") if who else proxies.coordinator_arguments()
    host, _, port = argument(arguments, "--proxy").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"CONNECT {address} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return await reader.readuntil(b"\r\n\r\n"), (reader, writer)


async def echoed(ends: Ends, data: bytes) -> float:
    """Seconds until ``data`` is back."""
    reader, writer = ends
    begun = time.monotonic()
    writer.write(data)
    assert await reader.readexactly(len(data)) == data
    return time.monotonic() - begun


@pytest.mark.parametrize("slow", ["peer", "coordinator"])
async def test_each_direction_has_a_rate_of_its_own(slow: str) -> None:
    async with lab(**{slow: HomeLine(up=1e6)}) as (proxies, address):
        _, ends = await dial(proxies, address)
        assert await echoed(ends, bytes(50_000)) >= 0.4
        ends[1].close()


@pytest.mark.parametrize("lines", [{"peer": HomeLine(up=1e6)}, {"coordinator": HomeLine(down=1e6)}])
async def test_the_queue_of_a_link_is_bounded(lines: dict[str, HomeLine]) -> None:
    """A sender has to wait, wherever on the way the slow link is."""
    async with lab(**lines) as (proxies, address):
        _, (reader, writer) = await dial(proxies, address)
        await echoed((reader, writer), b"first")
        taken = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    writer.write(bytes(1 << 14))
                    await writer.drain()
                    taken += 1 << 14
        writer.transport.abort()
    assert taken < 6_000_000, "the kernel's own buffers are most of it"


async def test_a_lost_piece_comes_later_and_nothing_is_missing() -> None:
    async with lab(peer=HomeLine(loss=0.9)) as (proxies, address):
        _, ends = await dial(proxies, address)
        assert await echoed(ends, bytes(range(256)) * 100) >= RETRANSMIT_SECONDS
        ends[1].close()


async def test_a_partition_stalls_and_heals_and_loses_nothing() -> None:
    async with lab() as (proxies, address):
        _, ends = await dial(proxies, address)
        await echoed(ends, b"before")
        proxies.cut([frozenset((0, 1))])
        during = asyncio.create_task(echoed(ends, b"during"))
        new = asyncio.create_task(dial(proxies, address))
        done, _ = await asyncio.wait({during, new}, timeout=0.2)
        assert not done
        proxies.cut([])
        assert await during >= 0.2
        answer, others = await new
        assert b" 200 " in answer
        for _, writer in (ends, others):
            writer.close()


async def test_every_node_reaches_every_other_over_both_links() -> None:
    async with lab(coordinator=HomeLine(rtt=0.06), peer=HomeLine(rtt=0.02), other=HomeLine(rtt=0.04)) as (
        proxies,
        address,
    ):
        theirs = argument(proxies.peer_arguments(OTHER, ""), "--listen")
        for who, target, share in ((PEER, address, 0.08), (PEER, theirs, 0.06), (COORDINATOR, theirs, 0.1)):
            answer, ends = await dial(proxies, target, who)
            assert b" 200 " in answer
            assert share <= await echoed(ends, b"x") < share + 0.04, "and over no other"
            ends[1].close()


async def test_only_nodes_that_can_be_dialled_are_connected_to() -> None:
    async with lab(other=HomeLine(nat=True)) as (proxies, _):
        assert argument(proxies.peer_arguments(OTHER, ""), "--listen") == "", "nobody reaches it"
        own = argument(proxies.peer_arguments(PEER, ""), "--listen")
        for target in ("127.0.0.1:1", own):
            answer, (_, writer) = await dial(proxies, target)
            assert b" 403 " in answer
            writer.close()


async def test_the_end_of_a_stream_is_passed_on() -> None:
    async with lab(peer=HomeLine(rtt=0.01)) as (proxies, address):
        _, (reader, writer) = await dial(proxies, address)
        writer.write(b"last words")
        writer.write_eof()
        assert await reader.read() == b"last words"
        writer.close()
