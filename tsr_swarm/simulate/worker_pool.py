"""Runs side by side: processes that each simulate one run at a time and say over a pipe how far they are."""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import cast

from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.simulate.engine import run_one
from tsr_swarm.simulate.result import RunResult
from tsr_swarm.simulate.run_spec import RunSpec
from tsr_swarm.train.corpus import Warn, ignore

OnStep = Callable[[str, int], None]  # a run's name, and its steps so far


def run_side_by_side(specs: Sequence[RunSpec], jobs: int, on_step: OnStep, warn: Warn = ignore) -> Iterator[RunResult]:
    """Results as they are finished. With one job everything is done in this process.

    No process outlives the iteration, however it ends. Raises the error of the first run that cannot be run.
    """
    if jobs <= 1:
        for spec in specs:
            yield run_one(spec, lambda step, name=spec.name: on_step(name, step), warn)  # type: ignore[misc]
        return
    waiting = list(reversed(specs))
    with ExitStack() as stack:
        idle = [stack.enter_context(_Worker()) for _ in range(min(jobs, len(specs)))]
        busy: dict[Connection, _Worker] = {}
        while waiting or busy:
            while waiting and idle:
                worker = idle.pop()
                worker.start(waiting.pop())
                busy[worker.pipe] = worker
            for pipe in wait(list(busy)):
                worker = busy[cast(Connection, pipe)]
                message = worker.receive()
                if isinstance(message, int):
                    on_step(worker.name, message)
                elif isinstance(message, str):
                    warn(message)
                else:
                    idle.append(busy.pop(worker.pipe))
                    yield message


class _Worker:
    """A process and this end of its pipe."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process that has used torch may hang
        self.pipe, self._other = context.Pipe()
        self._process = context.Process(target=_work, args=(self._other,), daemon=True)
        self.name = ""

    def __enter__(self) -> "_Worker":
        # Ctrl-C reaches the whole process group; the parent ends its workers, so they are born with it held back.
        resource_tracker.ensure_running()  # or start() does it, and lets SIGINT through again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._other.close()
        return self

    def __exit__(self, *unused: object) -> None:
        self.pipe.close()
        self._process.terminate()
        self._process.join()

    def start(self, spec: RunSpec) -> None:
        self.name = spec.name
        self.pipe.send(spec)

    def receive(self) -> RunResult | int | str:
        """A result, a number of steps, or a warning. Raises what the run raised."""
        try:
            message: RunResult | int | str | Exception = self.pipe.recv()
        except EOFError:
            self._process.join()
            raise RunError(
                f"The process that simulated {self.name} ended with exit code {self._process.exitcode}, perhaps for "
                "want of memory; the same command goes on, with fewer --jobs if need be."
            ) from None
        if isinstance(message, Exception):
            raise message
        return message


def _work(pipe: Connection) -> None:
    while True:
        try:
            spec: RunSpec = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(run_one(spec, pipe.send, pipe.send))
        except PeerError as error:  # takes two arguments, so it does not survive the pipe
            pipe.send(RunError(str(error)))
        except BrokenPipeError:
            return  # nobody is interested any more
        except Exception as error:
            error.add_note(traceback.format_exc())  # a traceback does not survive the pipe, a note does
            pipe.send(error)
