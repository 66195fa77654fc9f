"""Call again while the other side cannot be reached: it may be starting, or its name may not resolve yet."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tsr_swarm.errors import UnreachableError
from tsr_swarm.telemetry.text import seconds_text

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0  # seconds between two calls

T = TypeVar("T")


async def retry_while_unreachable(
    call: Callable[[], Awaitable[T]],
    seconds: float,
    say: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """The result of ``call``, repeated for ``seconds`` while it raises UnreachableError; 0: it is called once.

    ``say``: hears one sentence, when the first call has failed and others follow. Raises the last UnreachableError,
    with how long it was tried, and whatever else ``call`` raises at once.
    """
    began, pause = clock(), FIRST_PAUSE
    try:
        return await call()
    except UnreachableError as error:
        if clock() - began >= seconds:
            raise
        failure = error
    say(f"{failure} Trying again for {seconds_text(seconds)}.")
    while (left := seconds - (clock() - began)) > 0:
        await sleep(min(pause, left))
        pause = min(2 * pause, LONGEST_PAUSE)
        try:
            async with asyncio.timeout(max(LONGEST_PAUSE, seconds - (clock() - began))):
                return await call()
        except UnreachableError as error:
            failure = error
        except TimeoutError:
            break
    raise UnreachableError(f"{failure} Tried for {seconds_text(seconds)}; --wait sets for how long.") from failure
