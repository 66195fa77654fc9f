"""The standard streams of this process, made safe to print to."""

import contextlib
import io
import os
import sys


def open_standard_streams() -> None:
    """Open those that are closed on /dev/null, and have stdout escape what its encoding does not have.

    The number of a closed one would go to the next file that is opened, and what is printed would land in that.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def drop_stdout() -> None:
    """Let what is still to be flushed to a closed stdout vanish, or Python complains at its exit."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
