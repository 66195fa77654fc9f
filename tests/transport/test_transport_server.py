import asyncio
import logging
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fixtures import assert_no_task_is_left
from tests.transport.examples import DATA, envelope
from tsr_swarm.errors import ConfigError, RunError, UnreachableError
from tsr_swarm.telemetry.byte_counter import ByteCounter
from tsr_swarm.transport.base import PIECE_BYTES
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.transport.limits import CLIENT_OPTIONS
from tsr_swarm.transport.server import serve
from tsr_swarm.wire.v1 import swarm_pb2 as pb
from tsr_swarm.wire.v1 import swarm_pb2_grpc


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
    async with grpc.aio.insecure_channel(f"127.0.0.1:{pair.port}", options=CLIENT_OPTIONS) as channel:
        stub: Any = swarm_pb2_grpc.SwarmStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.Submit(iter(requests), timeout=10)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    metadata: Any = failure.value.trailing_metadata()
    assert dict(metadata)["tsr-reason"] == reason


async def test_an_unexpected_failure_is_logged_and_not_sent(pair: Any, caplog: pytest.LogCaptureFixture) -> None:
    pair.handler.error = KeyError("/home/someone/secret")
    with caplog.at_level(logging.ERROR), pytest.raises(UnreachableError) as failure:
        await pair.client.hello(pb.HelloRequest())
    assert "secret" not in str(failure.value)
    assert "Traceback" not in str(failure.value)
    assert "secret" in caplog.text


async def test_an_address_that_cannot_be_used_is_one_sentence_with_the_reason_and_the_next_step(
    pair: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    for address, kind, sentence in (
        ("no-such-host.invalid:1", RunError, "Cannot listen on {}: .*(not known|resolution).*; choose"),
        ("192.0.2.1:7700", RunError, "Cannot listen on {}: .*Cannot assign.*; choose"),
        (f"127.0.0.1:{pair.port}", RunError, "Cannot listen on {}: the port is in use; stop .* choose another port"),
        ("31337", ConfigError, "'{}' is not an address"),
    ):
        with pytest.raises(kind, match=f"^{sentence.format(re.escape(address))}"):
            async with serve(pair.handler, address, ByteCounter()):
                pass
    with pytest.raises(ConfigError, match="port 0"):
        SwarmClient("127.0.0.1:0", ByteCounter())
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
    command, root = [sys.executable, "-m", "tests.transport.conftest"], Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            yield child, int(child.stdout.readline())
        finally:
            child.kill()


async def test_calls_to_a_stopped_server_end_at_their_deadline_and_work_again_when_it_goes_on() -> None:
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
    await assert_no_task_is_left(set())


async def test_a_killed_server_ends_a_waiting_call() -> None:
    with child_server() as (child, port):
        async with SwarmClient(f"127.0.0.1:{port}", ByteCounter()) as client:
            await client.hello(pb.HelloRequest())
            waiting = asyncio.create_task(client.poll(pb.PollRequest(known=1), seconds=20))
            await client.hello(pb.HelloRequest())  # by now the other call is on its way
            child.kill()
            with pytest.raises(UnreachableError):
                await asyncio.wait_for(waiting, 10)


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
    await assert_no_task_is_left(before)


async def test_too_many_calls_at_once_are_refused(handler: Any) -> None:
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
