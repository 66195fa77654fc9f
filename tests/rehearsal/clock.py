"""Virtual time: a queue of calls."""

import heapq
from collections.abc import Callable

Call = Callable[[], None]


class Clock:
    """Makes calls in the order of their times. Of two at the same time, the one that was put first comes first."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Call]] = []
        self._count = 0

    def at(self, time: float, call: Call) -> None:
        """Make ``call`` at ``time``, or now if that is over."""
        self._count += 1
        heapq.heappush(self._queue, (max(time, self.now), self._count, call))

    def after(self, seconds: float, call: Call) -> None:
        """Make ``call`` in ``seconds``."""
        self.at(self.now + seconds, call)

    def run(self, is_over: Callable[[], bool], most: int) -> int:
        """Make calls until ``is_over``, none is left or ``most`` are made. Returns how many were made."""
        count = 0
        while self._queue and count < most and not is_over():
            self.now, _, call = heapq.heappop(self._queue)
            call()
            count += 1
        return count
