"""Stops that are asked for, and processes whose parent is gone. Real processes, real signals."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tsr_swarm.process.shutdown import (
    PARENT_VARIABLE,
    Shutdown,
    run_unless_stopped,
    run_unless_terminated,
    tie_to_parent,
)

# A process under ``run_until_stopped``: tells what it hears; told to "hang", its loop never answers again.
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_first_signal_asks_gracefully_and_the_process_ends_as_interrupted(number: signal.Signals) -> None:
    with child("leave") as process:
        process.send_signal(number)
        assert read(process) == "graceful"
        assert process.wait() == 130


def test_a_second_ctrl_c_asks_to_leave_at_once() -> None:
    with child("stay") as process:
        process.send_signal(signal.SIGINT)
        assert read(process) == "graceful"
        process.send_signal(signal.SIGINT)
        assert read(process) == "immediate"
        assert process.wait() == 130


def test_a_signal_that_is_sent_twice_at_once_by_a_closing_terminal_counts_once() -> None:
    with child("stay") as process:
        process.send_signal(signal.SIGHUP)
        assert read(process) == "graceful"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGINT)  # another one does count
        assert read(process) == "immediate"
        assert process.wait() == 130


def test_work_that_will_not_end_is_cancelled_after_an_immediate_stop() -> None:
    with child("ignore") as process:
        process.send_signal(signal.SIGINT)
        assert read(process) == "graceful"
        process.send_signal(signal.SIGTERM)
        assert read(process) == "immediate"
        assert process.wait() == 130


def test_a_stop_ends_even_a_process_whose_loop_is_stuck() -> None:
    with child("hang") as process:
        process.send_signal(signal.SIGINT)
        assert read(process) == "graceful"
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


def test_a_process_that_was_not_started_by_us_is_tied_to_nobody() -> None:
    assert tie_to_parent({}) is None
    assert tie_to_parent({PARENT_VARIABLE: "nonsense"}) is None


def test_a_process_whose_parent_died_before_it_looked_ends_at_once() -> None:
    with pytest.raises(SystemExit) as caught:
        tie_to_parent({PARENT_VARIABLE: "1" if os.getppid() != 1 else "2"})
    assert caught.value.code == 130


async def test_a_terminal_that_has_gone_asks_once_however_often_it_is_noticed() -> None:
    """SIGHUP tells of it, and so does the next line that it does not take."""
    stop = Shutdown()
    stop.hang_up()
    stop.hang_up()
    assert stop.graceful.is_set()
    assert not stop.immediate.is_set()
    stop.request()
    assert stop.immediate.is_set()


async def test_any_stop_cancels_work_that_has_nothing_to_finish() -> None:
    stop, events = Shutdown(), []

    async def work() -> None:
        try:
            stop.request()
            await asyncio.Event().wait()
        finally:
            events.append("cleaned up")

    await run_unless_stopped(work(), stop)
    assert events == ["cleaned up"]


async def test_a_graceful_stop_leaves_work_alone_that_sees_to_it_itself() -> None:
    stop, events = Shutdown(), []

    async def work() -> None:
        stop.request()
        await asyncio.sleep(0)
        events.append("finished")

    await run_unless_terminated(work(), stop)
    assert events == ["finished"]


async def test_errors_of_the_work_pass_through() -> None:
    async def work() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await run_unless_stopped(work(), Shutdown())
