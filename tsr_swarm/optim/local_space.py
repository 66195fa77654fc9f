"""Two interfaces: what a peer moves between two exchanges (LocalSpace), and how it steps (InnerOptimizer).

A round, in order: ``begin``, many ``step``, ``upload``; when the round is committed ``settle`` and ``take_moments``,
then ``Consensus.apply``, then ``rotate``, and ``begin`` again. Steps taken between ``upload`` and ``settle`` are kept.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from tsr_swarm.config.layout import Slot
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.config.run import OptimizerConfig, WireConfig
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.grid import Grid
from tsr_swarm.lowrank.sketch import Captured
from tsr_swarm.optim.adam import Adam
from tsr_swarm.optim.block_state import BlockState
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.muon import Muon


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

        Empty where the leader does not use it.
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
        """Replace moments by those in ``published``, if there are any; before ``Consensus.apply``.

        Every peer does so, also one that the round did not include. They are in the old bases.
        """

    def rotate(self, refreshed: Mapping[int, tuple[Basis, Basis]]) -> None:
        """Carry all that is in core coordinates to the new bases; after ``Consensus.apply``."""

    def rebase(self, consensus: Consensus) -> None:
        """Keep what is still valid after the consensus was replaced by a downloaded one.

        An upload that was never settled counts as averaged: work lost once is better than work counted twice.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that a restarted peer needs to continue, as flat CPU tensors."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Read ``state_dict`` back; ``begin`` must follow. Raises CheckpointError, before any change."""


class InnerOptimizer(Protocol):
    """Turns gradients into steps. It has settings only: its moments are in a block's state."""

    @property
    def moments(self) -> int:
        """The number of moments: 1, or 2 with a second one."""

    def direction(self, gradient: Tensor, first: Tensor, second: Tensor | None, steps: Sequence[int]) -> Tensor:
        """Update the moments by ``gradient``, in place; return what, times the rate, is to be subtracted.

        All tensors are float32 of one shape: one block (any shape), or a stack of blocks (B, R, R). ``steps`` counts
        each block's steps, this one included. The root mean square of a direction's entries is that of a usual Adam
        step, 1 or some tenths, whatever the size of the gradient.
        """

    def corrections(self, steps: int) -> tuple[float, ...]:
        """Return 1 - beta**steps of each moment; divided by it a moment is a mean of gradients or their squares."""

    def rotate(self, state: BlockState, old: Basis, new: Basis) -> None:
        """Carry the moments of a core from ``old`` to ``new`` bases, in place."""


def inner_optimizer(optimizer: OptimizerConfig, is_matrix: bool) -> InnerOptimizer:
    """Make the one that ``optimizer.inner`` names, for matrices and cores; anything else takes Adam's steps."""
    return Muon() if is_matrix and optimizer.inner == "muon" else Adam(optimizer.betas, optimizer.eps)
