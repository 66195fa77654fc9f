"""A command behind its screen on a real terminal that is not read or closes: it ends, and leaves no process behind."""

import fcntl
import io
import os
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tsr_swarm.telemetry.events import Warned, encode

# Plays ``coordinate --json``: opens rounds until it is asked to stop, and holds a named pipe open while it lives.
CHILD = """
import asyncio, json, sys, time
import typer
from tsr_swarm.cli.output import Mode
from tsr_swarm.cli.process import run_process
from tsr_swarm.process.shutdown import tie_to_parent
tie_to_parent()
life = open(LIFE, "w")
def say(event, **fields):
    print(json.dumps({"event": event, "time": time.time(), **fields}), flush=True)
async def work(stop):
    say("run_started", run="chat", run_id="1", address="127.0.0.1:9", rounds=0, min_peers=1, parameters=9, k_x=2,
        local_space="core", rank="d/2", voters=1, version="0")
    for number in range(1, 3001):
        say("round_opened", round=number, peers=1, steps=2, lr=0.1, refresh=0)
        await asyncio.sleep(0.001)  # the screen shows many of them
    print("all rounds", file=life, flush=True)
    if HOW != "end":
        await stop.graceful.wait()
try:
    run_process(Mode.JSON, work)
except typer.Exit as end:
    sys.exit(end.exit_code)
"""
FRONT = """
import fcntl, os, sys, termios
owns_terminal, life, how, child, *sys.argv[1:] = sys.argv[1:]
if owns_terminal == "True":
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
print("started", flush=True)
from tsr_swarm.cli import screen
from tsr_swarm.cli.main import main
from tsr_swarm.monitor import app
app.REFRESH_SECONDS = 0.001  # far more frames than a terminal holds
os.environ.pop("COVERAGE_PROCESS_CONFIG", None)  # the child's start-up hook would swallow a KeyboardInterrupt
screen.own_command = lambda *_: [sys.executable, "-c", f"HOW, LIFE = {how!r}, {life!r}\\n{child}"]
main()
"""
BOUND = 60.0  # seconds
PAINTED, TAKEN, GIVEN_BACK = b"chat", b"\x1b[?1049h", b"\x1b[?1049l"


class Terminal:
    """The other end of the terminal that a command runs on."""

    def __init__(self, process: subprocess.Popen[bytes], end: int, life: Path) -> None:
        self.process, self.end = process, io.FileIO(end, "r+")
        self._life, self.hold = life, io.FileIO(life, "r+")
        self._seen = b""

    def read_until(self, text: bytes) -> None:
        """Read what is shown up to ``text``, and no further than has to be."""
        while text not in self._seen:
            self._seen += self.end.read(4096)
        self._seen = self._seen[self._seen.index(text) + len(text) :]

    def wait_for_all_rounds(self) -> None:
        assert self.hold.read(100) == b"all rounds\n"

    def wait_for_the_end(self) -> int:
        """The exit code of the command, once it and what it runs have ended."""
        code = self.process.wait(BOUND)
        with self._life.open("rb") as life:
            self.hold.close()
            life.read()
        return code


@contextmanager
def terminal(how: str, folder: Path, owns_terminal: bool = True) -> Iterator[Terminal]:
    """Run ``coordinate``, or ``replay``, on a terminal. ``owns_terminal``: it hears of its end through SIGHUP."""
    life, file = folder / "life", folder / "file"
    os.mkfifo(life)
    if how == "replay":
        file.write_text("".join(encode(Warned(message="chat"), time) + "\n" for time in (1.0, 1000.0)))
    else:
        file.write_text('[run]\nname = "chat"\n')
    arguments = [str(owns_terminal), str(life), how, CHILD, "replay" if how == "replay" else "coordinate", str(file)]
    end, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"TERM": "xterm-256color"}
    command = [sys.executable, "-c", FRONT, *arguments]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    ) as process:
        os.close(theirs)
        shown = Terminal(process, end, life)
        try:
            shown.read_until(b"started")
            yield shown
        finally:
            process.kill()
            shown.end.close()
            shown.hold.close()


def close_the_screen(shown: Terminal) -> None:
    """Once Textual took the terminal again at the SIGCONT that follows SIGHUP, and read its end for ever."""
    shown.read_until(PAINTED)
    shown.end.write(b"q")
    shown.read_until(b"training goes on")


def see_the_end_of_the_run(shown: Terminal) -> None:
    shown.read_until(b"3000")
    shown.wait_for_all_rounds()


def stop_and_continue(shown: Terminal) -> None:
    shown.read_until(PAINTED)
    shown.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, shown.process.pid, os.WSTOPPED)
    shown.process.send_signal(signal.SIGCONT)
    shown.read_until(TAKEN)
    shown.read_until(b"Quit")


@pytest.mark.parametrize(
    ("how", "before", "owns_terminal"),
    [
        pytest.param("wait", PAINTED, True, id="while the screen is shown"),
        pytest.param("wait", PAINTED, False, id="without SIGHUP"),
        pytest.param("wait", close_the_screen, True, id="after the screen"),
        pytest.param("end", see_the_end_of_the_run, True, id="when the run is over"),
        pytest.param("wait", b"", True, id="before the imports"),
        pytest.param("wait", TAKEN, True, id="before the first paint"),
        pytest.param("wait", stop_and_continue, True, id="after the screen was stopped and took the terminal again"),
        pytest.param("replay", PAINTED, True, id="of a replay"),
        pytest.param("replay", PAINTED, False, id="of a replay without SIGHUP"),
    ],
)
def test_a_terminal_that_closes_ends_the_command(
    how: str, before: bytes | Callable[[Terminal], None], owns_terminal: bool, tmp_path: Path
) -> None:
    """``before``: what is read before it closes, or what else happens."""
    with terminal(how, tmp_path, owns_terminal) as shown:
        if isinstance(before, bytes):
            shown.read_until(before)
        else:
            before(shown)
        shown.end.close()
        code = shown.wait_for_the_end()
        assert code == 130 or (code == -signal.SIGHUP and before in (b"", TAKEN))


def test_a_killed_screen_takes_its_command_along(tmp_path: Path) -> None:
    with terminal("wait", tmp_path) as shown:
        shown.read_until(PAINTED)
        shown.wait_for_all_rounds()
        shown.process.kill()
        assert shown.wait_for_the_end() == -signal.SIGKILL


def test_a_terminal_that_is_not_read_delays_nothing_and_catches_up(tmp_path: Path) -> None:
    with terminal("wait", tmp_path) as shown:
        shown.read_until(TAKEN)
        shown.wait_for_all_rounds()
        shown.read_until(b"round 3000")
        shown.end.write(b"q")
        shown.read_until(GIVEN_BACK)
        shown.read_until(b"training goes on")


def test_a_terminal_that_is_not_read_does_not_keep_the_command_from_ending(tmp_path: Path) -> None:
    with terminal("wait", tmp_path) as shown:
        shown.read_until(TAKEN)
        shown.wait_for_all_rounds()
        shown.process.send_signal(signal.SIGTERM)
        assert shown.wait_for_the_end() == 130
