"""Many runs, side by side: those that are on disk are read, the others are simulated and kept as each one ends."""

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import cast

from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.simulate.engine import check, run_one
from tsr_swarm.simulate.result import ResultStore, RunResult
from tsr_swarm.simulate.run_spec import RunSpec
from tsr_swarm.train.corpus import Warn, ignore, once

OnStep = Callable[[str, int], None]  # a run's name, and its steps so far


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a study is."""

    name: str  # of the run that has gone on
    step: int  # of that run
    finished: RunResult | None = None
    done: int  # runs that are finished, those found on disk included
    total: int
    seconds_left: float | None  # estimate; None before the first step


def run_all(
    specs: Sequence[RunSpec],
    store: ResultStore,
    jobs: int = 1,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    warn: Warn = ignore,
) -> list[RunResult]:
    """Return the result of every spec, in their order. A spec that is named twice is run once.

    After an interrupt the same call goes on with the runs that were not finished. ``jobs``: processes of one torch
    thread each; a script that asks for more than one needs the usual ``if __name__ == "__main__"``. ``warn`` gets each
    sentence about text that could not be read once. Raises ConfigError for a spec that cannot be run, before any is.
    """
    wanted = {spec.name: spec for spec in specs}
    results = {name: result for name, spec in wanted.items() if (result := store.load(spec)) is not None}
    missing = [spec for name, spec in wanted.items() if name not in results]
    for spec in missing:
        check(spec)
    started, steps = time.monotonic(), dict[str, int]()

    def report(name: str, step: int, finished: RunResult | None = None) -> None:
        steps[name] = step
        left = seconds_left(missing, steps, time.monotonic() - started)
        done, total = len(results), len(wanted)
        on_progress(Progress(name=name, step=step, finished=finished, done=done, total=total, seconds_left=left))

    for result in run_side_by_side(missing, jobs, report, once(warn)):
        store.save(result)
        results[result.name] = result
        report(result.name, wanted[result.name].steps, result)
    return [results[spec.name] for spec in specs]


def seconds_left(specs: Sequence[RunSpec], steps: Mapping[str, int], elapsed: float) -> float | None:
    """Estimate the time left from the share of all local steps of all peers that is done: ``steps`` by run's name."""
    total = sum(spec.peers * spec.steps for spec in specs)
    done = sum(spec.peers * steps.get(spec.name, 0) for spec in specs)
    return elapsed * (total - done) / done if done else None


def run_side_by_side(specs: Sequence[RunSpec], jobs: int, on_step: OnStep, warn: Warn = ignore) -> Iterator[RunResult]:
    """Yield results as they are finished. With one job everything is done in this process.

    No process outlives the iteration, however it ends. Raises the error of the first run that cannot be run.
    """
    if jobs <= 1:
        for spec in specs:
            yield run_one(spec, lambda step, name=spec.name: on_step(name, step), warn)  # type: ignore[misc]
        return
    waiting = list(reversed(specs))
    with ExitStack() as stack:
        with _interrupts_blocked():
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


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block SIGINT in processes that are started here, for good, and in this one until the block is left.

    Ctrl-C reaches the whole process group, and the parent ends its workers: so it has to know them all.
    """
    resource_tracker.ensure_running()  # or starting a process does it, and unblocks SIGINT again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker:
    """A process that simulates one run at a time, and this end of the pipe over which it reports."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process that has used torch may hang
        self.pipe, self._other = context.Pipe()
        self._process = context.Process(target=work, args=(self._other,), daemon=True)
        self.name = ""

    def __enter__(self) -> "_Worker":
        self._process.start()
        self._other.close()
        return self

    def __exit__(self, *unused: object) -> None:
        self._process.terminate()
        self._process.join()
        self.pipe.close()

    def start(self, spec: RunSpec) -> None:
        self.name = spec.name
        self.pipe.send(spec)

    def receive(self) -> RunResult | int | str:
        """Return a result, a number of steps, or a warning. Raises what the run raised."""
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


def work(pipe: Connection) -> None:
    """Simulate what comes over ``pipe`` until the other end is closed, whether it has read the answers or not."""
    with suppress(EOFError, ConnectionError):
        while True:
            spec: RunSpec = pipe.recv()
            try:
                pipe.send(run_one(spec, pipe.send, pipe.send))
            except ConnectionError:
                return
            except PeerError as error:  # takes two arguments, so it cannot be pickled through the pipe
                pipe.send(RunError(str(error)))
            except Exception as error:
                error.add_note(traceback.format_exc())  # a traceback is lost in the pipe, a note is not
                pipe.send(error)
