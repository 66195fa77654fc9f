"""Whole processes whose output nobody reads: their work goes on, and they end when they are asked to."""

import fcntl
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tsr_swarm.cli.output import Mode, emitter
from tsr_swarm.telemetry.events import Warned

# Prints far more than a pipe and a queue hold, says so where the test listens, and waits to be stopped.
COMMAND = """
import asyncio, logging, os, sys
import typer
from tsr_swarm.cli import output, process
from tsr_swarm.errors import RunError
from tsr_swarm.telemetry.events import Warned
process.CLOSE_SECONDS = process.END_SECONDS = 1.0
process.LIMIT = int(os.environ.get("LIMIT", "10000"))
mode, how, tell = output.Mode[sys.argv[1]], sys.argv[2], int(sys.argv[3])
async def work(stop):
    with output.emitter(mode) as emit:
        for number in range(2000):
            emit(Warned(message=f"line {number}"))
            logging.getLogger("tsr_swarm").warning("noise %d", number)
            await asyncio.sleep(0)
        os.write(tell, b"all printed\\n")
        if how == "fail":
            raise RunError("It is full; make room.")
        await stop.graceful.wait()
        emit(Warned(message="the last line"))
try:
    (process.run_training if how == "train" else process.run_process)(mode, work)
except typer.Exit as end:
    sys.exit(end.exit_code)
except RunError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
BOUND = 60.0  # seconds


@contextmanager
def command(mode: str, how: str = "wait") -> Iterator[tuple[subprocess.Popen[bytes], io.FileIO]]:
    """Run the command, which has printed all, with stdout and stderr on one small pipe that is not read."""
    (output, writes), (told, tells) = os.pipe(), os.pipe()
    fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4096)
    line = [sys.executable, "-c", COMMAND, mode, how, str(tells)]
    with subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=writes, stderr=writes, pass_fds=[tells]) as process:
        os.close(writes)
        os.close(tells)
        try:
            with io.FileIO(output) as unread:
                assert os.read(told, 100) == b"all printed\n"
                yield process, unread
        finally:
            process.kill()
            os.close(told)


def printed(lines: list[str]) -> int:
    """How many of the command's own lines are among ``lines``; that "1 line was dropped" is none of them."""
    return sum(bool(re.search(r"(line|noise) \d+$", line)) for line in lines)


def dropped(lines: list[str]) -> int:
    return sum(int(count) for line in lines for count in re.findall(r"(\d+) lines? (?:was|were) dropped", line))


def stopped(mode: str) -> list[str]:
    """All that the command writes when it is only read once it was asked to stop."""
    with command(mode) as (process, output):
        process.send_signal(signal.SIGTERM)
        lines = output.read().decode().splitlines()
        assert process.wait(BOUND) == 130
    return lines


def test_work_goes_on_while_nobody_reads_and_the_missing_lines_are_counted() -> None:
    lines = stopped("PLAIN")
    assert dropped(lines) > 0
    assert dropped(lines) + printed(lines) == 4000
    assert any("dropped: nobody read them." in line for line in lines)
    assert any("the last line" in line for line in lines)


def test_beside_json_lines_an_event_tells_of_those_that_are_missing() -> None:
    events = [json.loads(line) for line in stopped("JSON") if line.startswith("{")]
    told = [event for event in events if "dropped" in event["message"]]
    assert told
    assert {event["event"] for event in told} == {"warning"}
    assert dropped([event["message"] for event in told]) + printed([event["message"] for event in events]) == 2000


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, "the reader goes"])
def test_a_process_whose_output_is_not_read_ends_when_it_is_asked_to(how: signal.Signals | str) -> None:
    with command("PLAIN") as (process, output):
        if isinstance(how, signal.Signals):
            process.send_signal(how)
        else:
            output.close()
        assert process.wait(BOUND) == 130


