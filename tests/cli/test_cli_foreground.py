"""A command behind a screen: a real child process, and a screen that does as the test says."""

import asyncio
import sys
import tempfile
from pathlib import Path

import pytest

from tsr_swarm.cli.foreground import Feed, run_front
from tsr_swarm.process.shutdown import Shutdown
from tsr_swarm.process.supervisor import ChildError, ProcessGroup

# Prints a line, then does as told; writes to stderr, which must not reach anybody.
COMMAND = """
import signal, sys
def leave(*_):
    print("left", flush=True)
    sys.exit(130)
signal.signal(signal.SIGINT, leave)
print("noise", file=sys.stderr)
print("first", flush=True)
if sys.argv[1] == "fail":
    sys.exit("tsr-swarm: It is full; make room.")
if sys.argv[1] == "start":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    print("second", flush=True)
if sys.argv[1] in ("wait", "start"):
    while True: signal.pause()
if sys.argv[1] == "go on":
    import os, time
    while not os.path.exists(sys.argv[2]): time.sleep(0.01)
print("last", flush=True)
"""


class FakeScreen:
    """Stays up until it is told to close, as Textual does."""

    def __init__(self) -> None:
        self.closing = asyncio.Event()
        self.was_closed = False

    async def take_terminal(self) -> None:
        await self.closing.wait()
        self.was_closed = True

    def exit(self) -> None:
        self.closing.set()


class Front:
    """Runs one command behind one screen and keeps what came of it."""

    def __init__(self) -> None:
        self.screen, self.stop = FakeScreen(), Shutdown()
        self.lines: list[str] = []
        self.closed_at: int | None = None
        self.has_printed, self.has_ended, self.has_closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(self, *how: str) -> None:
        async with ProcessGroup() as group, asyncio.timeout(60):
            await run_front(
                group=group,
                name="command",
                command=[sys.executable, "-c", COMMAND, *how],
                screen=self.screen,
                see=self.see,
                closed=self.closed,
                stop=self.stop,
            )

    def see(self, line: bytes) -> None:
        self.lines.append(line.decode().strip())
        (self.has_printed if line else self.has_ended).set()

    def closed(self) -> None:
        self.closed_at = len(self.lines)
        self.has_closed.set()


async def test_a_command_that_has_ended_well_stays_on_screen_until_it_is_closed() -> None:
    front = Front()
    running = asyncio.create_task(front.run("end"))
    await front.has_ended.wait()
    assert not running.done()
    front.screen.exit()
    await running
    assert front.lines == ["first", "last", ""]
    assert front.closed_at is None, "nothing goes on behind it"


async def test_a_closed_terminal_ends_a_screen_whose_command_is_over() -> None:
    """Once the screen of a finished run stayed up for ever after its terminal was gone."""
    front = Front()
    running = asyncio.create_task(front.run("end"))
    await front.has_ended.wait()
    front.stop.request()
    await running
    assert front.screen.was_closed


async def test_a_closed_screen_leaves_the_command_running(tmp_path: Path) -> None:
    front = Front()
    running = asyncio.create_task(front.run("go on", str(tmp_path / "flag")))
    await front.has_printed.wait()
    front.screen.exit()
    await front.has_closed.wait()
    (tmp_path / "flag").touch()
    await running
    assert front.closed_at == 1
    assert front.lines == ["first", "last", ""]


async def test_a_command_that_fails_closes_the_screen_and_says_why() -> None:
    front = Front()
    with pytest.raises(ChildError, match=r"^It is full; make room\.$"):
        await front.run("fail")
    assert front.screen.was_closed


async def test_a_command_that_fails_says_why_where_no_temporary_folder_can_be_written_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(ChildError, match=r"^It is full; make room\.$"):
        await Front().run("fail")


async def test_a_stop_is_passed_on_and_closes_the_screen_when_the_command_has_left() -> None:
    front = Front()
    running = asyncio.create_task(front.run("wait"))
    await front.has_printed.wait()
    front.stop.request()
    await running
    assert front.lines == ["first", "left", ""]
    assert front.screen.was_closed


async def test_a_stop_before_the_command_can_see_to_it_is_no_failure() -> None:
    """Once a terminal that closed, or Ctrl-C, right after the start was told as an unexpected end by a signal."""
    front = Front()
    running = asyncio.create_task(front.run("start"))
    while "second" not in front.lines:
        await front.has_printed.wait()
        front.has_printed.clear()
    front.stop.request()
    await running
    assert front.lines == ["first", "second", ""]


async def test_a_stop_before_the_command_s_own_code_begins_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Python that is interrupted while it loads its site ends with 1, as a command that has failed does."""
    (tmp_path / "sitecustomize.py").write_text('import signal\nprint("first", flush=True)\nsignal.pause()\n')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    front = Front()
    running = asyncio.create_task(front.run("wait"))
    await front.has_printed.wait()
    front.stop.request()
    await running
    assert front.lines == ["first", ""]


async def test_a_feed_gives_lines_in_order_and_then_its_end_for_ever() -> None:
    feed = Feed()
    for line in (b"one\n", b"two\n", b""):
        feed.put(line)
    assert [await feed.readline() for _ in range(4)] == [b"one\n", b"two\n", b"", b""]
