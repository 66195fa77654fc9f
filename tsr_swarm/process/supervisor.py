"""Processes that are started here, and the helpers of libraries: they end with this process, whichever way it ends.

Each child leads its own session, so that a terminal's Ctrl-C reaches only us and we pass it on as we see fit. Three
things keep one from being left behind: ``ProcessGroup`` ends it, the child itself notices that we are gone
(shutdown.py), and a reaper process (reaper.py) ends what is stuck and removes our temporary folders.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal, Self

from tsr_swarm.errors import ConfigError, SwarmError
from tsr_swarm.process import reaper
from tsr_swarm.process.machine_limits import disk_errors
from tsr_swarm.process.shutdown import INTERRUPTED, PARENT_VARIABLE, SENTENCE_PREFIX
from tsr_swarm.telemetry.events import MAX_LINE

STOP_SECONDS = 4.0  # between asking the children to leave at once and killing them
REAPER_SECONDS = 8.0  # between our death and the reaper's killing those that have not noticed it
GUARD_SECONDS = 5.0  # at most, to remove a helper and its folder
POLL_SECONDS = 0.2
_TAIL_BYTES = 1 << 16
_HELPER_PREFIX = "tsr-swarm-"
_HELPER_OWNER = re.compile(re.escape(_HELPER_PREFIX) + r"([0-9]+)-")
_MAX_BASE_BYTES = 50  # a socket's whole path has at most 107, and macOS's 103


class ChildError(SwarmError):
    """A child failed. Carries the child's own sentence and exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Child:
    """A process that was started, and the process group that it leads."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process

    @property
    def exit_code(self) -> int | None:
        """None while it runs; the negative of the signal that ended it."""
        return self._process.returncode

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        while self._process.returncode is None:
            # wait() also waits for the pipe to close, which a process of its group may hold open. Not wait_for:
            # before Python 3.12 it drops a cancellation that arrives as the process ends.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._process.wait()
        return self._process.returncode

    async def lines(self) -> AsyncIterator[str]:
        """What it prints on stdout, line by line, to its end. Needs ``stdout=PIPE``."""
        assert self._process.stdout is not None, "started without a pipe"
        while line := await self._process.stdout.readline():
            yield line.decode("utf-8", "replace").rstrip("\n")

    def write_line(self, line: str) -> None:
        """Write a line to its stdin. Needs ``stdin=PIPE``."""
        assert self._process.stdin is not None, "started without a pipe"
        self._process.stdin.write(line.encode() + b"\n")

    def interrupt(self) -> None:
        """Ask it to finish its round and leave; the second time, to leave at once."""
        self._send(signal.SIGINT)

    def terminate(self) -> None:
        """Ask it to leave at once, whatever it was asked before."""
        self._send(signal.SIGINT)
        self._send(signal.SIGTERM)  # another signal: two pending ones of a kind are delivered as one

    def kill(self) -> None:
        """SIGKILL to the process and to everything it started."""
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.exit_code is None:
            _send(self.pid, number)


class Reaper:
    """A process that carries out its orders (see reaper.py) when this one closes it, or dies. Raises OSError."""

    def __init__(self, grace_seconds: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__, str(grace_seconds)],
            stdin=subprocess.PIPE,  # close-on-exec: no other child of this process holds it open
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )

    def add(self, kind: Literal["paused", "group", "folder"], value: int | Path) -> None:
        self._order("+", kind, value)

    def withdraw(self, kind: Literal["paused", "group"], value: int) -> None:
        self._order("-", kind, value)

    def _order(self, sign: str, kind: str, value: int | Path) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # somebody killed it
            self._process.stdin.write(os.fsencode(f"{sign} {kind} {value}\n"))
            self._process.stdin.flush()

    def close(self, seconds: float | None = None) -> None:
        """Wait until the orders are carried out, for ``seconds`` at most. Blocks; may be repeated."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class ProcessGroup:
    """The children of this process. Leaving the ``async with`` ends all of them and removes the temporary folders."""

    def __init__(self) -> None:
        self._children: dict[Child, asyncio.Task[None]] = {}  # those that run, and what waits for their end
        self._paused: dict[Child, list[int]] = {}  # all that were stopped with it
        self._reaper = Reaper(REAPER_SECONDS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._end_children()
        await asyncio.to_thread(self._reaper.close)

    def temporary_folder(self) -> Path:
        """A new folder that is removed when this group ends, also if this process is killed. Raises ConfigError."""
        with disk_errors("No temporary folder can be made", "add --dir DIR, or set TMPDIR", ConfigError):
            folder = Path(tempfile.mkdtemp(prefix="tsr-swarm-local-"))
        self._reaper.add("folder", folder)
        return folder

    async def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.DEVNULL,
        stderr: int | IO[bytes] = subprocess.DEVNULL,
    ) -> Child:
        """Start ``command`` in its own session, tied to this process. Raises OSError."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={**environment, PARENT_VARIABLE: str(os.getpid())},
            start_new_session=True,
            limit=2 * MAX_LINE,
        )
        child = Child(name, process)
        self._reaper.add("group", child.pid)
        self._children[child] = asyncio.create_task(self._reap(child))
        return child

    def pause(self, child: Child) -> None:
        """SIGSTOP to ``child`` and to everything it started: what a machine that falls asleep looks like."""
        if child.exit_code is None:
            self._paused[child] = descendants(child.pid)
            for pid in self._paused[child]:
                self._reaper.add("paused", pid)
                _send(pid, signal.SIGSTOP)

    def resume(self, child: Child) -> None:
        """SIGCONT to all that ``pause`` stopped, those that have outlived ``child`` too."""
        for pid in self._paused.pop(child, []):
            _send(pid, signal.SIGCONT)
            self._reaper.withdraw("paused", pid)

    async def _reap(self, child: Child) -> None:
        await child.wait()
        child.kill()  # what it left in its group
        self._reaper.withdraw("group", child.pid)
        del self._children[child]

    async def _end_children(self) -> None:
        for end in (Child.terminate, Child.kill):
            for child in self._children:
                end(child)
            if self._children:
                await asyncio.wait(self._children.values(), timeout=STOP_SECONDS)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def descendants(root: int) -> list[int]:
    """Process ids of ``root`` and of all that it and they have started, from the top. Only ``root`` without a /proc."""
    started: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text("utf-8", "replace")
        except OSError:
            continue  # it has ended
        parent = int(text.rpartition(")")[2].split()[1])  # after the name, which may hold anything: state, parent
        started.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found.extend(started.get(pid, []))
    return found


class Guard:
    """A private folder, and a reaper that removes it and kills the helper launched in it when this process ends.

    For a process that a library starts, and its sockets.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reaper = Reaper(0)
        self._reaper.add("folder", folder)

    @classmethod
    async def start(cls) -> "Guard":
        """Make the folder and its reaper, and clear away what dead owners' reapers could not. Raises RunError."""
        base = Path(tempfile.gettempdir())
        if len(os.fsencode(base)) > _MAX_BASE_BYTES:
            base = Path("/tmp")
        await asyncio.to_thread(remove_leftovers, base)
        with disk_errors(f"No temporary folder can be made in {base}", "set TMPDIR to one that can"):
            folder = Path(tempfile.mkdtemp(prefix=f"{_HELPER_PREFIX}{os.getpid()}-", dir=base))
        with disk_errors(f"{sys.executable} cannot be started", f"the guard of {folder} needs it"):
            try:
                return cls(folder)
            except OSError:
                shutil.rmtree(folder, ignore_errors=True)
                raise

    def launch_command(self, command: Sequence[str]) -> list[str]:
        """Wrap the helper's command, which must name something inside ``folder``: by that its reaper knows it."""
        return [sys.executable, "-I", "-S", reaper.__file__, "launch", str(self.folder / "pid"), *command]

    async def close(self) -> None:
        """Kill the helper if it still runs and remove the folder. Returns within ``GUARD_SECONDS``, may be repeated."""
        await asyncio.to_thread(self._reaper.close, GUARD_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)  # only there if somebody killed the reaper