@pytest.mark.parametrize("is_read", [True, False])
def test_a_failure_is_read_after_all_the_lines_before_it_or_not_at_all(is_read: bool) -> None:
    with command("PLAIN", "fail") as (process, output):
        if is_read:
            assert output.read().splitlines()[-1] == b"It is full; make room."
        assert process.wait(BOUND) == 1


def test_output_that_a_full_disk_does_not_take_ends_the_process_with_a_sentence() -> None:
    with open("/dev/full", "wb") as full:
        line = [sys.executable, "-c", COMMAND, "PLAIN", "train", "2"]
        all_of_stderr = {**os.environ, "LIMIT": "10000000"}  # a line of it that is dropped may be the very one
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, timeout=BOUND, check=False, env=all_of_stderr)
    assert done.returncode == 130
    assert done.stderr.count(b"warning: The output cannot be written (No space left on device), so this ends.") == 1
    assert done.stderr.count(b"The output is closed or full; leaving after this round.") == 1


def test_what_is_logged_after_the_end_is_written_too() -> None:
    script = (
        "import sys; from tsr_swarm.cli.process import Mode, Streams\n"
        "with Streams(Mode.PLAIN).installed(): stream = sys.stderr; print('in time', file=stream)\n"
        "print('late', file=stream)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, timeout=BOUND, check=True)
    assert done.stderr == b"in time\nlate\n"


def test_a_library_in_c_does_not_wait_for_a_reader_either() -> None:
    script = (
        "import os, sys; from tsr_swarm.cli.process import Mode, Streams\n"
        "streams = Streams(Mode.PLAIN); streams.end_seconds = 0.1\n"
        "with streams.installed():\n"
        "    try:\n"
        "        while True: os.write(2, b'x' * 100)\n"
        "    except BlockingIOError: print('went on')\n"
    )
    reads, writes = os.pipe()
    line = [sys.executable, "-c", script]
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=writes, timeout=BOUND, check=True)
    assert done.stdout == b"went on\n"
    assert os.get_blocking(writes), "others who share the pipe notice nothing"
    os.close(reads)
    os.close(writes)


RECORD = """
import sys
from pathlib import Path
from tsr_swarm.telemetry import recording
recording.LIMIT = int(sys.argv[2])
with recording.recording(Path(sys.argv[1])) as write:
    for number in range(20_000): write(f"{number}")
"""


def record(path: Path, limit: int) -> list[str]:
    """The command that records 20,000 lines in ``path``, of which ``limit`` bytes may wait."""
    return [sys.executable, "-c", RECORD, str(path), str(limit)]


def test_a_recording_in_a_named_pipe_that_nobody_reads_holds_nobody(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    done = subprocess.run(record(fifo, 1 << 20), stderr=subprocess.PIPE, timeout=BOUND, check=True)
    assert b"lines of a recording could not be written" in done.stderr


def test_a_recording_that_is_read_slowly_says_how_many_lines_are_missing(tmp_path: Path) -> None:
    fifo, seen = tmp_path / "fifo", b""
    os.mkfifo(fifo)
    end = os.open(fifo, os.O_RDWR)
    with subprocess.Popen(record(fifo, 10_000)) as process:
        while b"\n19999\n" not in seen:
            seen += os.read(end, 1 << 16)
        assert process.wait(BOUND) == 0
    os.close(end)
    lines = seen.decode().splitlines()
    missing = sum(int(json.loads(text)["message"].split()[0]) for text in lines if text.startswith("{"))
    assert missing + sum(text.isdigit() for text in lines) == 20_000


def test_a_recording_on_a_full_disk_is_given_up_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    printed = ""
    with emitter(Mode.PLAIN, Path("/dev/full")) as emit:
        while "cannot be written" not in printed:  # its thread finds out
            emit(Warned(message="line"))
            printed += capsys.readouterr().out
        emit(Warned(message="goes on"))
    assert "/dev/full cannot be written (No space left on device); the run goes on without it." in printed
    assert printed.count("cannot be written") == 1
    assert "goes on" in capsys.readouterr().out
