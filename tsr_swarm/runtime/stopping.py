"""Work that may be dropped at any moment."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from tsr_swarm.runtime.lifeline import StopRequest


async def run_unless_now(work: Coroutine[Any, Any, None], stop: StopRequest) -> None:
    """Await ``work``, but cancel it as soon as ``stop.now`` is set; that is then a normal end."""
    task = asyncio.create_task(work)
    now = asyncio.create_task(stop.now.wait())
    try:
        await asyncio.wait({task, now}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        now.cancel()
        task.cancel()  # does nothing to work that is done
    try:
        await task
    except asyncio.CancelledError:
        if not stop.now.is_set():
            raise
