import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

from tsr_swarm.monitor.app import QUIT_NOTE

ROOT = Path(__file__).parents[2]

NOISY_REPLAY = """
import asyncio, math, os, sys
from pathlib import Path
from tsr_swarm.monitor.app import SwarmMonitor
from tsr_swarm.monitor.sources import ReplaySource

class Noisy(ReplaySource):
    async def lines(self):
        print("NOISE of a print")
        os.write(1, b"NOISE on standard output\\n")
        os.write(2, b"NOISE on standard error\\n")
        async for line in super().lines():
            yield line

source = Noisy(Path(sys.argv[1]), math.inf, clock=lambda: 0.0)
app = SwarmMonitor(source, "shakespeare")
asyncio.run(app.take_terminal(Path(sys.argv[2])))
print("The screen is closed.", flush=True)
print(app.quit_note, file=sys.stderr)
"""


def read_until(terminal: int, end: bytes) -> bytes:
    """What a process has written to its terminal, up to ``end`` or to its end."""
    seen = b""
    while end not in seen:
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # EIO: no process has the terminal open any more
            break
    return seen


def test_nothing_but_the_monitor_reaches_the_terminal_until_it_is_closed(recorded: Path, tmp_path: Path) -> None:
    log = tmp_path / "other.log"
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-c", NOISY_REPLAY, str(recorded), str(log)]
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside, cwd=ROOT, env=environment)
    os.close(inside)
    try:
        shown = read_until(terminal, b"2 alive")
        os.write(terminal, b"q")
        shown += read_until(terminal, b"goes on.")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    left = shown.rpartition(b"\x1b[?1049l")[2]  # what is written after the screen was given back
    said = f"The screen is closed. {QUIT_NOTE}".encode()
    assert re.sub(rb"\x1b\[[^a-zA-Z]*[a-zA-Z]|\s+", b" ", left).split() == said.split()
    assert b"NOISE" not in shown
    assert b"NOISE on standard error" in log.read_bytes()
