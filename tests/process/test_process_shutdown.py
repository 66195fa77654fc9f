"""Requests to stop, and processes whose parent is gone: real processes and real signals."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tsr_swarm.process.shutdown import PARENT_VARIABLE, Shutdown, run_unless, tie_to_parent

# A process under ``run_until_stopped``: prints what it is asked; told to "hang", its loop never answers again.
CHILD = """
import asyncio, sys, time
from tsr_swarm.process import shutdown
shutdown.GIVE_UP_SECONDS = shutdown.CANCEL_SECONDS = 1.0
async def main(stop):
    print("ready", flush=True)
    await stop.graceful.wait()
    print("graceful", flush=True)
    if sys.argv[1] == "leave":
        return
    if sys.argv[1] == "hang":
        time.sleep(1000)
    await stop.immediate.wait()
    print("immediate", flush=True)
    if sys.argv[1] == "ignore":
        await asyncio.Event().wait()
sys.exit(shutdown.run_until_stopped(main, shutdown.tie_to_parent()))
"""


@contextmanager
def child(how: str) -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if name != PARENT_VARIABLE}
    command = [sys.executable, "-c", CHILD, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert read(process) == "ready"
            yield process
        finally:
            process.kill()


def read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.mark.parametrize(
    ("how", "first", "later"),
    [
        pytest.param("leave", INT, [], id="Ctrl-C"),
        pytest.param("leave", TERM, [], id="SIGTERM"),
        pytest.param("leave", HUP, [], id="a closed terminal"),
        pytest.param("stay", INT, [INT], id="a second Ctrl-C asks to leave at once"),
        pytest.param("stay", HUP, [HUP, INT], id="a closing terminal's second signal does not count, another one does"),
        pytest.param("ignore", INT, [TERM], id="work that ignores the immediate stop is cancelled"),
        pytest.param("hang", INT, [], id="a process with a stuck event loop ends too"),
    ],
)
def test_a_first_signal_asks_for_a_graceful_stop_and_the_process_ends_as_interrupted(
    how: str, first: signal.Signals, later: list[signal.Signals]
) -> None:
    with child(how) as process:
        process.send_signal(first)
        assert read(process) == "graceful"
        for number in later:
            process.send_signal(number)
        if later:
            assert read(process) == "immediate"
        assert process.wait() == 130


def test_work_that_ends_by_itself_is_a_success_and_its_errors_pass_through() -> None:
    script = (
        "import sys; from tsr_swarm.process.shutdown import run_until_stopped as run\n"
        "async def fine(stop): pass\n"
        "async def bad(stop): raise ValueError('mine')\n"
        "assert run(fine) == 0\n"
        "try: run(bad)\n"
        "except ValueError as error: sys.exit(str(error) != 'mine')\n"
        "sys.exit(2)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_only_a_process_that_one_of_ours_started_ends_with_its_parent() -> None:
    assert tie_to_parent({}) is None
    assert tie_to_parent({PARENT_VARIABLE: "nonsense"}) is None
    with pytest.raises(SystemExit) as caught:
        tie_to_parent({PARENT_VARIABLE: "1" if os.getppid() != 1 else "2"})  # it died before we looked
    assert caught.value.code == 130


async def test_a_terminal_that_has_gone_asks_once_however_often_it_is_noticed() -> None:
    """SIGHUP announces it, and so does the next line that cannot be written."""
    stop = Shutdown()
    stop.hang_up()
    stop.hang_up()
    assert stop.graceful.is_set()
    assert not stop.immediate.is_set()
    stop.request()
    assert stop.immediate.is_set()


@pytest.mark.parametrize(("awaited", "event"), [("graceful", "cancelled"), ("immediate", "finished")])
async def test_a_graceful_stop_cancels_work_unless_that_waits_for_the_immediate_one(awaited: str, event: str) -> None:
    stop, events = Shutdown(), []

    async def work() -> None:
        try:
            stop.request()
            for _ in range(10):
                await asyncio.sleep(0)
            events.append("finished")
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    await run_unless(getattr(stop, awaited), work())
    assert events == [event]


async def test_errors_of_the_work_pass_through() -> None:
    async def work() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await run_unless(Shutdown().graceful, work())
