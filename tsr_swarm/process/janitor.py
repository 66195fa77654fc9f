"""Tidies up after a process that started others, whichever way it ended. A script of the standard library alone.

It is told on stdin what there is, one line each: ``group PID`` (a process group), ``gone PID``, ``paused PID`` (a
stopped process), ``resumed PID``, ``folder PATH`` (to be removed). When stdin closes, its parent is done or dead: what
is paused goes on, what is left of the groups gets a moment, in seconds as the argument says, to end by itself (see
lifeline.py) and is then killed, and the folders are removed.
"""

import contextlib
import os
import shutil
import signal
import sys
import time

POLL_SECONDS = 0.1


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when its parent has, not before
    groups, paused, folders = _listen()
    for pid in paused:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)
    _end(groups, float(sys.argv[1]))
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _listen() -> tuple[set[int], set[int], list[str]]:
    groups: set[int] = set()
    paused: set[int] = set()
    folders: list[str] = []
    for line in sys.stdin.buffer:
        word, _, rest = line.removesuffix(b"\n").partition(b" ")
        if word == b"group":
            groups.add(int(rest))
        elif word == b"gone":
            groups.discard(int(rest))
        elif word == b"paused":
            paused.add(int(rest))
        elif word == b"resumed":
            paused.discard(int(rest))
        elif word == b"folder":
            folders.append(os.fsdecode(rest))
    return groups, paused, folders


def _end(groups: set[int], grace: float) -> None:
    deadline = time.monotonic() + grace
    while (left := [pid for pid in groups if _is_there(pid)]) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    for pid in left:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
