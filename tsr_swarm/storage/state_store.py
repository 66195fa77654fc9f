"""What coordinator and peers give to others: states of agreed rounds, and published rounds.

Several donors can give chunks of one state only if they have the very same state, so states are kept of the rounds that
are divisible by STATE_ROUNDS. Each is a file: a reference to the tensors would cost a state's memory for as long as it
is served, a file costs its disk, and memory only while it is written. It is written on a thread from tensors that are
replaced and never written to, so nobody waits for it.
"""

import asyncio
import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.errors import RefusedError, RunError
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.storage.state_file import read_chunks, write_state
from tsr_swarm.telemetry.text import reason_text
from tsr_swarm.wire.v1 import swarm_pb2 as pb

STATE_ROUNDS = 5  # between two states that every donor keeps; replaying up to this many rounds is cheap
KEPT_STATES = 2  # a download that began just before a new state has a whole period left ...
LEASE_SECONDS = 1800.0  # ... and one that takes longer, or is broken off and goes on, is not in vain ...
MAX_STATES = 4  # ... unless that would take too much disk


def is_agreed(round: int) -> bool:
    """Whether every donor keeps the state after this round."""
    return round % STATE_ROUNDS == 0


@dataclass(slots=True)
class _Kept:
    description: pb.StateDescription
    path: Path
    asked: float = float("-inf")  # when somebody last asked for it


class StateStore:
    """One process's states, in ``folder``, and its delta log. Its event loop owns it."""

    def __init__(
        self, manifest: Manifest, folder: Path, delta_log: RoundLog, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.manifest, self.delta_log, self.folder = manifest, delta_log, folder
        self._clock = clock
        self._states: dict[int, _Kept] = {}
        self._writes = asyncio.Lock()

    def open(self) -> None:
        """Remove the states that an earlier process left, but for a download that may go on. Raises RunError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in [*self.folder.glob("state-*.bin"), *self.folder.glob("state-*.new")]:
                path.unlink()
        except OSError as error:
            raise RunError(
                f"{self.folder} cannot be used ({reason_text(error)}); choose a folder you can write to."
            ) from error

    # --- states -------------------------------------------------------------------------------------------------

    def describe(self, round: int = 0) -> pb.StateDescription | None:
        """The state of ``round`` if it is kept, else the newest one; None if there is none."""
        wanted = round if round in self._states and round else max(self._states, default=-1)
        kept = self._states.get(wanted)
        return None if kept is None else kept.description

    def lease(self, round: int) -> None:
        """Somebody has asked for this state, or some of it."""
        if (kept := self._states.get(round)) is not None:
            kept.asked = self._clock()

    async def keep_state(self, consensus: Consensus, round: int, chain: bytes) -> pb.StateDescription:
        """Write the state of ``round`` beside everything else. Raises RunError.

        Takes what ``consensus`` is now; it may go on to later rounds meanwhile.
        """
        frozen = copy.copy(consensus)
        async with self._writes:
            if (kept := self._states.get(round)) is not None and kept.description.chain == chain:
                return kept.description
            path = self.folder / f"state-{round:09d}.new"
            description = await asyncio.to_thread(write_state, path, self.manifest, frozen, round, chain)
            self._take_in(path, description)
            return description

    async def start_anew(self, path: Path, description: pb.StateDescription) -> None:
        """Keep a state that was downloaded, and no other: those that were kept may be of another history.

        Raises RunError.
        """
        async with self._writes:
            for round in list(self._states):
                self._remove(round)
            self.delta_log.rebase(description.round, description.chain)
            self._take_in(path, description)

    def chunks(self, request: pb.FetchStateRequest) -> Iterator[pb.StateChunk]:
        """Chunks of a state that is kept. Raises RefusedError."""
        kept = self._states.get(request.round)
        if kept is None:
            newest = max(self._states, default=-1)
            instead = "no state is" if newest < 0 else f"the newest is that of round {newest}"
            raise RefusedError(f"The state of round {request.round} is not kept here; {instead}.")
        self.lease(request.round)
        return read_chunks(kept.path, kept.description, request.first_chunk, request.chunks)

    def _take_in(self, path: Path, description: pb.StateDescription) -> None:
        final = self.folder / f"state-{description.round:09d}.bin"
        try:
            path.replace(final)
        except OSError as error:
            raise RunError(f"The state cannot be kept in {self.folder} ({reason_text(error)}); free space.") from error
        self._states[description.round] = _Kept(description, final)
        old, now = sorted(self._states, reverse=True)[KEPT_STATES:], self._clock()
        for place, round in enumerate(old, start=KEPT_STATES):
            if place >= MAX_STATES or self._states[round].asked < now - LEASE_SECONDS:
                self._remove(round)

    def _remove(self, round: int) -> None:
        with contextlib.suppress(OSError):  # who reads it still has it open
            self._states.pop(round).path.unlink(missing_ok=True)

    # --- rounds -------------------------------------------------------------------------------------------------

    async def keep_round(self, header: pb.PublishedHeader, data: bytes) -> None:
        """Keep a round that stands and that this peer has applied. Raises RunError."""
        async with self._writes:  # in order
            await asyncio.to_thread(self.delta_log.store, header, data)
            self.delta_log.commit(header.plan.round, header.chain)
            self.delta_log.checkpointed(header.plan.round)  # a peer can always fetch the state: any round may go
