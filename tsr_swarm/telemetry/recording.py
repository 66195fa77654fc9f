"""A run's events in a file: written as they happen, and read again by replays, restarts and screens."""

import contextlib
import logging
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tsr_swarm.telemetry.events import MAX_LINE, Stamped, Warned, decode_stamped, encode
from tsr_swarm.telemetry.fold import fold_all
from tsr_swarm.telemetry.log import Sink
from tsr_swarm.telemetry.snapshot import SwarmSnapshot
from tsr_swarm.telemetry.text import plural
from tsr_swarm.telemetry.writer import BackgroundWriter

log = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"  # in the coordinator's folder
LIMIT = 64 << 20  # bytes that wait for a slow disk


def recording(path: Path) -> contextlib.AbstractContextManager[Sink]:
    """Append each event to the file ``path``, made with its folder when missing. Raises OSError if it cannot be.

    A pipe or a disk that takes nothing for a long time does not delay the run: lines are left out, and an event says
    so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return _appending(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOCTTY, 0o666))  # a FIFO opens at once


@contextlib.contextmanager
def _appending(fd: int) -> Iterator[Sink]:
    writer = BackgroundWriter(fd, _gap, limit=LIMIT)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode) and (size := os.fstat(fd).st_size) and os.pread(fd, 1, size - 1) != b"\n":
            writer.put(b"\n")  # a line that a crash cut off must not swallow the next one
        yield lambda line: writer.put(f"{line}\n".encode())
    finally:
        lost = writer.close()
        if lost:  # the writer's thread may still hold the file
            log.warning("The last %s of a recording could not be written.", plural(lost, "line"))
        else:
            os.close(fd)


def _gap(count: int) -> bytes:
    sentence = f"{plural(count, 'line')} of this recording could not be written in time."
    return f"{encode(Warned(message=sentence), time.time())}\n".encode()


def read_recording(path: Path) -> Iterator[Stamped]:
    """Events of a recorded run, in order, without lines that are no events. Raises OSError."""
    for line in read_lines(path):
        stamped = decode_stamped(line)
        if stamped is not None:
            yield stamped


def read_lines(path: Path) -> Iterator[str]:
    """Lines of ``path``, however damaged the file is; none is longer than an event can be."""
    with path.open(encoding="utf-8", errors="replace") as stream:
        while line := stream.readline(MAX_LINE + 1):
            yield line


def read_history(folder: Path) -> SwarmSnapshot:
    """The state of the run whose coordinator keeps its events in ``folder``; an empty one where there are none.

    A screen that opens after a restart goes on from it. Losses, bytes and the log are those of the whole run; the
    peers, the open round and the address are left out: they ended with the process that reported them.
    """
    try:
        recorded = fold_all(SwarmSnapshot(), read_recording(folder / EVENTS_FILE))
    except OSError:
        return SwarmSnapshot()
    ended = replace(recorded, address="", peers={}, leader="", is_leaderless=False, finished=None)
    return replace(ended, phase="", phase_reason="", deadline=None)
