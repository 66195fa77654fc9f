"""What tests of whole processes share: a tiny run, the command line, and the processes that a test has started."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.fixtures import TINY_MODEL

Event = dict[str, Any]

TESTS_PROCESS = "TESTS_PROCESS"
os.environ[TESTS_PROCESS] = str(os.getpid())  # what is started from here on can be told from what other tests start

TINY = "\n".join(
    [
        "[model]",
        *(f"{key} = {value}" for key, value in TINY_MODEL.items()),
        "max_position_embeddings = 64",
        "[data]\nsequence_length = 32\nbatch_size = 4",
        "[periods]\nk_x = 5",
        '[checkpoint]\ndir = "run"',
        "",
    ]
)
LOCAL = ["local", "tiny.toml", "--peers", "3", "--rounds", "100000", "--json"]
COMMAND = [sys.executable, "-m", "tsr_swarm"]
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TERM": "dumb"}
STREAMS: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}


def start(folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start the command in ``folder``, where its temporary files go too if there is a ``tmp`` in it."""
    temporary = {"TMPDIR": str(folder / "tmp")} if (folder / "tmp").is_dir() else {}
    environment = {**os.environ, **THREADS, **temporary}
    return subprocess.Popen([*COMMAND, *arguments], cwd=folder, env=environment, **STREAMS | options)


def tsr_swarm(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command in ``folder`` to its end, which has to be with exit code ``code``."""
    with start(folder, *arguments, stderr=subprocess.PIPE) as process:
        try:
            stdout, stderr = process.communicate(timeout=200)
        finally:
            process.kill()
    assert process.returncode == code, stderr
    return subprocess.CompletedProcess(process.args, code, stdout, stderr)


def argument(arguments: Sequence[str], flag: str) -> str:
    """What a command is given after ``flag``; "" where it is not given."""
    return arguments[arguments.index(flag) + 1] if flag in arguments else ""


def events_of(lines: str | Iterable[str]) -> list[Event]:
    return [json.loads(line) for line in (lines.splitlines() if isinstance(lines, str) else lines)]


def of_kind(events: Iterable[Event], kind: str) -> list[Event]:
    return [event for event in events if event["event"] == kind]


def digests(events: Iterable[Event], *kinds: str) -> dict[int, str]:
    """By round: the digest of the weights, which is the same in all events of these ``kinds``."""
    seen: dict[int, str] = {}
    for event in events:
        if event["event"] in kinds:
            assert seen.setdefault(event["round"], event["digest"]) == event["digest"], event
    return seen


class Run:
    """A running swarm of three peers, and its events so far."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.events: list[Event] = []
        self.process = start(folder, *LOCAL, *arguments)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:  # the test has failed
            self.process.kill()
        self.process.stdout.close()
        self.process.wait()

    def until(self, is_it: Callable[[Event], bool]) -> list[Event]:
        """Read on until an event is what is waited for; all that came on the way."""
        before = len(self.events)
        for event in map(json.loads, self.process.stdout):
            self.events.append(event)
            if is_it(event):
                return self.events[before:]
        raise AssertionError(f"the run ended after {self.events[-3:]}")

    def finish(self) -> None:
        """Ask it to end, and see that the weights were the same everywhere after every round."""
        self.process.send_signal(signal.SIGINT)
        self.events += events_of(self.process.stdout)
        assert self.process.wait(60) == 130
        assert digests(self.events, "digest_reported", "round_closed")
        assert not of_kind(self.events, "digest_mismatch")

    def kill(self) -> None:
        """SIGKILL to the command alone; whatever it had started must end by itself."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        assert not psutil.wait_procs(children, timeout=30)[1]


def started_here() -> list[psutil.Process]:
    """The processes that the present test has started and that still run, whoever their parent is now.

    Each inherits the test's name and the id of the process that runs it, which are in the environment.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and _started_by(process.environ()) == _started_by(os.environ):
                found.append(process)
        except (psutil.Error, OSError):
            continue  # it has ended, or is somebody else's
    return found


def _started_by(environment: Mapping[str, str]) -> tuple[str | None, str]:
    test = environment.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]  # without the phase, such as (call)
    return environment.get(TESTS_PROCESS), test


def namespaces() -> set[str]:
    """Network namespaces, other than this process's, that processes of the present test are in."""
    found = set()
    for process in started_here():
        try:
            found.add(os.readlink(f"/proc/{process.pid}/ns/net"))
        except OSError:
            continue  # it has ended
    return found - {os.readlink("/proc/self/ns/net")}
