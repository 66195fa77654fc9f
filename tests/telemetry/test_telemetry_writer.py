"""Writing to real pipes and terminals without a reader, or with a late one."""

import asyncio
import fcntl
import os
import re
import threading
from collections.abc import Iterator

import pytest

from tsr_swarm.telemetry.writer import BackgroundWriter, has_hung_up

PIECE = b"x" * 99 + b"\n"
BOUND = 60.0  # seconds


class Pipe:
    """A small pipe, or a terminal, both ends of which are here."""

    def __init__(self, ends: tuple[int, int]) -> None:
        self.reads, self.writes = ends
        os.set_blocking(self.writes, False)

    def close_reader(self) -> None:
        if self.reads >= 0:
            os.close(self.reads)
            self.reads = -1

    def read_until(self, end: bytes) -> bytes:
        seen = b""
        while end not in seen:
            seen = (seen + os.read(self.reads, 1 << 16)).replace(b"\r\n", b"\n")
        return seen


@pytest.fixture(params=["pipe", "terminal"])
def pipe(request: pytest.FixtureRequest) -> Iterator[Pipe]:
    if request.param == "pipe":
        ends = Pipe(os.pipe())
        fcntl.fcntl(ends.writes, fcntl.F_SETPIPE_SZ, 4096)
    else:
        ends = Pipe(os.openpty())
    yield ends
    ends.close_reader()
    os.close(ends.writes)


def gap(count: int) -> bytes:
    return b"%d dropped\n" % count


def filled(pipe: Pipe) -> BackgroundWriter:
    """A writer of more than the pipe holds."""
    writer = BackgroundWriter(pipe.writes, gap)
    for _ in range(1000):
        writer.put(PIECE)
    return writer


def test_a_reader_gets_everything_in_order(pipe: Pipe) -> None:
    writer = BackgroundWriter(pipe.writes, gap)
    lines = [b"line %d\n" % number for number in range(5000)]
    for line in lines:
        writer.put(line)
    writer.put(b"end\n")
    assert pipe.read_until(b"end\n") == b"".join(lines) + b"end\n"
    assert writer.close() == 0


def test_a_slow_reader_delays_nobody_and_dropped_pieces_are_counted_in_their_place(pipe: Pipe) -> None:
    writer = BackgroundWriter(pipe.writes, gap, limit=50 * len(PIECE))
    for _ in range(10_000):
        writer.put(PIECE)
    writer.put(b"end\n")
    seen = pipe.read_until(b"end\n")
    counts = [int(count) for count in re.findall(rb"^(\d+) dropped$", seen, re.MULTILINE)]
    assert sum(counts) > 0
    assert sum(counts) + seen.count(PIECE) == 10_000
    assert seen.endswith(PIECE + b"end\n"), "the newest are kept"


def test_a_closed_reader_ends_the_writing_and_is_reported_once(pipe: Pipe) -> None:
    errors: list[OSError] = []
    has_failed = threading.Event()
    writer = BackgroundWriter(pipe.writes, gap, lambda error: (errors.append(error), has_failed.set())[0])
    pipe.close_reader()
    writer.put(PIECE)
    assert has_failed.wait(BOUND)
    with pytest.raises(OSError, match=r"Broken pipe|Input/output error"):
        writer.put(PIECE)
    assert len(errors) == 1
    assert has_hung_up(pipe.writes)


def test_closing_gives_up_on_a_reader_that_takes_nothing_and_says_how_much_is_lost(pipe: Pipe) -> None:
    writer = filled(pipe)
    writer.put(b"end\n")
    assert 0 < writer.close(0.1) <= 1001
    assert pipe.read_until(b"end\n").endswith(PIECE + b"end\n"), "should it read after all"


def test_a_piece_that_failed_counts_as_lost() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    writer = BackgroundWriter(full, gap)
    writer.put(PIECE)
    assert writer.close() == 1
    os.close(full)


@pytest.mark.parametrize("is_read", [True, False])
async def test_a_caller_can_wait_until_all_is_read_or_the_reader_has_gone(pipe: Pipe, is_read: bool) -> None:
    writer = filled(pipe)
    waiting = asyncio.create_task(writer.catch_up(0))
    await asyncio.sleep(0)
    assert not waiting.done()
    if is_read:
        writer.put(b"end\n")
        assert await asyncio.to_thread(pipe.read_until, b"end\n") == 1000 * PIECE + b"end\n"
    else:
        pipe.close_reader()
    async with asyncio.timeout(BOUND):
        await waiting


def test_a_piece_after_the_end_is_not_written(pipe: Pipe) -> None:
    writer = BackgroundWriter(pipe.writes, gap)
    writer.put(PIECE)
    assert writer.close() == 0
    writer.put(b"late\n")
    assert writer.close() == 0
    os.write(pipe.writes, b"end\n")
    assert pipe.read_until(b"end\n") == PIECE + b"end\n"


def test_a_forked_process_writes_by_itself(pipe: Pipe) -> None:
    writer = BackgroundWriter(pipe.writes, gap)
    writer.put(b"parent\n")
    assert pipe.read_until(b"parent\n") == b"parent\n"
    child = os.fork()
    if child == 0:
        writer.put(b"child\n")
        os._exit(0)
    os.waitpid(child, 0)
    assert pipe.read_until(b"child\n") == b"child\n"
