"""Virtual time: a queue of calls."""

import heapq
import itertools
from collections.abc import Callable


class Timer:
    """A call that was ordered for later, and can be cancelled."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Clock:
    """Makes calls in the order of their times. Of two at the same time, the one that was put first comes first."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()

    def at(self, time: float, call: Callable[[], None]) -> Timer:
        """Make ``call`` at ``time``, or now if that is over."""
        timer = Timer(call)
        heapq.heappush(self._queue, (max(time, self.now), next(self._numbers), timer))
        return timer

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Make ``call`` in ``seconds``."""
        return self.at(self.now + seconds, call)

    def run(self, is_over: Callable[[], bool], most: int) -> int:
        """Make calls until ``is_over``, none is left or ``most`` are made. Returns how many were made."""
        count = 0
        while self._queue and count < most and not is_over():
            time, _, timer = heapq.heappop(self._queue)
            if timer.call is not None:
                self.now = time
                timer.call()
                count += 1
        return count
