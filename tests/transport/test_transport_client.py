import asyncio
import os
import re
import socket
from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import Any

import grpc
import pytest

from tests.transport.examples import CORE_BYTES, DATA, SECTIONS, envelope, pb_sections, published_header
from tests.wire.examples import PEER
from tsr_swarm.errors import PeerError, RefusedError, RunError, SwarmError, UnreachableError
from tsr_swarm.rounds import follower, leader
from tsr_swarm.telemetry.byte_counter import ByteCounter, Direction
from tsr_swarm.transport import server
from tsr_swarm.transport.base import Caller
from tsr_swarm.transport.client import LONGEST_PAUSE, SwarmClient, retry_while_unreachable
from tsr_swarm.transport.limits import CLIENT_OPTIONS, MAX_CONTROL_BYTES, POLL_SECONDS, client_options
from tsr_swarm.wire.compression import decompress
from tsr_swarm.wire.v1 import swarm_pb2 as pb


async def test_calls_of_one_message_each_way_arrive_unchanged_and_so_do_their_answers(pair: Any) -> None:
    calls = {
        "hello": pb.HelloRequest(protocol=3),
        "join": pb.JoinRequest(name="ann"),
        "describe_state": pb.DescribeStateRequest(round=5),
        "poll": pb.PollRequest(number=9),
        "tell": pb.TellRequest(sender=PEER, vote_request=pb.VoteRequest(term=5, is_trial=True)),
        "list_peers": pb.ListPeersRequest(roster=bytes(32)),
        "catch_up": pb.CatchUpRequest(applied=4),
        "report": pb.ReportRequest(round=3),
        "leave": pb.LeaveRequest(reason="Ctrl-C"),
        "watch": pb.WatchRequest(after=5),
    }
    replies = {name: await getattr(pair.client, name)(request) for name, request in calls.items()}
    assert replies == pair.handler.replies | {"tell": None}
    assert pair.handler.received == list(calls.values())
    assert pair.handler.callers == {Caller("127.0.0.1")}


async def test_the_largest_manifest_and_lists_of_ten_thousand_peers_fit_in_one_message(pair: Any) -> None:
    members = [pb.Member(peer_id=os.urandom(16), number=10**6 - 10_000 + number) for number in range(10_000)]
    large = {"hello": pb.HelloReply(manifest=os.urandom(4 << 20)), "list_peers": pb.ListPeersReply(members=members)}
    pair.handler.replies |= large
    assert await pair.client.hello(pb.HelloRequest()) == large["hello"]
    assert await pair.client.list_peers(pb.ListPeersRequest()) == large["list_peers"]
    sections = [pb.Section(kind="x" * 16, raw_bytes=2**40, wire_bytes=2**40, hash=bytes(32))] * 16
    result = pb.ShardResult(absent=bytes([255] * 1250), tokens=2**50, sections=sections)
    done = pb.TellRequest(sender=PEER, shard_done=pb.ShardDone(result=result, roster=bytes(32), kappas=[0.5] * 4096))
    await pair.client.tell(done)
    assert pair.handler.received[-1] == done


async def test_a_control_message_that_is_too_long_is_refused(pair: Any) -> None:
    for call in (
        pair.client.hello(pb.HelloRequest(package_version="x" * (MAX_CONTROL_BYTES + 1))),
        pair.client.tell(pb.TellRequest(vote_reply=pb.VoteReply(reason="x" * MAX_CONTROL_BYTES))),
    ):
        with pytest.raises(PeerError) as refusal:
            await call
        assert refusal.value.reason == "size"
    with pytest.raises(UnreachableError):
        await pair.client.hello(pb.HelloRequest(package_version="x" * (1 << 20)))
    assert pair.handler.received == []


async def test_the_handler_is_cancelled_when_a_caller_ends_its_poll(pair: Any) -> None:
    polling = asyncio.create_task(pair.client.poll(pb.PollRequest(known=1)))
    await pair.handler.is_waiting.wait()
    polling.cancel()
    async with asyncio.timeout(10):
        await pair.handler.has_hung_up.wait()


async def test_a_poll_that_is_held_too_long_ends_at_its_deadline_on_both_sides(pair: Any) -> None:
    with pytest.raises(UnreachableError, match=r"did not answer Poll within 0\.3 s"):
        await pair.client.poll(pb.PollRequest(known=1), seconds=0.3)
    async with asyncio.timeout(10):
        await pair.handler.has_hung_up.wait()


