"""Processes that are started here and end with this one, whichever way it ends.

Each child leads its own session, so that a terminal's Ctrl-C reaches only us and we pass it on as we see fit. Three
things keep one from being left behind: ``ProcessGroup`` ends it, the child itself notices that we are gone
(shutdown.py), and a janitor process ends what is stuck and removes our temporary folders.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Self

from tsr_swarm.errors import ConfigError, SwarmError
from tsr_swarm.process import janitor
from tsr_swarm.process.descendants import descendants
from tsr_swarm.process.shutdown import INTERRUPTED, PARENT_VARIABLE
from tsr_swarm.telemetry.events import MAX_LINE
from tsr_swarm.telemetry.text import reason_text

STOP_SECONDS = 4.0  # between asking the children to leave at once and killing them
JANITOR_SECONDS = 8.0  # between our death and the janitor's killing those that have not noticed it
POLL_SECONDS = 0.2
SENTENCE_PREFIX = "tsr-swarm: "  # of the one line on stderr that says why a command failed
_TAIL_BYTES = 1 << 16


class ChildError(SwarmError):
    """A child failed. Carries the child's own sentence and exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Child:
    """One running process and the group it leads."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process

    @property
    def output(self) -> asyncio.StreamReader:
        """Its stdout, if it was started with ``stdout=PIPE``."""
        assert self._process.stdout is not None, "started without a pipe"
        return self._process.stdout

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
        while line := await self.output.readline():
            yield line.decode("utf-8", "replace").rstrip("\n")

    def tell(self, line: str) -> None:
        """Write a line to its stdin. Needs ``stdin=PIPE``."""
        assert self._process.stdin is not None, "started without a pipe"
        self._process.stdin.write(line.encode() + b"\n")

    def ask(self) -> None:
        """Ask it to finish its round and leave; the second time, to leave at once."""
        self._send(signal.SIGINT)

    def demand(self) -> None:
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


class ProcessGroup:
    """The children of this process. Leaving the ``async with`` ends all of them and removes the temporary folders."""

    def __init__(self) -> None:
        self._children: dict[int, asyncio.Task[None]] = {}
        self._by_pid: dict[int, Child] = {}
        self._paused: dict[int, list[int]] = {}  # by child: all that were stopped with it
        self._janitor: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        self._janitor = _start_janitor()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._end_children()
        await self._end_janitor()

    def temporary_folder(self) -> Path:
        """A new folder that is removed when this family ends, also if this process is killed. Raises ConfigError."""
        try:
            folder = Path(tempfile.mkdtemp(prefix="tsr-swarm-local-"))
        except OSError as error:
            raise ConfigError(
                f"No temporary folder can be made ({reason_text(error)}); add --dir DIR, or set TMPDIR."
            ) from error
        self._tell(b"folder " + os.fsencode(folder))
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
        self._tell(b"group %d" % child.pid)
        self._by_pid[child.pid] = child
        self._children[child.pid] = asyncio.create_task(self._reap(child))
        return child

    def pause(self, child: Child) -> None:
        """SIGSTOP to ``child`` and to everything it started: what a machine that falls asleep looks like."""
        if child.exit_code is None:
            self._paused[child.pid] = descendants(child.pid)
            for pid in self._paused[child.pid]:
                self._tell(b"paused %d" % pid)
                _send(pid, signal.SIGSTOP)

    def go_on(self, child: Child) -> None:
        """SIGCONT to all that ``pause`` stopped, those that have outlived ``child`` too."""
        for pid in self._paused.pop(child.pid, []):
            _send(pid, signal.SIGCONT)
            self._tell(b"resumed %d" % pid)

    async def _reap(self, child: Child) -> None:
        await child.wait()
        child.kill()  # what it left in its group
        self._tell(b"gone %d" % child.pid)
        del self._by_pid[child.pid]

    async def _end_children(self) -> None:
        for child in self._by_pid.values():
            child.demand()
        await self._gone(STOP_SECONDS)
        for child in self._by_pid.values():
            child.kill()
        await self._gone(STOP_SECONDS)

    async def _gone(self, seconds: float) -> None:
        if self._children:
            await asyncio.wait(self._children.values(), timeout=seconds)

    async def _end_janitor(self) -> None:
        if self._janitor is not None and self._janitor.stdin is not None:
            with contextlib.suppress(OSError):
                self._janitor.stdin.close()
            await asyncio.to_thread(self._janitor.wait)

    def _tell(self, line: bytes) -> None:
        assert self._janitor is not None, "used outside its async with"
        assert self._janitor.stdin is not None
        with contextlib.suppress(OSError):  # somebody killed it; the other two ways remain
            self._janitor.stdin.write(line + b"\n")
            self._janitor.stdin.flush()


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def _start_janitor() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", janitor.__file__, str(JANITOR_SECONDS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


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
