"""States that a node keeps on disk to serve them to others.

Several donors can serve chunks of one state only if they have the very same state, so states are kept of the rounds
that are divisible by STATE_ROUNDS. Each is a file: a reference to the tensors would hold a state's memory as long as it
is served. It is written on a thread, from tensors that are replaced and never written to, so nothing waits for it.
"""

import asyncio
import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.errors import RefusedError
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.process.machine_limits import disk_errors
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.storage.state_file import read_chunks, write_state
from tsr_swarm.wire.v1 import swarm_pb2 as pb

STATE_ROUNDS = 5  # between two states that every donor keeps; replaying up to this many rounds is cheap
KEPT_STATES = 2  # so a download that began just before a new state has a whole period left
LEASE_SECONDS = 1800.0  # an older state stays this long after its last request ...
MAX_STATES = 4  # ... unless there are more than so many


def is_agreed(round: int) -> bool:
    """Whether every donor keeps the state after this round."""
    return round % STATE_ROUNDS == 0


@dataclass(slots=True)
class _StoredState:
    description: pb.StateDescription
    path: Path
    requested_at: float = float("-inf")


class StateStore:
    """The states of one node, in ``folder``, and its round log. To be called from one event loop."""

    def __init__(
        self, manifest: Manifest, folder: Path, round_log: RoundLog, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.manifest, self.round_log, self.folder = manifest, round_log, folder
        self._clock = clock
        self._states: dict[int, _StoredState] = {}
        self._writes = asyncio.Lock()

    def open(self) -> None:
        """Remove the states that an earlier process left, except an unfinished download. Raises RunError."""
        with disk_errors(f"{self.folder} cannot be used", "choose a folder you can write to"):
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in [*self.folder.glob("state-*.bin"), *self.folder.glob("state-*.new")]:
                path.unlink()

    def describe(self, round: int = 0) -> pb.StateDescription | None:
        """Describe the state of ``round`` if it is kept, else the newest one; None if there is none."""
        wanted = round if round in self._states and round else max(self._states, default=-1)
        stored = self._states.get(wanted)
        return None if stored is None else stored.description

    def lease(self, round: int) -> None:
        """Keep this state longer: it was requested just now."""
        if (stored := self._states.get(round)) is not None:
            stored.requested_at = self._clock()

    async def keep_state(self, consensus: Consensus, round: int, chain: bytes) -> pb.StateDescription:
        """Write the state of ``round`` on a thread. Raises RunError.

        ``consensus`` is taken as it is now; later rounds may be applied to it meanwhile.
        """
        frozen = copy.copy(consensus)
        async with self._writes:
            if (stored := self._states.get(round)) is not None and stored.description.chain == chain:
                return stored.description
            path = self.folder / f"state-{round:09d}.new"
            description = await asyncio.to_thread(write_state, path, self.manifest, frozen, round, chain)
            self._add(path, description)
            return description

    async def start_anew(self, path: Path, description: pb.StateDescription) -> None:
        """Keep only a state that was downloaded: the others may be of another history. Raises RunError."""
        async with self._writes:
            for round in list(self._states):
                self._remove(round)
            self.round_log.rebase(description.round, description.chain)
            self._add(path, description)

    def chunks(self, request: pb.FetchStateRequest) -> Iterator[pb.StateChunk]:
        """Read chunks of a state that is kept. Raises RefusedError."""
        stored = self._states.get(request.round)
        if stored is None:
            newest = max(self._states, default=-1)
            instead = "no state is" if newest < 0 else f"the newest is that of round {newest}"
            raise RefusedError(f"The state of round {request.round} is not kept here; {instead}.")
        self.lease(request.round)
        return read_chunks(stored.path, stored.description, request.first_chunk, request.chunks)

    def _add(self, path: Path, description: pb.StateDescription) -> None:
        final = self.folder / f"state-{description.round:09d}.bin"
        with disk_errors(f"The state cannot be kept in {self.folder}", "free space"):
            path.replace(final)
        self._states[description.round] = _StoredState(description, final)
        old, now = sorted(self._states, reverse=True)[KEPT_STATES:], self._clock()
        for count, round in enumerate(old, start=KEPT_STATES):
            if count >= MAX_STATES or self._states[round].requested_at < now - LEASE_SECONDS:
                self._remove(round)

    def _remove(self, round: int) -> None:
        with contextlib.suppress(OSError):  # a reader still has it open
            self._states.pop(round).path.unlink(missing_ok=True)
