import asyncio
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from tsr_swarm.errors import ConfigError, PeerError, RefusedError, RunError, UnreachableError
from tsr_swarm.telemetry.byte_counter import ByteCounter, Direction
from tsr_swarm.transport.base import PIECE_BYTES, Caller
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.limits import CLIENT_OPTIONS, MAX_CONTROL_BYTES
from tsr_swarm.transport.server import serve
from tsr_swarm.transport.tcp_info import KernelBytes
from tsr_swarm.wire.codec import Section
from tsr_swarm.wire.compression import decompress
from tsr_swarm.wire.messages import ContributionHeader, seal
from tsr_swarm.wire.v1 import swarm_pb2 as pb
from tsr_swarm.wire.v1 import swarm_pb2_grpc

PEER = "0123456789abcdef" * 2
CORE_BYTES, DENSE_BYTES = 3 * PIECE_BYTES + 17, 1000
DATA = os.urandom(CORE_BYTES + DENSE_BYTES)
SECTIONS = (Section("core", 10**6, CORE_BYTES, bytes(32)), Section("dense", 4000, DENSE_BYTES, bytes(32)))


def envelope(round_: int = 7) -> pb.Envelope:
    return seal(
        ContributionHeader(
            protocol=1,
            manifest_digest=bytes(32),
            round=round_,
            parent=bytes(32),
            peer_id=PEER,
            shard=0,
            tokens=5,
            steps=1,
            local_loss=1.0,
            sections=SECTIONS,
        )
    )


def pb_sections() -> list[pb.Section]:
    return [pb.Section(kind=s.kind, wire_bytes=s.wire_bytes) for s in SECTIONS]


def published_header() -> pb.PublishedHeader:
    sections = pb_sections()
    return pb.PublishedHeader(shards=[pb.ShardResult(sections=sections[:1]), pb.ShardResult(sections=sections[1:])])


