"""The seam between where a peer moves, a core or a whole block, and how: what turns its gradients into steps."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from tsr_swarm.config.run import OptimizerConfig
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.optim.adam import Adam
from tsr_swarm.optim.block_state import BlockState
from tsr_swarm.optim.muon import Muon


class InnerOptimizer(Protocol):
    """Holds settings only: what it remembers of a block is in that block's state."""

    @property
    def moments(self) -> int:
        """How many moments it keeps: 1, or 2 with a second one."""

    def direction(self, gradient: Tensor, first: Tensor, second: Tensor | None, steps: Sequence[int]) -> Tensor:
        """Fold ``gradient`` into the moments, in place; return what, times the rate, is to be subtracted.

        All tensors are float32 of one shape: one block (any shape), or a stack of blocks (B, R, R). ``steps`` counts
        each block's steps, this one included. The root mean square of a direction's entries is that of a usual Adam
        step, 1 or some tenths, whatever the size of the gradient.
        """

    def corrections(self, steps: int) -> tuple[float, ...]:
        """1 - beta**steps of each moment: a moment divided by it is a mean of gradients, or of their squares."""

    def rotate(self, state: BlockState, old: Basis, new: Basis) -> None:
        """Carry the moments of a core from ``old`` to ``new`` bases, in place."""


def inner_optimizer(optimizer: OptimizerConfig, is_matrix: bool) -> InnerOptimizer:
    """The one that ``optimizer.inner`` names for matrices and cores; anything else takes Adam's steps."""
    return Muon() if is_matrix and optimizer.inner == "muon" else Adam(optimizer.betas, optimizer.eps)
