"""The consensus weights of one node, the thread that moves them, and what moves them: a round, or a whole state."""

import asyncio
import copy
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar, TypeVarTuple

from tsr_swarm.errors import UnreachableError
from tsr_swarm.exchange.reduction import Published
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.process.machine_limits import memory_errors
from tsr_swarm.process.tasks import Signal
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.storage.run_folder import record_of

WAIT_SECONDS = 60.0  # nothing is waited for without looking again

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True, eq=False)
class AppliedRound:
    """What a round made of the weights. ``consensus`` stays as it is: later rounds replace tensors, none is written."""

    digest: str
    consensus: Consensus
    refreshed: Mapping[int, tuple[Basis, Basis]]  # old and new bases, of the blocks whose bases are new


class Weights(Protocol):
    """Consensus weights that rounds and states move: PlainWeights here, or a peer's Workspace with its trainer."""

    @property
    def consensus(self) -> Consensus | None:
        """As it is now; None before the first state."""

    def apply(self, published: Published, included: frozenset[int]) -> bytes:
        """Apply a round; ``included``: blocks in whose average this node's work is. Returns the digest."""

    def replace(self, consensus: Consensus) -> None:
        """Go on from a downloaded state."""


class PlainWeights:
    """Weights of a node that does not train."""

    def __init__(self, consensus: Consensus | None) -> None:
        self.consensus = consensus

    def apply(self, published: Published, included: frozenset[int]) -> bytes:
        assert self.consensus is not None, "there is a state"
        self.consensus.apply(published.header.plan, published.grids, published.void)
        return self.consensus.digest()

    def replace(self, consensus: Consensus) -> None:
        self.consensus = consensus


class WeightsThread:
    """The one thread that touches a node's weights, which does what it is asked for in order, and their newest round.

    Its methods are called on the event loop.
    """

    def __init__(self, weights: Weights, me: str, record: RoundRecord | None = None) -> None:
        """``record``: of the round that ``weights`` are at; None before the first state."""
        self._weights, self._me = weights, me
        self._worker = ThreadPoolExecutor(1, "maths")
        self._newest: tuple[Consensus, RoundRecord] | None = None
        self._moved = Signal()
        if record is not None:
            self._newest = _frozen(weights), record

    async def run(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Do heavy work after all that was asked for before. Raises RunError where memory does not suffice."""
        with memory_errors():
            return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)

    async def apply(self, published: Published) -> AppliedRound:
        applied = await self.run(self._apply, published)
        self._move(applied.consensus, record_of(published.header))
        return applied

    def _apply(self, published: Published) -> AppliedRound:
        before = _frozen(self._weights).bases
        digest = self._weights.apply(published, published.included_blocks(self._me))
        after = _frozen(self._weights)
        refreshed = {
            index: (old, new)
            for (index, old), new in zip(before.items(), after.bases.values(), strict=True)
            if not (old.left is new.left and old.right is new.right)
        }
        return AppliedRound(digest.hex(), after, refreshed)

    async def replace(self, consensus: Consensus, record: RoundRecord) -> None:
        """Go on from a downloaded state, that of the round of ``record``."""
        await self.run(self._weights.replace, consensus)
        self._move(_frozen(self._weights), record)

    def freeze(self) -> tuple[Consensus, RoundRecord]:
        """The newest weights, and of which round. Raises UnreachableError before the first state."""
        if self._newest is None:
            raise UnreachableError("There is no state here yet; try again when it has been downloaded.")
        return self._newest

    async def bases(self, round: int) -> Mapping[int, Basis] | None:
        """The bases after ``round``, once they are here; None if that is past or does not come."""
        await self._moved.wait_for(lambda: self._newest is not None and self._newest[1].round >= round, WAIT_SECONDS)
        return self._newest[0].bases if self._newest is not None and self._newest[1].round == round else None

    def close(self) -> None:
        """End the thread when it has done what it does."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _move(self, consensus: Consensus, record: RoundRecord) -> None:
        self._newest = consensus, record
        self._moved.notify()


def _frozen(weights: Weights) -> Consensus:
    """The consensus as it is now, and stays."""
    assert weights.consensus is not None, "there is a state"
    return copy.copy(weights.consensus)
