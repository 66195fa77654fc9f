"""The terminal while a screen is on it: only the screen reaches it, and it may close at any moment."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Terminal(io.FileIO):
    """Swallows what a terminal that has closed does not take: Textual's writer would die of it, and then block us."""

    def write(self, data: "ReadableBuffer") -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


@contextlib.contextmanager
def private_screen(log: Path | None = None) -> Iterator[None]:
    """Let only the app reach the terminal.

    A library in C writes to file descriptors 1 and 2, past ``sys.stderr``; they lead to ``log``, or nowhere, while the
    app, which takes ``sys.__stdout__`` and ``sys.__stderr__``, keeps copies of the terminal's.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = sys.__stdout__, sys.__stderr__
    elsewhere = os.open(log or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    with _terminal_copy(1) as output, _terminal_copy(2) as errors:
        try:
            os.dup2(elsewhere, 1)
            os.dup2(elsewhere, 2)
            sys.__stdout__, sys.__stderr__ = output, errors  # type: ignore[misc]
            yield
        finally:
            sys.__stdout__, sys.__stderr__ = kept  # type: ignore[misc]
            os.dup2(output.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            os.close(elsewhere)


def _terminal_copy(number: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(_Terminal(os.dup(number), "w")), "utf-8", "replace")
