"""Drives ``rounds/step.py``: takes in one event at a time, journals what it promised, and hands actions out.

An event that changes what this node has promised is carried out only once the promise is in its journal. If the disk
refuses it, the event has not happened: other nodes repeat their messages, and this node's own events are put again.

Nothing here needs an event loop where ``clock`` and ``call_at`` are given: tests/rehearsal runs nodes in virtual time.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from tsr_swarm.errors import RunError
from tsr_swarm.rounds.protocol import Action, Event, Received, Tick
from tsr_swarm.rounds.raft_state import HardState
from tsr_swarm.rounds.state import Node
from tsr_swarm.rounds.step import step, wake_at

AGAIN_SECONDS = 1.0  # until what the disk refused is tried again
LATE_SECONDS = 0.001  # an event loop may call a little too early, by a clock of its own


class ActionHandler(Protocol):
    """Carries out decisions. Neither method may block: each is called between two events."""

    def on_step(self, before: Node, after: Node) -> None:
        """A step was taken, and what it promised is on disk."""

    def carry_out(self, action: Action) -> None:
        """Begin what was decided."""


class PromiseLog(Protocol):
    """Where promises are kept, such as storage/journal.py. ``write`` raises RunError where they are not on disk."""

    def write(self, hard_state: HardState, /) -> None: ...


class Timer(Protocol):
    """A call that was ordered for later, and can be cancelled."""

    def cancel(self) -> None: ...


def awake_clock() -> float:
    """Seconds of a clock that never runs backwards, and also counts while the machine sleeps where the system can."""
    number = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if number is None else time.clock_gettime(number)


def call_on_loop(when: float, call: Callable[[], None]) -> Timer:
    """Make ``call`` on the running event loop once ``awake_clock`` says ``when``."""
    return asyncio.get_running_loop().call_later(when - awake_clock() + LATE_SECONDS, call)


class Driver:
    """One node's decisions at work. Events are put from one thread; ``handler`` is set before the first one."""

    handler: ActionHandler

    def __init__(
        self,
        node: Node,
        journal: PromiseLog | None,
        warn: Callable[[str], None],
        clock: Callable[[], float] = awake_clock,
        call_at: Callable[[float, Callable[[], None]], Timer] = call_on_loop,
    ) -> None:
        """Make the driver of ``node``.

        journal: None for a node that nobody can dial, and that therefore promises nothing. call_at: makes a call when
        ``clock`` has reached a time, or soon if it has; never at once.
        """
        self.node = node
        self._journal, self._warn, self._clock, self._call_at = journal, warn, clock, call_at
        self._events: deque[Event] = deque()
        self._is_stepping = False
        self._has_warned = False
        self._not_before = float("-inf")  # what did not work is not tried at once
        self._timer: Timer | None = None
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
            self.reset_timer()

    def change(self, update: Callable[[Node], Node]) -> None:
        """Replace what the node knows of the run's rules or of itself; between events."""
        self.node = update(self.node)

    def reset_timer(self) -> None:
        """Have a Tick come when the next one is due, by the clock as it is now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = wake_at(self.node)
        if due == float("inf") or self._is_closed:
            return
        self._timer = self._call_at(max(due, self._not_before), lambda: self.put(Tick()))

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
                self._call_at(self._not_before, lambda: self.put(event))
            return
        self.node = after
        self.handler.on_step(before, after)
        for action in actions:
            self.handler.carry_out(action)

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
