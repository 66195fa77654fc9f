"""The shell around rounds/step.py: events in one at a time, what was promised on disk, actions out, and a timer.

An event that changes what this node has promised is carried out only once the promise is in its journal. If the disk
refuses it, the event has not happened: others' messages are said again, and this node's own are put again.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from tsr_swarm.errors import RunError
from tsr_swarm.rounds.protocol import Action, Event, Received, Tick
from tsr_swarm.rounds.state import Node
from tsr_swarm.rounds.step import step, wake_at
from tsr_swarm.storage.journal import Journal

AGAIN_SECONDS = 1.0  # until what the disk refused is tried again
LATE_SECONDS = 0.001  # a timer that rings a little late finds that its time has come


class ActionHandler(Protocol):
    """What carries out decisions. Neither method may block: each is called on the event loop, between two events."""

    def stepped(self, before: Node, after: Node) -> None:
        """A step was taken, and what it promised is on disk."""
        ...

    def carry_out(self, action: Action) -> None:
        """Begin what was decided."""
        ...


def awake_clock() -> float:
    """Seconds of a clock that never runs backwards; it goes on while the machine sleeps, where there is such a one."""
    number = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if number is None else time.clock_gettime(number)


class Driver:
    """One node's decisions at work. One event loop owns it."""

    def __init__(
        self,
        node: Node,
        hands: ActionHandler,
        journal: Journal | None,
        warn: Callable[[str], None],
        clock: Callable[[], float] = awake_clock,
    ) -> None:
        """``journal``: None for a node that nobody can dial, and that therefore promises nothing."""
        self.node = node
        self._hands, self._journal, self._warn, self._clock = hands, journal, warn, clock
        self._events: deque[Event] = deque()
        self._is_stepping = False
        self._has_warned = False
        self._not_before = float("-inf")  # what did not work is not tried at once
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def put(self, event: Event) -> None:
        """Take in ``event`` now, or after the one that is being taken in."""
        if self._is_closed:
            return
        self._events.append(event)
        if self._is_stepping:
            return
        self._is_stepping = True
        try:
            while self._events:
                self._take_in(self._events.popleft())
        except BaseException:
            self._not_before = self._clock() + AGAIN_SECONDS  # a fault may come with every step
            raise
        finally:
            self._is_stepping = False
            self._set_timer()

    def change(self, update: Callable[[Node], Node]) -> None:
        """Replace what the node knows of the run's rules or of itself; between events."""
        self.node = update(self.node)

    def close(self) -> None:
        """Take in nothing more."""
        self._is_closed = True
        self._events.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _take_in(self, event: Event) -> None:
        before = self.node
        after, actions = step(before, event, self._clock())
        if after.voter.hard_state != before.voter.hard_state and not self._promise(after):
            self._not_before = self._clock() + AGAIN_SECONDS
            if not isinstance(event, Received | Tick):
                asyncio.get_running_loop().call_later(AGAIN_SECONDS, self.put, event)
            return
        self.node = after
        self._hands.stepped(before, after)
        for action in actions:
            self._hands.carry_out(action)

    def _promise(self, node: Node) -> bool:
        """Journal what ``node`` promises; False if the disk does not take it."""
        if self._journal is None:
            return True
        try:
            self._journal.write(node.voter.hard_state)
        except RunError as error:
            if not self._has_warned:
                self._warn(f"{error} This node waits until it can be written.")
            self._has_warned = True
            return False
        self._has_warned = False
        return True

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = wake_at(self.node)
        if due == float("inf") or self._is_closed:
            return
        wait = max(due, self._not_before) - self._clock() + LATE_SECONDS
        self._timer = asyncio.get_running_loop().call_later(max(0.0, wait), self.put, Tick())
