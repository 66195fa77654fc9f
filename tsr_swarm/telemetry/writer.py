"""Writing to a terminal, a pipe or a disk without ever waiting for it."""

import asyncio
import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

LIMIT = 4 << 20  # bytes that wait to be written; beyond it the oldest are dropped
CLOSE_SECONDS = 2.0  # without a byte taken: there is no reader any more
_LOOK_SECONDS = 1.0  # the descriptor may have become another file in between


class BackgroundWriter:
    """Writes pieces of bytes to a file descriptor, in order, from a thread of its own.

    ``put`` never blocks. When more than ``limit`` bytes wait, the oldest pieces are dropped, never the newest, and what
    ``gap`` makes of their number is written instead. ``failed`` is called once, in the thread, if writing fails.
    The thread is a daemon: a reader that reads nothing does not keep the process alive.
    """

    def __init__(
        self,
        fd: int,
        gap: Callable[[int], bytes],
        failed: Callable[[OSError], None] = lambda error: None,
        limit: int = LIMIT,
    ) -> None:
        self._fd, self._gap, self._failed, self._limit = fd, gap, failed, limit
        self._pid = os.getpid()
        self._changed = threading.Condition()  # reentrant: a signal handler may write while its thread does
        self._pieces: deque[bytes] = deque()
        self._size = 0  # bytes in them and in the one being written
        self._dropped = 0  # pieces, since the last gap
        self._taken = 0  # bytes, ever
        self._is_writing = self._is_closing = False
        self._error: OSError | None = None
        self._thread: threading.Thread | None = None
        self._waiting: list[Callable[[], object]] = []  # to be called when a piece has been written

    def put(self, piece: bytes) -> None:
        """Have ``piece`` written soon. Raises the OSError that ended the writing, once one has.

        After ``close`` it is left out: the descriptor may be another file's by then.
        """
        if os.getpid() != self._pid:  # a forked process has no such thread
            with contextlib.suppress(OSError):
                os.write(self._fd, piece)
            return
        with self._changed:
            if self._error is not None:
                raise self._error
            if self._is_closing:
                return
            self._pieces.append(piece)
            self._size += len(piece)
            while self._size > self._limit and len(self._pieces) > 1:
                self._size -= len(self._pieces.popleft())
                self._dropped += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    async def catch_up(self, most: int) -> None:
        """Return once at most ``most`` bytes wait: for callers that prefer waiting to dropped pieces."""
        loop = asyncio.get_running_loop()
        while True:
            written = asyncio.Event()
            with self._changed:
                if self._error is not None or self._size <= most:
                    return
                self._waiting.append(partial(loop.call_soon_threadsafe, written.set))
            await written.wait()

    def close(self, seconds: float = CLOSE_SECONDS) -> int:
        """Write what is waiting while some is taken every ``seconds``; returns how many pieces were lost."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            taken = -1
            while self._is_busy() and taken != self._taken:
                taken = self._taken
                self._changed.wait_for(lambda seen=taken: not self._is_busy() or self._taken != seen, seconds)  # type: ignore[misc]
            return len(self._pieces) + self._is_writing + self._dropped

    def _is_busy(self) -> bool:
        return self._error is None and self._size > 0

    def _run(self) -> None:
        try:
            while (piece := self._next()) is not None:
                self._write(piece)
                self._written(len(piece))
        except OSError as error:
            with self._changed:
                self._error = error
                self._wake_waiters()
            self._failed(error)

    def _next(self) -> bytes | None:
        """The next piece, after a notice of what was dropped before it; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._pieces or self._is_closing)
            if not self._pieces:
                return None
            self._is_writing = True
            piece = self._pieces.popleft()
            if self._dropped:
                gap, self._dropped = self._gap(self._dropped), 0
                self._size += len(gap)
                return gap + piece
            return piece

    def _written(self, count: int) -> None:
        with self._changed:
            self._is_writing = False
            self._size -= count
            self._wake_waiters()

    def _wake_waiters(self) -> None:
        self._changed.notify_all()
        for go_on in self._waiting:
            with contextlib.suppress(RuntimeError):  # its loop has closed
                go_on()
        self._waiting.clear()

    def _write(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:
            try:
                count = os.write(self._fd, rest)
            except BlockingIOError:
                wait_until_writable(self._fd, _LOOK_SECONDS)
                continue
            rest = rest[count:]
            with self._changed:
                self._taken += count
                self._changed.notify_all()


def wait_until_writable(fd: int, seconds: float) -> bool:
    """Whether ``fd`` takes bytes or has closed; waits ``seconds`` for it at most."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(1000 * seconds))


def has_hung_up(fd: int) -> bool:
    """Whether the terminal or pipe at ``fd`` has closed at its other end."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))
