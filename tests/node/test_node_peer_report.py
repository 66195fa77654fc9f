"""Connections are sampled seldom, and a report has all bytes all the same."""

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.node.events.peer_report import SAMPLE_SECONDS, PeerReporter
from tsr_swarm.telemetry.byte_counter import ByteCounter
from tsr_swarm.transport.tcp_info import KernelBytes, KernelTotals, is_supported


class Counted(KernelBytes):
    """Counts its samples."""

    samples = 0

    def sample(self) -> KernelTotals | None:
        self.samples += 1
        return super().sample()


@given(waits=st.lists(st.floats(0, 4 * SAMPLE_SECONDS), max_size=40))
def test_connections_are_sampled_every_few_seconds_however_often_a_node_polls(waits: list[float]) -> None:
    now, kernel = 0.0, Counted([])
    reporter = PeerReporter(ByteCounter(), kernel, "a" * 32, lambda: now)
    reporter.sample()
    for wait in waits:
        now += wait
        before = kernel.samples
        reporter.sample()
        assert kernel.samples - before <= 1
    assert kernel.samples <= 1 + (now + 1e-6) / SAMPLE_SECONDS
    assert kernel.samples >= 1 + sum(wait >= SAMPLE_SECONDS for wait in waits)


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        there = socket.create_connection(server.getsockname())
        here, _ = server.accept()
        with closing(there), closing(here):
            yield here, there


def test_a_report_has_all_bytes_though_the_last_sample_was_a_moment_ago(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    here, there = connection
    kernel = Counted([here.getsockname()[1]])
    reporter = PeerReporter(ByteCounter(), kernel, "a" * 32, lambda: 0.0)
    reporter.sample()
    for size in (1000, 2345):
        here.sendall(bytes(size))
        while size:
            size -= len(there.recv(size))
        reporter.sample()
    assert kernel.samples == 1
    both_ends = 2 * (1000 + 2345) if is_supported() else 0
    assert reporter.prepare(1, bytes(32)).overhead_bytes == both_ends
    assert reporter.prepare(2, bytes(32)).overhead_bytes == 0