async def raw_submit(port: int, requests: list[pb.SubmitRequest]) -> grpc.aio.AioRpcError:
    """Submit as a client would that does not keep the rules; return the status it gets."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CLIENT_OPTIONS) as channel:
        stub: Any = swarm_pb2_grpc.SwarmStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.Submit(iter(requests), timeout=10)
        return failure.value


async def test_small_calls_are_answered(pair: Any) -> None:
    client = pair.client
    assert (await client.hello(pb.HelloRequest(protocol=3))).protocol == 3
    assert (await client.join(pb.JoinRequest(name="ann"))).name == "ann"
    assert (await client.describe_state(pb.DescribeStateRequest())).round == 5
    assert (await client.poll(pb.PollRequest(number=9))).news == pb.News(version=1, number=9)
    assert (await client.list_peers(pb.ListPeersRequest())).members[0].number == 3
    assert (await client.catch_up(pb.CatchUpRequest(applied=4))).state_round == 4
    assert (await client.leave(pb.LeaveRequest())) == pb.LeaveReply()
    assert (await client.watch(pb.WatchRequest())).last == 1
    assert pair.handler.callers == [Caller("127.0.0.1", True)]


async def test_what_is_told_arrives_as_it_was(pair: Any) -> None:
    vote = pb.TellRequest(sender=PEER, vote_request=pb.VoteRequest(term=5, is_trial=True))
    await pair.client.tell(vote)
    await pair.client.tell(pb.TellRequest(goodbye=pb.Goodbye()))
    assert pair.handler.told == [vote, pb.TellRequest(goodbye=pb.Goodbye())]


async def test_ten_thousand_peers_fit_in_the_list_of_them_and_in_what_is_told_of_them(pair: Any) -> None:
    members = [pb.Member(peer_id=os.urandom(16), number=10**6 - 10_000 + number) for number in range(10_000)]
    pair.handler.members = members
    assert (await pair.client.list_peers(pb.ListPeersRequest())).members == members
    sections = [pb.Section(kind="x" * 16, raw_bytes=2**40, wire_bytes=2**40, hash=bytes(32))] * 16
    result = pb.ShardResult(absent=bytes([255] * 1250), tokens=2**50, sections=sections)
    done = pb.TellRequest(sender=PEER, shard_done=pb.ShardDone(result=result, roster=bytes(32), kappas=[0.5] * 4096))
    await pair.client.tell(done)
    assert pair.handler.told == [done]


async def test_what_is_told_at_too_great_length_is_refused(pair: Any) -> None:
    long = pb.TellRequest(vote_reply=pb.VoteReply(reason="x" * MAX_CONTROL_BYTES))
    with pytest.raises(PeerError) as refusal:
        await pair.client.tell(long)
    assert refusal.value.reason == "size"
    assert pair.handler.told == []


async def test_who_hangs_up_while_its_poll_is_held_is_noticed(pair: Any) -> None:
    polling = asyncio.create_task(pair.client.poll(pb.PollRequest(known=1)))
    await pair.handler.is_waiting.wait()
    polling.cancel()
    async with asyncio.timeout(10):
        await pair.handler.has_hung_up.wait()


async def test_a_poll_that_is_held_too_long_is_given_up_by_both(pair: Any) -> None:
    with pytest.raises(UnreachableError, match=r"did not answer Poll within 0\.3 s"):
        await pair.client.poll(pb.PollRequest(known=1), seconds=0.3)
    async with asyncio.timeout(10):
        await pair.handler.has_hung_up.wait()


async def test_the_largest_manifest_fits(pair: Any) -> None:
    pair.handler.manifest = os.urandom(4 << 20)
    assert (await pair.client.hello(pb.HelloRequest())).manifest == pair.handler.manifest


async def test_an_upload_arrives_whole(pair: Any) -> None:
    reply = await pair.client.submit(envelope(), DATA)
    assert reply.counted
    ((header, data, caller),) = pair.handler.submitted
    assert (header.sections, data, caller.is_loopback) == (SECTIONS, DATA, True)


@pytest.mark.parametrize("data", [DATA + b"x", DATA * 2, DATA[:-1], b""], ids=["one more", "twice", "one less", "none"])
async def test_an_upload_of_another_length_is_refused(pair: Any, data: bytes) -> None:
    with pytest.raises(PeerError) as refusal:
        await pair.client.submit(envelope(), data)
    assert refusal.value.reason == "length"
    assert pair.handler.submitted == []


async def test_a_refused_envelope_ends_the_upload_with_its_sentence(pair: Any) -> None:
    """Now and then gRPC loses the sentence with what was still on its way; whoever uploads tries again."""

    async def upload() -> None:
        for _ in range(5):
            with suppress(UnreachableError):
                await pair.client.submit(envelope(round_=6), DATA * 50)

    with pytest.raises(PeerError, match=r"for round 6, but round 7 is open\.") as refusal:
        await upload()
    assert refusal.value.reason == "round"
    assert pair.server_ledger.totals(Direction.RECEIVED).get("core", 0) == 0


@pytest.mark.parametrize(
    ("requests", "reason"),
    [
        ([], "order"),
        ([pb.SubmitRequest()], "order"),
        ([pb.SubmitRequest(data=b"x")], "order"),
        ([pb.SubmitRequest(envelope=envelope()), pb.SubmitRequest(envelope=envelope())], "length"),
        ([pb.SubmitRequest(envelope=envelope()), pb.SubmitRequest(data=b"")], "length"),
        ([pb.SubmitRequest(envelope=envelope()), pb.SubmitRequest(data=DATA[: PIECE_BYTES + 1])], "length"),
        ([pb.SubmitRequest(envelope=pb.Envelope(header=b"\xff"))], "malformed"),
    ],
)
async def test_a_stream_out_of_order_is_refused(pair: Any, requests: list[pb.SubmitRequest], reason: str) -> None:
    failure = await raw_submit(pair.port, requests)
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    metadata: Any = failure.trailing_metadata()
    assert dict(metadata)["tsr-reason"] == reason


async def test_a_published_round_arrives_whole_joined_or_in_parts(pair: Any) -> None:
    for data in (DATA, [DATA[:CORE_BYTES], DATA[CORE_BYTES:]]):
        pair.handler.published = (published_header(), data)
        header, received = await pair.client.fetch_published(pb.FetchPublishedRequest(), max_bytes=len(DATA))
        assert (header, received) == (published_header(), DATA)


@pytest.mark.parametrize("data", [DATA + b"x", DATA[:-1], b""], ids=["one more", "one less", "none"])
async def test_a_published_round_of_another_length_is_refused(pair: Any, data: bytes) -> None:
    pair.handler.published = (published_header(), data)
    with pytest.raises(PeerError) as refusal:
        await pair.client.fetch_published(pb.FetchPublishedRequest(), max_bytes=len(DATA))
    assert refusal.value.reason == "length"


async def test_a_published_round_beyond_the_bound_is_refused_before_it_is_received(pair: Any) -> None:
    pair.handler.published = (published_header(), DATA)
    with pytest.raises(PeerError, match="more than"):
        await pair.client.fetch_published(pb.FetchPublishedRequest(), max_bytes=len(DATA) - 1)
    assert "core" not in pair.client_ledger.totals(Direction.RECEIVED)


async def test_a_header_alone_comes_without_its_bytes(pair: Any) -> None:
    pair.handler.published = (published_header(), DATA)
    request = pb.FetchPublishedRequest(header_only=True)
    assert await pair.client.fetch_published(request, max_bytes=len(DATA)) == (published_header(), b"")
    assert "core" not in pair.client_ledger.totals(Direction.RECEIVED)
    with pytest.raises(PeerError, match="more than"):
        await pair.client.fetch_published(request, max_bytes=len(DATA) - 1)


async def test_a_shard_arrives_whole(pair: Any) -> None:
    pair.handler.shard = (pb_sections(), DATA)
    assert await pair.client.fetch_shard(pb.FetchShardRequest(round=7), pb_sections()) == DATA


@pytest.mark.parametrize("data", [DATA + b"x", DATA[:-1], b""], ids=["one more", "one less", "none"])
async def test_a_shard_of_another_length_is_refused(pair: Any, data: bytes) -> None:
    pair.handler.shard = (pb_sections(), data)
    with pytest.raises(PeerError) as refusal:
        await pair.client.fetch_shard(pb.FetchShardRequest(round=7), pb_sections())
    assert refusal.value.reason == "length"


async def test_a_shard_is_taken_in_no_further_than_was_announced(pair: Any) -> None:
    """Who serves it may say that it is longer: what the header said counts."""
    pair.handler.shard = (pb_sections(), DATA)
    with pytest.raises(PeerError):
        await pair.client.fetch_shard(pb.FetchShardRequest(round=7), pb_sections()[1:])
    assert "dense" not in pair.client_ledger.totals(Direction.RECEIVED)


async def test_a_shard_that_is_not_there_is_refused_with_its_sentence(pair: Any) -> None:
    with pytest.raises(RefusedError, match="Round 6 is not kept here"):
        await pair.client.fetch_shard(pb.FetchShardRequest(round=6), pb_sections())


async def test_who_gives_nothing_of_a_shard_is_waited_for_as_long_as_it_may_be_silent(pair: Any) -> None:
    async def fetch_shard(request: pb.FetchShardRequest, caller: Caller) -> None:
        await asyncio.Event().wait()

    pair.handler.fetch_shard = fetch_shard
    with pytest.raises(UnreachableError, match=r"within 0\.1 s"):
        await pair.client.fetch_shard(pb.FetchShardRequest(round=7), pb_sections(), silence=0.1)


async def test_state_chunks_arrive_and_the_download_can_go_on_in_the_middle(pair: Any) -> None:
    pair.handler.chunks = [os.urandom(4 << 20), bytes(10), b"end"]
    async with aclosing(pair.client.fetch_state(pb.FetchStateRequest(round=5))) as chunks:
        received = [decompress(chunk.data, len(pair.handler.chunks[chunk.index])) async for chunk in chunks]
    assert received == pair.handler.chunks
    rest = [chunk.index async for chunk in pair.client.fetch_state(pb.FetchStateRequest(round=5, first_chunk=1))]
    assert rest == [1, 2]


async def test_a_download_can_be_ended_early_and_nobody_complains(pair: Any, caplog: pytest.LogCaptureFixture) -> None:
    pair.handler.chunks = [os.urandom(1 << 20)] * 20
    async with aclosing(pair.client.fetch_state(pb.FetchStateRequest(round=5))) as chunks:
        assert (await anext(chunks)).index == 0
    assert (await pair.client.poll(pb.PollRequest())).news.version == 1
    assert caplog.records == []


async def test_a_refusal_before_a_stream_arrives(pair: Any) -> None:
    with pytest.raises(RefusedError, match="State 5 has replaced it"):
        await anext(pair.client.fetch_state(pb.FetchStateRequest(round=4)))


@pytest.mark.parametrize(
    ("raised", "arrives"),
    [
        (RefusedError("Protocol 2 is not spoken; install version 1."), RefusedError),
        (PeerError("name", "name = '\x1b[2J' is out of range."), PeerError),
        (RunError("The disk is full; free some space."), UnreachableError),
        (UnreachableError("The reducer is away; try again."), UnreachableError),
    ],
)
async def test_a_refusal_arrives_as_its_class_and_sentence(pair: Any, raised: Exception, arrives: type) -> None:
    pair.handler.error = raised
    with pytest.raises(arrives) as refusal:
        await pair.client.hello(pb.HelloRequest())
    sentence = str(raised).replace("\x1b", " ")
    assert sentence in str(refusal.value)
    assert getattr(raised, "reason", None) == getattr(refusal.value, "reason", None)


async def test_an_unexpected_failure_is_logged_here_and_not_told_there(
    pair: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pair.handler.error = KeyError("/home/someone/secret")
    with caplog.at_level(logging.ERROR), pytest.raises(UnreachableError) as failure:
        await pair.client.hello(pb.HelloRequest())
    assert "secret" not in str(failure.value)
    assert "Traceback" not in str(failure.value)
    assert "secret" in caplog.text


async def test_a_control_message_that_is_too_long_is_refused(pair: Any) -> None:
    with pytest.raises(PeerError) as refusal:
        await pair.client.hello(pb.HelloRequest(package_version="x" * (MAX_CONTROL_BYTES + 1)))
    assert refusal.value.reason == "size"
    with pytest.raises(UnreachableError):
        await pair.client.hello(pb.HelloRequest(package_version="x" * (1 << 20)))


async def test_a_sentence_of_any_length_and_script_arrives(pair: Any) -> None:
    pair.handler.error = RefusedError("é" * 5000)
    with pytest.raises(RefusedError, match="é" * 100):
        await pair.client.hello(pb.HelloRequest())


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
    up, down = pair.client_ledger.totals(Direction.SENT), pair.client_ledger.totals(Direction.RECEIVED)
    assert up == pair.server_ledger.totals(Direction.RECEIVED)
    assert down == pair.server_ledger.totals(Direction.SENT)
    assert {kind: up[kind] for kind in ("core", "dense")} == {"core": CORE_BYTES, "dense": DENSE_BYTES}
    assert {kind: down[kind] for kind in ("core", "dense")} == {"core": CORE_BYTES, "dense": 2 * DENSE_BYTES}
    assert 0 < down["state"] < 5003
    assert 0 < up["control"] < 2000


async def test_the_kernel_sees_at_least_what_was_counted_and_never_less_than_before(handler: Any) -> None:
    ledger, unused = ByteCounter(), ByteCounter()
    async with serve(handler, "127.0.0.1:0", unused, stop_seconds=0.1) as port:
        kernel = KernelBytes([port])
        async with SwarmClient(f"127.0.0.1:{port}", ledger) as client:
            await client.submit(envelope(), DATA)
            open_totals = kernel.sample()
        counted = sum(ledger.totals(Direction.SENT).values()) + sum(ledger.totals(Direction.RECEIVED).values())
        assert open_totals is not None
        # Both ends live in this process, so each byte is sent once and received once.
        assert counted <= open_totals.sent < 1.05 * counted + 10_000
        assert counted <= open_totals.received < 1.05 * counted + 10_000
    closed_totals = kernel.sample()
    assert closed_totals is not None
    assert closed_totals.sent >= open_totals.sent
    assert closed_totals.received >= open_totals.received
    assert KernelBytes([1]).sample() == KernelBytes([]).sample()


async def test_a_port_that_is_heard_of_later_is_counted_from_then_on(pair: Any) -> None:
    kernel = KernelBytes([])
    assert kernel.sample() == KernelBytes([1]).sample()
    kernel.watch(pair.port)
    await pair.client.submit(envelope(), DATA)
    totals = kernel.sample()
    assert totals is not None
    assert totals.sent > len(DATA)


async def test_nobody_listening_is_said_at_once() -> None:
    with socket.socket() as unheard:  # bound, not listening: its port refuses connections
        unheard.bind(("127.0.0.1", 0))
        async with SwarmClient(f"127.0.0.1:{unheard.getsockname()[1]}", ByteCounter()) as client:
            for call in (
                client.hello(pb.HelloRequest(), seconds=5),
                client.submit(envelope(), DATA, seconds=5),
                client.poll(pb.PollRequest()),
                client.tell(pb.TellRequest(), seconds=5),
                client.fetch_shard(pb.FetchShardRequest(), pb_sections(), seconds=5),
                client.fetch_published(pb.FetchPublishedRequest(), 10, seconds=5),
                anext(client.fetch_state(pb.FetchStateRequest(), seconds=5)),
            ):
                with pytest.raises(UnreachableError, match=re.escape(client.address)) as failure:
                    await call
                assert "nothing listens there" in str(failure.value)
            assert client._ledger.totals(Direction.SENT) == {}


async def test_a_hostile_name_is_a_host_and_not_a_socket_on_this_machine() -> None:
    """gRPC takes unix:1 for a socket in the working folder."""
    async with SwarmClient("unix:1", ByteCounter()) as client:
        with pytest.raises(UnreachableError) as failure:
            await client.hello(pb.HelloRequest(), seconds=5)
        assert "No such file" not in str(failure.value)


async def test_a_name_that_does_not_resolve_is_said() -> None:
    async with SwarmClient("no-such-host.invalid:1", ByteCounter()) as client:
        with pytest.raises(UnreachableError, match=r"no-such-host\.invalid:1"):
            await client.hello(pb.HelloRequest(), seconds=5)


@pytest.mark.parametrize(
    ("address", "why"), [("no-such-host.invalid:1", "not known|resolution"), ("192.0.2.1:7700", "Cannot assign")]
)
async def test_where_nobody_can_listen_is_one_sentence_with_the_systems_reason(
    handler: Any, address: str, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, match=rf"^Cannot listen on {re.escape(address)}: .*({why}).*; choose"):
        async with serve(handler, address, ByteCounter()):
            pass
    assert capfd.readouterr().err == ""  # gRPC is not asked, and writes nothing


async def test_a_restarted_server_is_found_again_and_a_closed_client_says_so(handler: Any) -> None:
    async with serve(handler, "127.0.0.1:0", ByteCounter(), stop_seconds=0) as port:
        client = SwarmClient(f"127.0.0.1:{port}", ByteCounter())
        await client.__aenter__()
        await client.hello(pb.HelloRequest())
    with pytest.raises(UnreachableError):
        await client.hello(pb.HelloRequest(), seconds=5)
    async with serve(handler, f"127.0.0.1:{port}", ByteCounter(), stop_seconds=0), asyncio.timeout(10):
        while True:  # gRPC waits half a second before it connects again, and meanwhile refuses
            with suppress(UnreachableError):
                await client.hello(pb.HelloRequest(), seconds=5)
                break
    await client.__aexit__(None, None, None)
    with pytest.raises(UnreachableError, match="was closed before Hello"):
        await client.hello(pb.HelloRequest())


@contextmanager
def child_server() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The small handler in a process of its own, which ends with this block."""
    script = Path(__file__).with_name("conftest.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            yield child, int(child.stdout.readline())
        finally:
            child.kill()


async def test_a_stopped_server_is_noticed_by_the_deadline_and_forgiven_when_it_goes_on() -> None:
    with child_server() as (child, port):
        async with SwarmClient(f"127.0.0.1:{port}", ByteCounter()) as client:
            await client.hello(pb.HelloRequest())
            child.send_signal(signal.SIGSTOP)
            for call in (
                client.hello(pb.HelloRequest(), seconds=0.5),
                client.submit(envelope(), DATA * 20, seconds=0.5),
                client.fetch_published(pb.FetchPublishedRequest(), 10, seconds=0.5),
            ):
                start = time.monotonic()
                with pytest.raises(UnreachableError, match=r"within 0\.5 s"):
                    await call
                assert 0.4 < time.monotonic() - start < 3
            child.send_signal(signal.SIGCONT)
            await client.hello(pb.HelloRequest())
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_killed_server_ends_a_waiting_call() -> None:
    with child_server() as (child, port):
        async with SwarmClient(f"127.0.0.1:{port}", ByteCounter()) as client:
            await client.hello(pb.HelloRequest())
            waiting = asyncio.create_task(client.poll(pb.PollRequest(known=1), seconds=20))
            await client.hello(pb.HelloRequest())  # by now the other call is on its way
            child.kill()
            with pytest.raises(UnreachableError):
                await asyncio.wait_for(waiting, 10)


async def test_a_port_in_use_is_one_sentence_with_the_next_step(pair: Any) -> None:
    with pytest.raises(
        RunError, match=rf"127\.0\.0\.1:{pair.port}: the port is in use; stop .* or choose another port"
    ):
        async with serve(pair.handler, f"127.0.0.1:{pair.port}", ByteCounter()):
            pass


async def test_a_bad_address_is_refused_before_anything_is_started(handler: Any) -> None:
    with pytest.raises(ConfigError):
        async with serve(handler, "31337", ByteCounter()):
            pass
    with pytest.raises(ConfigError, match="port 0"):
        SwarmClient("127.0.0.1:0", ByteCounter())


async def test_stopping_cancels_calls_that_wait(handler: Any) -> None:
    before = asyncio.all_tasks()
    async with serve(handler, "127.0.0.1:0", ByteCounter(), stop_seconds=0.1) as port:
        client = SwarmClient(f"127.0.0.1:{port}", ByteCounter())
        async with client:
            waiting = asyncio.create_task(client.poll(pb.PollRequest(known=1), seconds=20))
            await handler.is_waiting.wait()
            start = time.monotonic()
    with pytest.raises((UnreachableError, asyncio.CancelledError)):
        await waiting
    assert time.monotonic() - start < 5
    assert asyncio.all_tasks() == before


async def test_too_many_calls_at_once_are_turned_away(handler: Any) -> None:
    async with (
        serve(handler, "127.0.0.1:0", ByteCounter(), stop_seconds=0, max_concurrent_rpcs=1) as port,
        SwarmClient(f"127.0.0.1:{port}", ByteCounter()) as client,
    ):
        await client.hello(pb.HelloRequest())
        waiting = asyncio.create_task(client.poll(pb.PollRequest(known=1), seconds=20))
        await handler.is_waiting.wait()
        with pytest.raises(UnreachableError, match="too busy"):
            await client.hello(pb.HelloRequest())
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
