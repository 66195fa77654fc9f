"""How a process learns that it should stop, and how it notices that its parent is gone.

The first Ctrl-C, SIGTERM or SIGHUP asks to finish the round and leave; the second to leave at once. A process that
was started by another of ours leaves at once when that one disappears, however it ended.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

PARENT_VARIABLE = "TSR_SWARM_PARENT"  # the process id of the one that started this process
INTERRUPTED = 130  # exit code
SENTENCE_PREFIX = "tsr-swarm: "  # of the one line on stderr that says why a command failed
POLL_SECONDS = 0.5
CANCEL_SECONDS = 5.0  # from the immediate stop until the work is cancelled ...
GIVE_UP_SECONDS = 10.0  # ... and until the process ends whatever still holds it: a long step, a stuck thread
ECHO_SECONDS = 1.0  # one closing terminal, or timeout(1), sends the same signal twice
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1

T = TypeVar("T")


class Shutdown:
    """A request to stop: ``graceful`` is set to finish the round and leave, ``immediate`` to leave at once."""

    def __init__(self) -> None:
        self.graceful = asyncio.Event()
        self.immediate = asyncio.Event()
        self.has_hung_up = False

    def request(self) -> None:
        """Ask once: graceful. Ask again: immediate."""
        if self.graceful.is_set():
            self.immediate.set()
        self.graceful.set()

    def hang_up(self) -> None:
        """Ask once, however often it is noticed that the terminal, or the reader of the output, has gone."""
        if not self.has_hung_up:
            self.has_hung_up = True
            self.request()

    def terminate(self) -> None:
        """Ask to leave at once."""
        self.graceful.set()
        self.immediate.set()


def tie_to_parent(environ: Mapping[str, str] = os.environ) -> int | None:
    """Have the kernel send SIGTERM when our parent dies, if we were started by one of ours. Returns its process id.

    Call it first thing, before slow imports: until a loop runs, the signal simply ends the process.
    """
    text = environ.get(PARENT_VARIABLE, "")
    if not text.isdigit():
        return None
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != int(text):
        raise SystemExit(INTERRUPTED)  # it died before we could ask
    return int(text)


def run_until_stopped(main: Callable[[Shutdown], Awaitable[None]], parent: int | None = None) -> int:
    """Run ``main`` to its end in a new event loop and return 0, or 130 if a stop was asked before it ended.

    ``main`` sees to both kinds of stop itself; it is cancelled ``CANCEL_SECONDS`` after ``immediate`` if it still runs.
    Its exceptions pass through.
    """
    with _Watch(parent) as watch, asyncio.Runner() as runner:
        return runner.run(_supervise(main, watch))


async def run_unless(asked: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of ``work``; None if ``asked``, such as ``Shutdown.graceful``, was set first, which cancels it."""
    task, waiter = asyncio.create_task(work), asyncio.create_task(asked.wait())
    try:
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()
        task.cancel()  # does nothing to work that is done
        await asyncio.wait({task})
    return None if task.cancelled() else task.result()


async def _supervise(main: Callable[[Shutdown], Awaitable[None]], watch: "_Watch") -> int:
    stop = Shutdown()
    with watch.attached(stop), _signals_ask(stop, watch.is_orphan):
        work = asyncio.ensure_future(main(stop))
        immediate = asyncio.create_task(stop.immediate.wait())
        try:
            await asyncio.wait({work, immediate}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await asyncio.wait({work}, timeout=CANCEL_SECONDS)
        finally:
            immediate.cancel()
            work.cancel()  # does nothing to work that is done
        with contextlib.suppress(asyncio.CancelledError):
            await work
        return INTERRUPTED if stop.graceful.is_set() else 0


@contextlib.contextmanager
def _signals_ask(stop: Shutdown, is_orphan: Callable[[], bool]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    received: dict[int, float] = {}
    terminals = [fd for fd in (1, 2) if os.isatty(fd)]

    def receive(number: int) -> None:
        if number == signal.SIGHUP:
            _release(terminals)
        before, received[number] = received.get(number), loop.time()
        if is_orphan():
            stop.terminate()
        elif number == signal.SIGHUP and before is None:
            stop.hang_up()
        elif number == signal.SIGINT or before is None or loop.time() - before > ECHO_SECONDS:
            stop.request()

    # A SIGHUP that is ignored (nohup) stays so. SIGINT does not: a script's "command &" ignores it by accident.
    mine = [s for s in _SIGNALS if not (s == signal.SIGHUP and signal.getsignal(s) == signal.SIG_IGN)]
    for number in mine:
        loop.add_signal_handler(number, receive, number)
    try:
        yield
    finally:
        for number in mine:
            loop.remove_signal_handler(number)


def _release(terminals: Sequence[int]) -> None:
    """Redirect file descriptors of closed terminals to /dev/null: then no writer has to handle the error."""
    for fd in terminals:
        if not os.isatty(fd):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, fd)
            os.close(null)


class _Watch:
    """Ends this process when its parent has gone, or when it does not end after it was asked to.

    A thread, so that neither a busy event loop nor a stuck one keeps an orphan alive.
    """

    def __init__(self, parent: int | None) -> None:
        self._parent = parent
        self._closed = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: Shutdown | None = None
        self._left = GIVE_UP_SECONDS
        self._is_alive = True  # the loop answered since the last look
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        # Once the immediate stop was asked the thread stays: the interpreter may still wait for other threads to end.
        if self._stop is None or not self._stop.immediate.is_set():
            self._closed.set()
            self._thread.join()

    def is_orphan(self) -> bool:
        return self._parent is not None and os.getppid() != self._parent

    @contextlib.contextmanager
    def attached(self, stop: Shutdown) -> Iterator[None]:
        """Tell ``stop`` of what this watch sees, while the running loop runs."""
        self._stop, self._loop = stop, asyncio.get_running_loop()
        try:
            yield
        finally:
            self._loop = None

    def _run(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            stop, is_orphan = self._stop, self.is_orphan()
            is_stuck = stop is not None and stop.graceful.is_set() and not self._is_alive
            self._is_alive = False
            if not self._call(self._answer):
                self._answer()  # there is no loop that could be stuck
            if is_orphan and stop is not None:
                self._call(stop.terminate)
            has_to_end = is_orphan or is_stuck or (stop is not None and stop.immediate.is_set())
            self._left = self._left - POLL_SECONDS if has_to_end else GIVE_UP_SECONDS
            if self._left <= 0:
                os._exit(INTERRUPTED)  # without a word; reapers clean up what it leaves

    def _answer(self) -> None:
        self._is_alive = True

    def _call(self, function: Callable[[], None]) -> bool:
        """Have the loop call ``function``; False if there is no loop."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it closed in between
                loop.call_soon_threadsafe(function)
                return True
        return False
