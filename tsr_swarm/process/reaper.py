"""Clean up after a process that started others, whichever way it ended. A script of the standard library alone.

    reaper.py GRACE                      reads orders from stdin and carries them out when stdin closes
    reaper.py launch PID_FILE COMMAND... runs COMMAND in a session of its own, after writing its process id

Stdin closes when its owner, which holds the other end of the pipe, is done or dead. An order is a line of a sign (``+``
adds it, ``-`` withdraws it), a kind, and a value: ``paused PID`` is a stopped process that has to go on; ``group PID``
a process group that is killed unless it ends by itself within GRACE seconds; ``folder PATH`` a folder to remove, and
the helper that was launched in it is killed.
"""

import contextlib
import os
import shutil
import signal
import sys
import time

POLL_SECONDS = 0.1


def main() -> None:
    if sys.argv[1] == "launch":
        launch(sys.argv[2], sys.argv[3:])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when its owner has, not before
    orders = read_orders()
    for pid in orders["paused"]:
        with contextlib.suppress(OSError):
            os.kill(int(pid), signal.SIGCONT)
    end_groups({int(pid) for pid in orders["group"]}, float(sys.argv[1]))
    for folder in orders["folder"]:
        remove_folder(folder)


def launch(pid_file: str, command: list[str]) -> None:
    """Become ``command``. Ctrl-C on a terminal is meant for the owner alone, hence the session."""
    os.setsid()
    with open(pid_file, "w") as file:
        file.write(f"{os.getpid()}\n")
    os.stat(pid_file)  # fails if the reaper was faster: then the command must not start any more
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execv(command[0], command)


def read_orders() -> dict[str, set[str]]:
    """The values by kind that were added and not withdrawn, once stdin has closed."""
    orders: dict[str, set[str]] = {"paused": set(), "group": set(), "folder": set()}
    for line in sys.stdin.buffer:
        sign, kind, value = os.fsdecode(line.removesuffix(b"\n")).split(" ", 2)
        if sign == "+":
            orders[kind].add(value)
        else:
            orders[kind].discard(value)
    return orders


def end_groups(groups: set[int], grace: float) -> None:
    """Kill the process groups that have not ended by themselves after ``grace`` seconds."""
    deadline = time.monotonic() + grace
    while (left := [group for group in groups if group_exists(group)]) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    for group in left:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    return True


def remove_folder(folder: str) -> None:
    """Remove ``folder`` and kill the helper that was launched in it.

    Moving the folder away first leaves two cases only: the helper's id is in it, or the helper will never start. The
    id may have been given to another process meanwhile, hence the look at its command line.
    """
    moved = f"{folder}.gone"
    try:
        os.rename(folder, moved)
    except OSError:
        return  # another reaper was faster
    with contextlib.suppress(OSError, ValueError), open(f"{moved}/pid") as file:
        pid = int(file.read())
        if f"{folder}/" in command_line(pid):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(moved, ignore_errors=True)


def command_line(pid: int) -> str:
    """What a process was started as; nothing if there is no such process."""
    try:
        with open(f"/proc/{pid}/cmdline", errors="replace") as file:
            return file.read()
    except OSError:
        with os.popen(f"ps -o args= -p {pid}") as answer:
            return answer.read()


if __name__ == "__main__":
    main()
