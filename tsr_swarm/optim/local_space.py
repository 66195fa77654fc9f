"""The interface of what a peer moves between two exchanges.

A round, in order: ``begin``, many ``step``, ``upload``; when the round is committed ``settle`` and ``take_moments``,
then ``Consensus.apply``, then ``rotate``, and ``begin`` again. Steps taken between ``upload`` and ``settle`` are kept.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from tsr_swarm.config.layout import Slot
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.config.run import WireConfig
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.grid import Grid
from tsr_swarm.lowrank.sketch import Captured
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.quantise import GradientSketches


class LocalSpace(Protocol):
    """What a peer trains: the model's own parameters, on any device. A missing gradient counts as zero."""

    def begin(self, consensus: Consensus) -> None:
        """Write W_i = Wbar less this peer's work that has not been averaged yet into the parameters."""

    def step(self, lr: float) -> None:
        """Take one local step from ``parameter.grad``, already clipped; gradients are left as they are.

        It may add to the parameters: after any other change of them ``begin`` must be called before the next step.
        """

    def captured(self, consensus: Consensus) -> Mapping[int, Captured]:
        """Measure how much of each low-rank block's displacement its bases hold, before ``upload``.

        Empty where the leader does not use it, and for cores, all of which is in their bases.
        """
        return {}

    def upload(
        self, consensus: Consensus, plan: RoundPlan, wire: WireConfig, gradients: GradientSketches
    ) -> dict[Slot, Grid]:
        """Return what this peer sends, in slot order, and remember it until ``settle``.

        ``gradients`` holds what the plan asks of the gradients of ``plan.due.range``, ``project`` and ``choose``.
        Raises RunError on a displacement that is not finite.
        """

    def settle(self, consensus: Consensus, included: frozenset[int]) -> None:
        """Take what was averaged out of the displacement, for the blocks in ``included``; the rest keep theirs.

        Before ``Consensus.apply``: ``consensus`` still has the bases that the upload was made in.
        """

    def take_moments(self, published: Mapping[Slot, Grid]) -> None:
        """Replace moments by those in ``published``, if there are any; before ``Consensus.apply``.

        Every peer does so, also one that the round did not include. They are in the old bases. Moments of full size
        stay with their peers: a core of a moment is not the moment of a core. LoRDO's have low rank at full size, too.
        """
        return

    def rotate(self, refreshed: Mapping[int, tuple[Basis, Basis]]) -> None:
        """Carry all that is in core coordinates, if anything is, to the new bases; after ``Consensus.apply``."""
        return

    def rebase(self, consensus: Consensus) -> None:
        """Keep what is still valid after the consensus was replaced by a downloaded one.

        An upload that was never settled counts as averaged: work lost once is better than work counted twice.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that a restarted peer needs to continue, as flat CPU tensors."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Read ``state_dict`` back; ``begin`` must follow. Raises CheckpointError, before any change."""
