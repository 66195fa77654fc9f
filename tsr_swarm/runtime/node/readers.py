"""Whether anybody reads the run's log at one node: its own people, a monitor, or the voters when it leads next."""

import time
from collections.abc import Callable

from tsr_swarm.runtime.background import Signal

READING_SECONDS = 30.0  # after a monitor's last call: it may be held for 20 s, and the next one comes at once
LOOK_SECONDS = 3600.0  # nothing is waited for without looking again


class Readers:
    """One node's. Its event loop owns it."""

    def __init__(self, has_people: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """``has_people``: somebody looks at this very process."""
        self.has_people, self._clock = has_people, clock
        self._votes = False
        self._until = float("-inf")
        self.changed = Signal()

    def votes(self, votes: bool) -> None:
        """Whether this node is a voter: one of them is the next leader, and goes on with the account."""
        self._votes = votes
        self.changed.notify()

    def called(self) -> None:
        """A monitor reads here."""
        self._until = self._clock() + READING_SECONDS
        self.changed.notify()

    @property
    def are_people(self) -> bool:
        """Whether everything is wanted, other peers' progress too."""
        return self.has_people or self.are_monitors

    @property
    def are_monitors(self) -> bool:
        """Whether one has called lately."""
        return self._clock() < self._until

    @property
    def are_any(self) -> bool:
        """Whether the log is wanted."""
        return self._votes or self.are_people

    async def come(self) -> None:
        """Return once the log is wanted."""
        while not await self.changed.wait_for(lambda: self.are_any, LOOK_SECONDS):
            pass