async def test_an_upload_a_round_and_a_shard_arrive_whole(pair: Any) -> None:
    reply = await pair.client.submit(envelope(), DATA)
    assert reply.counted
    ((header, data),) = pair.handler.submitted
    assert (header.sections, data) == (SECTIONS, DATA)
    for served in (DATA, [DATA[:CORE_BYTES], DATA[CORE_BYTES:]]):
        pair.handler.published = (published_header(), served)
        received = await pair.client.fetch_published(pb.FetchPublishedRequest(), max_bytes=len(DATA))
        assert received == (published_header(), DATA)
    pair.handler.shard = (pb_sections(), DATA)
    assert await pair.client.fetch_shard(pb.FetchShardRequest(round=7), pb_sections()) == DATA


@pytest.mark.parametrize("data", [DATA + b"x", DATA * 2, DATA[:-1], b""], ids=["one more", "twice", "one less", "none"])
async def test_bytes_of_another_length_than_announced_are_refused(pair: Any, data: bytes) -> None:
    pair.handler.published, pair.handler.shard = (published_header(), data), (pb_sections(), data)
    for call in (
        pair.client.submit(envelope(), data),
        pair.client.fetch_published(pb.FetchPublishedRequest(), max_bytes=len(DATA)),
        pair.client.fetch_shard(pb.FetchShardRequest(round=7), pb_sections()),
    ):
        with pytest.raises(PeerError) as refusal:
            await call
        assert refusal.value.reason == "length"
    assert pair.handler.submitted == []


async def test_a_refused_envelope_ends_the_upload_with_its_sentence(pair: Any) -> None:
    """Now and then gRPC loses the sentence with what was still on its way; the uploader tries again."""

    async def upload() -> None:
        for _ in range(5):
            with suppress(UnreachableError):
                await pair.client.submit(envelope(round_=6), DATA * 50)

    with pytest.raises(PeerError, match=r"for round 6, but round 7 is open\.") as refusal:
        await upload()
    assert refusal.value.reason == "round"
    assert pair.server_counter.totals(Direction.RECEIVED).get("core", 0) == 0


@pytest.mark.parametrize("header_only", [False, True])
async def test_a_published_round_beyond_the_bound_is_refused_before_it_is_received(
    pair: Any, header_only: bool
) -> None:
    pair.handler.published, request = (published_header(), DATA), pb.FetchPublishedRequest(header_only=header_only)
    with pytest.raises(PeerError, match="more than"):
        await pair.client.fetch_published(request, max_bytes=len(DATA) - 1)
    assert "core" not in pair.client_counter.totals(Direction.RECEIVED)
    received = await pair.client.fetch_published(request, max_bytes=len(DATA))
    assert received == (published_header(), b"" if header_only else DATA)
    assert ("core" in pair.client_counter.totals(Direction.RECEIVED)) != header_only


async def test_a_shard_is_given_up_after_a_silence(pair: Any) -> None:
    async def fetch_shard(request: pb.FetchShardRequest, caller: Caller) -> None:
        await asyncio.Event().wait()

    pair.handler.fetch_shard = fetch_shard
    with pytest.raises(UnreachableError, match=r"within 0\.1 s"):
        await pair.client.fetch_shard(pb.FetchShardRequest(round=7), pb_sections(), silence=0.1)


async def test_state_chunks_arrive_and_a_download_can_start_in_the_middle(pair: Any) -> None:
    pair.handler.chunks = [os.urandom(4 << 20), bytes(10), b"end"]
    async with aclosing(pair.client.fetch_state(pb.FetchStateRequest(round=5))) as chunks:
        received = [decompress(chunk.data, len(pair.handler.chunks[chunk.index])) async for chunk in chunks]
    assert received == pair.handler.chunks
    rest = [chunk.index async for chunk in pair.client.fetch_state(pb.FetchStateRequest(round=5, first_chunk=1))]
    assert rest == [1, 2]


async def test_a_download_can_be_ended_early_without_a_warning(pair: Any, caplog: pytest.LogCaptureFixture) -> None:
    pair.handler.chunks = [os.urandom(1 << 20)] * 20
    async with aclosing(pair.client.fetch_state(pb.FetchStateRequest(round=5))) as chunks:
        assert (await anext(chunks)).index == 0
    assert (await pair.client.poll(pb.PollRequest())).news.version == 1
    assert caplog.records == []


