"""Muon: steps along the nearest orthogonal matrix to the momentum (Keller Jordan et al. 2024, "Muon: an optimizer for
hidden layers in neural networks", kellerjordan.github.io/posts/muon).

With the length of Moonlight (Liu et al., arXiv 2502.16982, section 2.2): 0.2 sqrt(max(M, N)) times that matrix, whose
entries then have the root mean square 0.2 of a usual AdamW update, so that Adam's rates serve. Departures: everything
is float32 (theirs iterates in bfloat16), and in a core the matrix is the core itself.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.sketch import rotate_core
from tsr_swarm.optim.block_state import BlockState

MOMENTUM = 0.95
RMS = 0.2
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steep at zero: singular values end within about 0.7 to 1.2, not at 1
_TINY = 1e-30  # a zero matrix stays zero; its square would not be


class Muon:
    """The inner optimizer of matrices, with one moment."""

    moments = 1

    def direction(self, gradient: Tensor, first: Tensor, second: Tensor | None, steps: Sequence[int]) -> Tensor:
        """Update the momentum ``first`` by ``gradient`` (..., M, N), in place; return the direction to subtract."""
        return muon_direction(gradient, first)

    def corrections(self, steps: int) -> tuple[float]:
        """Return that of the momentum. Its length matters where it is averaged with those of other peers."""
        return (1 - MOMENTUM**steps,)

    def rotate(self, state: BlockState, old: Basis, new: Basis) -> None:
        """Carry the momentum of a core to new bases, without bias correction: its length does not matter."""
        state.first.copy_(rotate_core(state.first, old, new))


def muon_direction(gradient: Tensor, first: Tensor) -> Tensor:
    """Return 0.2 sqrt(max(M, N)) NewtonSchulz(Nesterov momentum), for (..., M, N); ``first`` is updated in place.

    The momentum is a mean, m = 0.95 m + 0.05 g; theirs is a sum, which is 20 times that: its scale does not matter.
    """
    first.lerp_(gradient, 1 - MOMENTUM)  # m = mu m + (1 - mu) g
    ahead = gradient.lerp(first, MOMENTUM)  # Nesterov: (1 - mu) g + mu m
    return newton_schulz(ahead).mul_(RMS * math.sqrt(max(gradient.shape[-2:])))


def newton_schulz(m: Tensor) -> Tensor:
    """Return about U V^T of m = U S V^T, for (..., M, N): X <- a X + (b A + c A^2) X with A = X X^T, from m / |m|_F.

    Singular values that are not far below the largest end within about 0.7 to 1.2; very small ones stay smaller.
    """
    a, b, c = COEFFICIENTS
    is_tall = m.shape[-2] > m.shape[-1]
    x = (m.mT if is_tall else m).reshape(-1, *sorted(m.shape[-2:]))  # A is then of the shorter side's size
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(_TINY)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b A + c A^2
        x = torch.baddbmm(x, polynomial, x, beta=a)
    x = x.mT if is_tall else x
    return x.reshape(m.shape)
