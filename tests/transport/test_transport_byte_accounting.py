from typing import Any

import pytest

from tests.transport.examples import CORE_BYTES, DATA, DENSE_BYTES, envelope, pb_sections, published_header
from tests.wire.examples import PEER
from tsr_swarm.errors import PeerError, RefusedError
from tsr_swarm.telemetry.byte_counter import ByteCounter, Direction
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.server import serve
from tsr_swarm.transport.tcp_info import KernelBytes, KernelTotals
from tsr_swarm.wire.v1 import swarm_pb2 as pb


async def test_both_ends_count_the_same_bytes_by_kind(pair: Any) -> None:
    client = pair.client
    pair.handler.chunks = [b"chunk" * 1000, b"end"]
    pair.handler.published = (published_header(), DATA)
    pair.handler.shard = (pb_sections()[1:], DATA[CORE_BYTES:])
    await client.hello(pb.HelloRequest(protocol=1))
    await client.submit(envelope(), DATA)
    await client.fetch_published(pb.FetchPublishedRequest(round=1), max_bytes=len(DATA))
    async for _ in client.fetch_state(pb.FetchStateRequest(round=5)):
        pass
    await client.fetch_published(pb.FetchPublishedRequest(round=1, header_only=True), max_bytes=len(DATA))
    await client.fetch_shard(pb.FetchShardRequest(round=7), pair.handler.shard[0])
    await client.tell(pb.TellRequest(sender=PEER, goodbye=pb.Goodbye()))
    await client.poll(pb.PollRequest(peer_id=PEER))
    with pytest.raises(RefusedError):
        await client.fetch_shard(pb.FetchShardRequest(round=6), pair.handler.shard[0])
    with pytest.raises(RefusedError):
        await anext(client.fetch_state(pb.FetchStateRequest(round=4)))
    with pytest.raises(PeerError):
        await client.submit(envelope(), b"")
    up, down = pair.client_counter.totals(Direction.SENT), pair.client_counter.totals(Direction.RECEIVED)
    assert up == pair.server_counter.totals(Direction.RECEIVED)
    assert down == pair.server_counter.totals(Direction.SENT)
    assert {kind: up[kind] for kind in ("core", "dense")} == {"core": CORE_BYTES, "dense": DENSE_BYTES}
    assert {kind: down[kind] for kind in ("core", "dense")} == {"core": CORE_BYTES, "dense": 2 * DENSE_BYTES}
    assert 0 < down["state"] < 5003
    assert 0 < up["control"] < 2000


async def test_the_kernel_sees_at_least_what_was_counted_and_never_less_than_before(handler: Any) -> None:
    counter, kernel = ByteCounter(), KernelBytes([])
    async with serve(handler, "127.0.0.1:0", ByteCounter(), stop_seconds=0.1) as port:
        assert kernel.sample() == KernelBytes([1]).sample() == KernelTotals()
        kernel.watch(port)
        async with SwarmClient(f"127.0.0.1:{port}", counter) as client:
            await client.submit(envelope(), DATA)
            open_totals = kernel.sample()
        counted = sum(counter.totals(Direction.SENT).values()) + sum(counter.totals(Direction.RECEIVED).values())
        assert open_totals is not None
        # Both ends live in this process, so each byte is sent once and received once.
        assert counted <= open_totals.sent < 1.05 * counted + 10_000
        assert counted <= open_totals.received < 1.05 * counted + 10_000
    closed_totals = kernel.sample()
    assert closed_totals is not None
    assert closed_totals.sent >= open_totals.sent
    assert closed_totals.received >= open_totals.received