def remove_leftovers(base: Path) -> None:
    """Remove the folders in ``base`` whose owners are dead, and kill the helpers that still run in them. Blocks."""
    for folder in base.glob(f"{_HELPER_PREFIX}*"):
        owner = _HELPER_OWNER.match(folder.name)
        if owner and not _is_running(int(owner[1])):
            reaper.remove_folder(str(folder))


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # it is another user's, or no process id at all
    return True


def own_command(*arguments: str) -> list[str]:
    """The command line of one of our own commands, run by this interpreter."""
    return [sys.executable, "-m", "tsr_swarm", *arguments]


def child_log() -> IO[bytes]:
    """A file without a name for a child's stderr; in memory where no temporary folder takes one."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return os.fdopen(os.memfd_create("log"), "w+b")


def was_interrupted(child: Child, log: IO[bytes]) -> bool:
    """Whether ``child`` has ended as it was asked to, or by the signal itself, before it could see to that."""
    if child.exit_code == 1:  # so does Python end where it is interrupted as it starts, before any of our code
        return _last_lines(log)[-1:] == ["KeyboardInterrupt"]
    return child.exit_code in (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM)


def failure_of(child: Child, log: IO[bytes]) -> ChildError:
    """Why ``child`` ended: its own sentence from its log, else its exit code and its last words."""
    code = child.exit_code or 1
    lines = _last_lines(log)
    for line in reversed(lines):
        if line.startswith(SENTENCE_PREFIX):
            return ChildError(line.removeprefix(SENTENCE_PREFIX), max(code, 1))
    how = f"exit code {code}" if code > 0 else f"signal {-code}"
    words = f"; its last words were: {lines[-1]}" if lines else ""
    return ChildError(f"{child.name.capitalize()} ended unexpectedly ({how}){words}.", max(code, 1))


def _last_lines(log: IO[bytes]) -> list[str]:
    log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
    return [line for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