async def test_a_caller_that_hangs_up_while_it_is_being_sent_something_is_no_failure(
    pair: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write(*_: object) -> None:
        raise grpc.aio.InternalError("the call is over")  # as grpc does, if it learns of it in the middle of a message

    monkeypatch.setattr(server, "_write", write)
    pair.handler.chunks = [b"state"]
    assert [chunk async for chunk in pair.client.fetch_state(pb.FetchStateRequest(round=5))] == []
    assert caplog.records == []


async def test_a_refusal_before_a_stream_arrives(pair: Any) -> None:
    with pytest.raises(RefusedError, match="State 5 has replaced it"):
        await anext(pair.client.fetch_state(pb.FetchStateRequest(round=4)))
    with pytest.raises(RefusedError, match="Round 6 is not kept here"):
        await pair.client.fetch_shard(pb.FetchShardRequest(round=6), pb_sections())


@pytest.mark.parametrize(
    ("raised", "arrives"),
    [
        (RefusedError("é" * 5000), RefusedError),
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
    sentence = str(raised).replace("\x1b", " ")[:100]
    assert sentence in str(refusal.value)
    assert getattr(raised, "reason", None) == getattr(refusal.value, "reason", None)


async def test_a_port_without_a_listener_fails_at_once() -> None:
    with socket.socket() as unused:  # bound, not listening: its port refuses connections
        unused.bind(("127.0.0.1", 0))
        counter = ByteCounter()
        async with SwarmClient(f"127.0.0.1:{unused.getsockname()[1]}", counter) as client:
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
            assert counter.totals(Direction.SENT) == {}


@pytest.mark.parametrize("address", ["no-such-host.invalid:1", "unix:1"])
async def test_a_name_that_does_not_resolve_is_named_and_is_no_socket_on_this_machine(address: str) -> None:
    """gRPC takes unix:1 for a socket in the working folder."""
    async with SwarmClient(address, ByteCounter()) as client:
        with pytest.raises(UnreachableError, match=re.escape(address)) as failure:
            await client.hello(pb.HelloRequest(), seconds=5)
        assert "No such file" not in str(failure.value)


class Node:
    """A node that can be reached from ``opens`` on, and a clock that only sleeping moves."""

    def __init__(self, opens: float, failure: Callable[[str], SwarmError] = UnreachableError) -> None:
        self.now, self.opens, self.failure = 0.0, opens, failure
        self.calls: list[float] = []
        self.said: list[str] = []

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    async def call(self) -> float:
        self.calls.append(self.now)
        if self.now < self.opens:
            raise self.failure("No node is there.")
        return self.now

    async def retry(self, seconds: float) -> float:
        return await retry_while_unreachable(
            self.call, seconds, self.said.append, clock=lambda: self.now, sleep=self.sleep
        )


async def test_a_node_that_comes_later_is_found_within_a_pause_and_one_sentence_says_so() -> None:
    node = Node(opens=30.0)
    assert await node.retry(60.0) <= 30.0 + LONGEST_PAUSE
    assert node.said == ["No node is there. Trying again for 1 min 00 s."]


async def test_a_node_that_never_comes_is_called_to_the_end_and_the_error_says_for_how_long() -> None:
    node = Node(opens=float("inf"))
    with pytest.raises(UnreachableError, match=r"^No node is there\. Tried for 20 s; --wait sets for how long\.$"):
        await node.retry(20.0)
    assert node.calls[-1] == node.now == 20.0


async def test_an_answer_a_refusal_and_a_lack_of_time_each_end_the_calls_at_once() -> None:
    here, away, refusing = Node(opens=0.0), Node(opens=1.0), Node(opens=1.0, failure=RefusedError)
    assert await here.retry(60.0) == 0.0
    with pytest.raises(UnreachableError, match=r"^No node is there\.$"):
        await away.retry(0.0)
    with pytest.raises(RefusedError):
        await refusing.retry(60.0)
    assert [(node.calls, node.said) for node in (here, away, refusing)] == [([0.0], [])] * 3


def test_a_poll_is_waited_for_as_long_as_a_follower_waits_and_longer_than_a_leader_holds_it() -> None:
    assert leader.HOLD_SECONDS < POLL_SECONDS == follower.POLL_SECONDS


def test_a_client_goes_through_the_proxy_that_it_is_given_and_no_other() -> None:
    direct, through = dict(client_options()), dict(client_options("127.0.0.1:9"))
    assert direct == dict(CLIENT_OPTIONS)
    assert direct["grpc.enable_http_proxy"] == 0
    assert through == {**direct, "grpc.enable_http_proxy": 1, "grpc.http_proxy": "http://127.0.0.1:9"}
