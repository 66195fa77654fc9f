"""Run a scenario: real processes, their events with the time at which each came, and no process left behind."""

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
from typing import TextIO

import psutil

from tests.bench.survive.artifacts import Artifacts, read_artifacts
from tests.bench.survive.outages import CRASH
from tests.bench.survive.scenarios import Scenario, arguments
from tsr_swarm.telemetry.events import Event, FaultPlaced, RoundOpened, Stamped, decode, encode

RUN_FILE = Path(__file__).parent / "survive.toml"
LEAVE_SECONDS = 20.0  # after each of two requests to leave


class Interrupted(Exception):
    """The run was asked to end, and has left nothing running."""


class Runner:
    """Runs scenarios, in any number of threads, until it is closed."""

    def __init__(self) -> None:
        self._processes: set[subprocess.Popen[str]] = set()
        self._is_closed = False

    def close(self) -> None:
        """Called from another thread: whatever runs ends now, and raises Interrupted."""
        self._is_closed = True
        for process in list(self._processes):
            process.send_signal(signal.SIGINT)

    def run(self, scenario: Scenario, seed: int, folder: Path) -> Artifacts:
        """Run it with all its files in ``folder``, which must not exist. Raises Interrupted."""
        folder.mkdir(parents=True)
        options = arguments(scenario, seed)
        (folder / "command.txt").write_text(" ".join(options) + "\n", "utf-8")
        with (folder / "events.jsonl").open("w", encoding="utf-8") as file:
            log = EventLog(file)
            crash_round = None if scenario.crash_round is None else scenario.crash_round(seed)
            code = self._run_once(options, folder, log, crash_round, scenario.timeout)
            if crash_round is not None:
                log.add(FaultPlaced(fault=CRASH, is_over=True))
                code = self._run_once([*options, "--resume"], folder, log, None, scenario.timeout)
        return read_artifacts(folder / "run", log.events, code)

    def _run_once(
        self, options: Sequence[str], folder: Path, log: "EventLog", crash_round: int | None, timeout: float
    ) -> int:
        """Run from start to end, or until all is killed as ``crash_round`` opens; return the exit code."""
        with _local(options, folder, timeout) as process:
            self._processes.add(process)
            try:
                for round in () if self._is_closed else log.read(process):
                    if round == crash_round:
                        log.add(FaultPlaced(fault=CRASH, is_over=False))
                        _kill_tree(process)
            finally:
                self._processes.discard(process)
        if self._is_closed:
            raise Interrupted
        return process.returncode


class EventLog:
    """The events of a run, in a file too. Each has the time at which it came, not the one that was printed."""

    def __init__(self, file: TextIO) -> None:
        self.events: list[Stamped] = []
        self._file = file

    def add(self, event: Event) -> None:
        stamped = Stamped(time=time.time(), event=event)
        self.events.append(stamped)
        self._file.write(encode(stamped.event, stamped.time) + "\n")
        self._file.flush()

    def read(self, process: subprocess.Popen[str]) -> Iterator[int]:
        """Add all that the process prints; yield the number of each round as it opens."""
        assert process.stdout is not None
        for line in process.stdout:
            event = decode(line)
            if event is not None:
                self.add(event)
                if isinstance(event, RoundOpened):
                    yield event.round


@contextmanager
def _local(options: Sequence[str], folder: Path, timeout: float) -> Iterator[subprocess.Popen[str]]:
    """``tsr-swarm local`` in a session of its own: Ctrl-C reaches this process, which passes it on, and ends it."""
    command = [sys.executable, "-m", "tsr_swarm", "local", str(RUN_FILE), *options]
    command += ["--dir", str(folder / "run"), "--no-dht", "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TSR_SWARM_")}
    with (folder / "stderr.txt").open("a") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True, env=environment
        )
    overdue = threading.Timer(timeout, process.kill)  # the processes that it started notice, and end
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
    """Send SIGKILL to it and to all that it started, by their own ids."""
    root = psutil.Process(process.pid)
    tree = [root, *root.children(recursive=True)]
    for each in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
    psutil.wait_procs(tree[1:], timeout=LEAVE_SECONDS)
