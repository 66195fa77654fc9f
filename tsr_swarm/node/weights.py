"""The consensus weights of one node, and what moves them: a published round, or a whole state. Worker thread only."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from tsr_swarm.errors import RunError
from tsr_swarm.exchange.reduction import Published
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.node.workspace import Workspace
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.train.trainer import Trainer


@dataclass(frozen=True, slots=True, eq=False)
class AppliedRound:
    """What a round made of the weights. ``consensus`` stays as it is: later rounds replace tensors, none is written."""

    digest: str
    consensus: Consensus
    refreshed: Mapping[int, tuple[Basis, Basis]]  # old and new bases, of the blocks whose bases are new


class Weights(Protocol):
    """Somebody's consensus."""

    @property
    def consensus(self) -> Consensus | None:
        """As it is now; None before the first state."""
        ...

    def move(self, published: Published, included: frozenset[int]) -> bytes:
        """Apply a round; ``included``: blocks in whose average this node's work is. Returns the digest."""
        ...

    def replace(self, consensus: Consensus) -> None:
        """Go on from a downloaded state."""
        ...


class PlainWeights:
    """Of a node that does not train."""

    def __init__(self, consensus: Consensus | None) -> None:
        self.consensus = consensus

    def move(self, published: Published, included: frozenset[int]) -> bytes:
        assert self.consensus is not None, "there is a state"
        self.consensus.apply(published.header.plan, published.grids, published.void)
        return self.consensus.digest()

    def replace(self, consensus: Consensus) -> None:
        self.consensus = consensus


class TrainedWeights:
    """Of a peer: its trainer moves with them."""

    def __init__(self, workshop: Workspace, trainer: Trainer | None) -> None:
        self._workshop = workshop
        self.trainer = trainer

    @property
    def consensus(self) -> Consensus | None:
        return None if self.trainer is None else self.trainer.consensus

    def move(self, published: Published, included: frozenset[int]) -> bytes:
        assert self.trainer is not None, "there is a state"
        return self.trainer.apply(published.header.plan, published.grids, published.void, included)

    def replace(self, consensus: Consensus) -> None:
        if self.trainer is None:
            self.trainer = self._workshop.trainer(consensus)
        else:
            self.trainer.replace_consensus(consensus)


def apply_round(weights: Weights, published: Published, me: str) -> AppliedRound:
    """Apply ``published`` and say what it did."""
    before = frozen(weights).bases
    digest = weights.move(published, published.included_blocks(me))
    after = frozen(weights)
    refreshed = {index: (before[index], basis) for index, basis in after.bases.items() if basis is not before[index]}
    return AppliedRound(digest.hex(), after, refreshed)


def frozen(weights: Weights) -> Consensus:
    """The consensus as it is now, and stays."""
    if weights.consensus is None:
        raise RunError("There is no state here yet; try again when it has been downloaded.")
    return copy.copy(weights.consensus)
