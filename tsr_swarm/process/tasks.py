"""Two helpers for one event loop: a signal to wait for, and a set of tasks with one owner."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any


class Signal:
    """Wakes all tasks that wait for it. ``notify`` is synchronous, so it fits between two steps of a state machine."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait_for(self, predicate: Callable[[], bool], seconds: float) -> bool:
        """Wait until ``predicate`` holds, looking after each notification. False if it did not in time."""
        until = time.monotonic() + seconds
        while not predicate():
            event = self._event
            try:
                # Not asyncio.wait_for: before Python 3.12 it may swallow a cancellation that comes with the event.
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    await event.wait()
            except TimeoutError:
                return predicate()
        return True


class Background:
    """Tasks of one owner, which gets the first failure of any of them from ``until`` and ends them with ``close``."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._note)
        return task

    def _note(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = self._failure or task.exception()
            self._failed.set()

    async def until(self, event: asyncio.Event) -> None:
        """Wait for ``event``; raise the first failure of a task if that comes first."""
        waits = [asyncio.create_task(event.wait()), asyncio.create_task(self._failed.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Cancel what is still running and wait for it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
