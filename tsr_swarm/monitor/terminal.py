"""Take the terminal for a screen: it may stop taking output, close, or be used by other programs in between."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from textual.app import App
from textual.drivers.linux_driver import LinuxDriver

from tsr_swarm.telemetry.writer import BackgroundWriter, has_hung_up

LIMIT = 1 << 17  # bytes that wait for the terminal: one or two full frames of a large terminal
_END_OF_FRAME = "\x1b[?2026l"  # so that a terminal shows at once what follows a frame that was dropped
_TAKEN = (signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH, signal.SIGTTIN, signal.SIGTTOU)  # Textual keeps them


@contextlib.contextmanager
def private_screen(log: Path | None = None) -> Iterator[None]:
    """Keep the terminal for the app alone.

    A library in C writes to file descriptors 1 and 2, past ``sys.stderr``; they lead to ``log``, or nowhere, while the
    app, which takes ``sys.__stdout__`` and ``sys.__stderr__``, keeps copies of the terminal's.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = sys.__stdout__, sys.__stderr__
    handlers = {number: signal.getsignal(number) for number in _TAKEN}
    elsewhere = os.open(log or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    with os.fdopen(os.dup(1), "w") as output, os.fdopen(os.dup(2), "w") as errors:
        try:
            os.dup2(elsewhere, 1)
            os.dup2(elsewhere, 2)
            sys.__stdout__, sys.__stderr__ = output, errors  # type: ignore[misc]
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            sys.__stdout__, sys.__stderr__ = kept  # type: ignore[misc]
            os.dup2(output.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            os.close(elsewhere)


class TerminalDriver(LinuxDriver):
    """Writes to stdout from a thread of its own, and ends the app when its terminal has closed.

    Textual's own driver has a short queue, which blocks the app once the terminal takes nothing. This one drops frames
    then, and draws the whole screen again when the terminal goes on.
    """

    def __init__(self, app: App[Any], *, debug: bool = False, mouse: bool = True, size: Any = None) -> None:
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        self.exit_event = _EndOfInput(self.fileno)
        self._output = -1  # a copy of stdout, which the writer's thread may hold for longer than this
        self._writer: BackgroundWriter | None = None

    def start_application_mode(self) -> None:
        assert sys.__stdout__ is not None, "no screen opens without it"
        self._output = os.dup(sys.__stdout__.fileno())
        self._writer = BackgroundWriter(self._output, self._draw_anew, limit=LIMIT)
        super().start_application_mode()  # type: ignore[no-untyped-call]

    def write(self, data: str) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):  # the terminal has closed; SIGHUP or the end of its input says so
                self._writer.put(data.encode("utf-8", "replace"))

    def close(self) -> None:
        """Write what is waiting, unless the terminal takes nothing."""
        super().close()
        writer, self._writer = self._writer, None
        if writer is not None and not writer.close():
            os.close(self._output)

    def _draw_anew(self, dropped: int) -> bytes:
        """Ask for a whole new frame; called by the writer's thread where frames were dropped."""
        self._call(lambda: self._app.refresh(layout=True))
        return _END_OF_FRAME.encode()

    def _run_input_thread(self) -> None:
        super()._run_input_thread()
        if has_hung_up(self.fileno):
            self._call(self._app.exit)

    def _sigcont_application(self, *_: object) -> None:
        """Take the terminal again: another program may have used it. A terminal that closes sends SIGCONT, too."""
        self._call(self._take_again)

    def _take_again(self) -> None:
        if not self._auto_restart or has_hung_up(self.fileno):
            return
        if not self._must_signal_resume:  # after SIGSTOP, which leaves no time to release it
            self.suspend_application_mode()
            self._must_signal_resume = True
        self.resume_application_mode()

    def _call(self, function: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(function)


class _EndOfInput(threading.Event):
    """Set when the input thread is to end; also when its terminal has closed, or it would never end."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def is_set(self) -> bool:
        return super().is_set() or has_hung_up(self._fd)
