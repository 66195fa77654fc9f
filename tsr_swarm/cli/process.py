"""Run a command's asynchronous work: output that never waits for its readers, signals, and the exit code."""

import asyncio
import contextlib
import errno
import io
import logging
import os
import stat
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import NoReturn, TextIO

import typer

from tsr_swarm.cli.output import Mode, gap_line, print_aside, set_up_logging
from tsr_swarm.process.shutdown import Shutdown, run_until_stopped, tie_to_parent
from tsr_swarm.telemetry.text import reason_text
from tsr_swarm.telemetry.writer import CLOSE_SECONDS, LIMIT, BackgroundWriter, has_hung_up, wait_until_writable

Work = Callable[[Shutdown], Awaitable[None]]
LEAVING = "Leaving after this round; Ctrl-C again leaves at once."
OUTPUT_IS_GONE = "The output is closed or full; leaving after this round."
END_SECONDS = 10.0  # that the end of a process waits for a reader that takes nothing


def run_process(mode: Mode, work: Work) -> NoReturn:
    """Run ``work`` until it ends or is stopped. Ends the command with exit code 0, or 130 after a stop.

    Printing and logging never wait for a reader; a closed stdout is a request to stop.
    """
    streams = Streams(mode)

    async def work_and_listen(stop: Shutdown) -> None:
        loop = asyncio.get_running_loop()

        def hang_up() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed, too
                loop.call_soon_threadsafe(stop.hang_up)

        streams.when_closed(hang_up)
        try:
            await work(stop)
        finally:
            if stop.graceful.is_set():
                streams.end_seconds = CLOSE_SECONDS

    with streams.installed():
        set_up_logging(mode)
        code = run_until_stopped(work_and_listen, tie_to_parent())
    raise typer.Exit(code)


def run_training(mode: Mode, work: Work) -> NoReturn:
    """Like ``run_process``, for work that finishes its round when it is asked to stop; with plain lines it says so."""

    async def work_and_say(stop: Shutdown) -> None:
        notice = asyncio.create_task(_say_leaving(stop))
        try:
            await work(stop)
        finally:
            notice.cancel()

    run_process(mode, work_and_say if mode is Mode.PLAIN else work)


async def _say_leaving(stop: Shutdown) -> None:
    await stop.graceful.wait()
    if not stop.immediate.is_set():
        print_aside(OUTPUT_IS_GONE if stop.has_hung_up else LEAVING)


class BackgroundStream(io.TextIOBase):
    """Replaces ``sys.stdout`` or ``sys.stderr``: whole lines go to a BackgroundWriter, and printing never waits."""

    encoding = "utf-8"

    def __init__(self, fd: int, mode: Mode, failed: Callable[[OSError], None]) -> None:
        self._fd, self._rest = fd, ""
        self._lock = threading.RLock()  # threads log, too
        self._is_finished = False
        self._writer = BackgroundWriter(fd, lambda count: f"{gap_line(mode, count)}\n".encode(), failed, LIMIT)

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                self._put(line + "\n")
        return len(text)

    def flush(self) -> None:
        with self._lock:
            if self._rest:
                self._put(self._rest)
                self._rest = ""

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    async def catch_up(self, most: int) -> None:
        """Return once at most ``most`` bytes wait to be read."""
        await self._writer.catch_up(most)

    def finish(self, seconds: float) -> int:
        """Write the lines that wait, while some of them are read every ``seconds``. Returns how many were dropped."""
        with self._lock:
            self.flush()
            self._is_finished = True  # lines that a library still logs are written directly
        return self._writer.close(seconds)

    def _put(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):  # reported once, to ``failed``
            if self._is_finished:
                os.write(self._fd, data)
            else:
                self._writer.put(data)


class Streams:
    """Both streams of this process, in which a line of ``mode`` stands for those that were dropped from stdout."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._is_closed = threading.Event()
        self._on_close: Callable[[], None] = lambda: None
        self.end_seconds = END_SECONDS

    def when_closed(self, on_close: Callable[[], None]) -> None:
        """Call ``on_close``, from any thread, when stdout takes no more: a closed pipe or terminal, a full disk."""
        self._on_close = on_close
        if self._is_closed.is_set():
            on_close()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Replace ``sys.stdout`` and ``sys.stderr``, if they have file descriptors."""
        kept = sys.stdout, sys.stderr
        with contextlib.ExitStack() as exits:
            try:
                sys.stdout = exits.enter_context(self._replacing(sys.stdout, self._mode, self._closed))
                sys.stderr = exits.enter_context(self._replacing(sys.stderr, Mode.PLAIN, lambda _: None))
                yield
            finally:
                sys.stdout, sys.stderr = kept

    @contextlib.contextmanager
    def _replacing(self, stream: TextIO, mode: Mode, failed: Callable[[OSError], None]) -> Iterator[TextIO]:
        fd = _descriptor(stream)
        if fd is None:
            yield stream
            return
        stream.flush()
        replacement = BackgroundStream(fd, mode, failed)
        with _without_blocking(fd) as give_up:
            try:
                yield replacement  # type: ignore[misc]  # all that is used of a TextIO
            finally:
                is_read = not replacement.finish(self.end_seconds) and wait_until_writable(fd, self.end_seconds)
                if not is_read:
                    give_up()  # or the sentence that says why a command failed would block

    def _closed(self, error: OSError) -> None:
        if error.errno not in (errno.EPIPE, errno.EIO):  # a full disk; who closes a pipe or a terminal knows that
            logging.getLogger(__name__).warning("The output cannot be written (%s), so this ends.", reason_text(error))
        self._is_closed.set()
        self._on_close()


async def catch_up(is_over: bool = False) -> None:
    """Wait for the reader of stdout, so that no line is dropped: for commands on which no other process depends."""
    if isinstance(sys.stdout, BackgroundStream):
        await sys.stdout.catch_up(0 if is_over else LIMIT // 2)


def _descriptor(stream: TextIO | None) -> int | None:
    try:
        return None if stream is None else stream.fileno()  # None: the process was started without it
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _without_blocking(fd: int) -> Iterator[Callable[[], None]]:
    """Make writes to a terminal or pipe at ``fd`` fail where they would block: libraries in C write there, too.

    Other processes share the open file and its mode; so it is opened again, for this process alone. Gives a function
    that redirects later writes to /dev/null; call it when there is no reader any more.
    """
    kept, is_given_up = os.dup(fd), False

    def give_up() -> None:
        nonlocal is_given_up
        is_given_up = True

    if os.isatty(fd) or stat.S_ISFIFO(os.fstat(fd).st_mode):
        with contextlib.suppress(OSError):  # such as a terminal of another user
            _redirect(fd, os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY))
    try:
        yield give_up
    finally:
        if is_given_up or has_hung_up(kept):
            os.close(kept)
            kept = os.open(os.devnull, os.O_WRONLY)
        _redirect(fd, kept)


def _redirect(fd: int, to: int) -> None:
    os.dup2(to, fd)
    os.close(to)
