"""The terminal while a screen is on it: only the screen reaches it."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

_TAKEN = (signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH, signal.SIGTTIN, signal.SIGTTOU)  # by Textual, for good


@contextlib.contextmanager
def private_screen(log: Path | None = None) -> Iterator[None]:
    """Let only the app reach the terminal.

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
