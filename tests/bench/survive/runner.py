"""One run of a scenario: real processes, what they say with the time at which it came, and none of them left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.bench.survive.evidence import Evidence, read_own, read_stood, read_tracebacks
from tests.bench.survive.hurts import CRASH
from tests.bench.survive.scenario import Scenario, arguments
from tsr_swarm.telemetry.events import Event, FaultPlaced, RoundOpened, Stamped, decode, encode

RUN_FILE = Path(__file__).parent / "survive.toml"
LEAVE_SECONDS = 20.0  # after each of two requests to leave


class Interrupted(Exception):
    """The run was asked to end, and has left nothing running."""


class Stage:
    """Where runs take place, in any number of threads."""

    def __init__(self) -> None:
        self._processes: set[subprocess.Popen[str]] = set()
        self._is_closed = False

    def close(self) -> None:
        """From another thread: whatever runs ends now, and raises Interrupted."""
        self._is_closed = True
        for process in list(self._processes):
            process.send_signal(signal.SIGINT)

    def run(self, scenario: Scenario, seed: int, folder: Path) -> Evidence:
        """Run it with all its files in ``folder``, which must not exist. Raises Interrupted."""
        folder.mkdir(parents=True)
        options = arguments(scenario, seed)
        (folder / "command.txt").write_text(" ".join(options) + "\n", "utf-8")
        with _Story(folder / "story.jsonl") as story:
            crash_round = None if scenario.crash_round is None else scenario.crash_round(seed)
            code = self._act(options, folder, story, crash_round, scenario.most_seconds)
            if crash_round is not None:
                story.add(FaultPlaced(fault=CRASH, is_over=True))
                code = self._act([*options, "--resume"], folder, story, None, scenario.most_seconds)
        kept = folder / "run"
        return Evidence(
            story=tuple(story.events),
            own=read_own(kept),
            stood=read_stood(kept),
            exit_code=code,
            tracebacks=read_tracebacks(kept),
        )

    def _act(
        self, options: Sequence[str], folder: Path, story: "_Story", crash_round: int | None, most_seconds: float
    ) -> int:
        """From start to end, or until all is killed as ``crash_round`` opens; the exit code."""
        with _local(options, folder, most_seconds) as process:
            self._processes.add(process)
            try:
                for round in () if self._is_closed else story.read(process):
                    if round == crash_round:
                        story.add(FaultPlaced(fault=CRASH, is_over=False))
                        _kill_tree(process)
            finally:
                self._processes.discard(process)
        if self._is_closed:
            raise Interrupted
        return process.returncode


class _Story:
    """What was said, in a file too: the time at which it came goes over the one that was said."""

    def __init__(self, path: Path) -> None:
        self.events: list[Stamped] = []
        self._file = path.open("w", encoding="utf-8")

    def __enter__(self) -> "_Story":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def add(self, event: Event) -> None:
        stamped = Stamped(time=time.time(), event=event)
        self.events.append(stamped)
        self._file.write(encode(stamped.event, stamped.time) + "\n")
        self._file.flush()

    def read(self, process: subprocess.Popen[str]) -> Iterator[int]:
        """Keep all it says; the number of each round as it opens."""
        assert process.stdout is not None
        for line in process.stdout:
            event = decode(line)
            if event is not None:
                self.add(event)
                if isinstance(event, RoundOpened):
                    yield event.round


@contextmanager
def _local(options: Sequence[str], folder: Path, most_seconds: float) -> Iterator[subprocess.Popen[str]]:
    """``tsr-swarm local`` in a session of its own: Ctrl-C reaches us, and we pass it on. It never outlives this."""
    command = [sys.executable, "-m", "tsr_swarm", "local", str(RUN_FILE), *options]
    command += ["--dir", str(folder / "run"), "--no-dht", "--json"]
    with (folder / "stderr.txt").open("a") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True, env=_environment()
        )
    overdue = threading.Timer(most_seconds, process.kill)  # its children notice, and its janitor sees to it
    overdue.start()
    try:
        yield process
    finally:
        overdue.cancel()
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """Ask, ask again, then kill."""
    with contextlib.suppress(OSError):
        for _ in range(2):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LEAVE_SECONDS)
    if process.poll() is None:
        _kill_tree(process)
    if process.stdout is not None:
        process.stdout.close()
    process.wait()


def _kill_tree(process: subprocess.Popen[str]) -> None:
    """SIGKILL to it and to all that it started, by their own ids."""
    root = psutil.Process(process.pid)
    tree = [root, *root.children(recursive=True)]
    for each in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
    psutil.wait_procs(tree[1:], timeout=LEAVE_SECONDS)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TSR_SWARM_")}
