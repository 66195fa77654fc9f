"""The seam between a peer's training loop and its round: what one peer moves between two exchanges.

A round, in order: ``begin``, many ``step``, ``upload``; when the round is committed ``settle`` and ``take_moments``,
then ``Consensus.apply``, then ``rotate``, and ``begin`` again. Steps taken between ``upload`` and ``settle`` are kept.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from tsr_swarm.config.layout import Part, Slot
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.config.run import WireConfig
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.grid import Grid
from tsr_swarm.lowrank.sketch import Captured
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.quantise import quantise_slot


class LocalSpace(Protocol):
    """Works on the model's own parameters, on any device. A parameter without a gradient counts as one of zero."""

    def begin(self, consensus: Consensus) -> None:
        """Write W_i = Wbar less what of this peer's work has not been averaged yet into the parameters."""

    def step(self, lr: float) -> None:
        """Take one local step from ``parameter.grad``, already clipped; gradients are left as they are.

        It may add to what the parameters hold: whoever else writes into them calls ``begin`` before the next step.
        """

    def captured(self, consensus: Consensus) -> Mapping[int, Captured]:
        """How much of each low-rank block's displacement its bases hold, before ``upload``.

        Empty where a leader has nothing to choose by it.
        """

    def upload(
        self,
        consensus: Consensus,
        plan: RoundPlan,
        wire: WireConfig,
        gradients: Mapping[int, tuple[Tensor, Tensor]],
    ) -> dict[Slot, Grid]:
        """Return what this peer sends, in slot order, and remember it until ``settle``.

        ``gradients`` holds (G V, G^T U) for each block of ``plan.due.aim``, energies for those of ``choose``. Raises
        RunError on a displacement that is not finite.
        """

    def settle(self, consensus: Consensus, included: frozenset[int]) -> None:
        """Take what was averaged out of the displacement, for the blocks in ``included``; the rest keep theirs.

        Before ``Consensus.apply``: ``consensus`` still has the bases that the upload was made in.
        """

    def take_moments(self, published: Mapping[Slot, Grid]) -> None:
        """Go on with the averaged moments in ``published``, if there are any; before ``Consensus.apply``.

        For every peer, also one that the round did not include. They are written in the bases of before.
        """

    def rotate(self, refreshed: Mapping[int, tuple[Basis, Basis]]) -> None:
        """Carry what is written in core coordinates to the new bases; after ``Consensus.apply``."""

    def rebase(self, consensus: Consensus) -> None:
        """The consensus was replaced by a downloaded one: keep what still makes sense, drop the rest.

        An upload that was never settled counts as averaged: work lost once is better than work counted twice.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a restarted peer needs to go on as if it had not stopped, as flat CPU tensors."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Read ``state_dict`` back; ``begin`` must follow. Raises CheckpointError, before any change."""


def gradient_grid(slot: Slot, gradients: Mapping[int, tuple[Tensor, Tensor]]) -> Grid:
    """One side of what is sent of a gradient: it aims a basis and is never applied, so no residual is kept."""
    left, right = gradients[slot.block]
    return quantise_slot(left if slot.part in (Part.GRADIENT_LEFT, Part.ENERGY_LEFT) else right, slot)
