"""How a block steps: Adam and Muon, for cores and for blocks of full size.

Adam: Kingma and Ba, arXiv 1412.6980, Algorithm 1. Muon steps along the nearest orthogonal matrix to the momentum:
Keller Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks",
kellerjordan.github.io/posts/muon, with the length of Moonlight (Liu et al., arXiv 2502.16982, section 2.2):
0.2 sqrt(max(M, N)) times that matrix, whose entries then have the root mean square 0.2 of a usual AdamW update, so that
Adam's rates serve. Departures of Muon: everything is float32 (theirs iterates in bfloat16), and in a core the matrix is
the core itself.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from tsr_swarm.config.run import OptimizerConfig
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.sketch import rotate_core, rotate_moments
from tsr_swarm.optim.block_state import BlockState

Correction = float | Tensor  # 1 - beta**t; a tensor where stacked blocks have different t

MOMENTUM = 0.95
RMS = 0.2
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steep at zero: singular values end within about 0.7 to 1.2, not at 1
_TINY = 1e-30  # a zero matrix stays zero; its square would not be


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
    """Make the one that ``optimizer.inner`` names, for matrices and cores; anything else takes Adam's steps.

    LoRDO's moments are Adam's; its step, which is not one of a single tensor, is in lordo.py.
    """
    return Muon() if is_matrix and optimizer.inner == "muon" else Adam(optimizer.betas, optimizer.eps)


class Adam:
    """The inner optimizer of cores, and of full-size blocks of any shape, with two moments."""

    moments = 2

    def __init__(self, betas: tuple[float, float], eps: float) -> None:
        self._betas, self._eps = betas, eps

    def direction(self, gradient: Tensor, first: Tensor, second: Tensor | None, steps: Sequence[int]) -> Tensor:
        assert second is not None, "a state made for Adam has two moments"
        corrections = stacked_corrections(self._betas, steps, gradient.device)
        return adam_direction(gradient, first, second, corrections, self._betas, self._eps)

    def corrections(self, steps: int) -> tuple[float, float]:
        return bias_corrections(self._betas, steps)

    def rotate(self, state: BlockState, old: Basis, new: Basis) -> None:
        """Carry both moments to new bases, by LDAdam's rule."""
        assert state.second is not None, "a state made for Adam has two moments"
        beta1_t, beta2_t = (beta**state.steps for beta in self._betas)
        first, second = rotate_moments(state.first, state.second, old, new, beta1_t, beta2_t)
        state.first.copy_(first)
        state.second.copy_(second)


class Muon:
    """The inner optimizer of matrices, with one moment."""

    moments = 1

    def direction(self, gradient: Tensor, first: Tensor, second: Tensor | None, steps: Sequence[int]) -> Tensor:
        return muon_direction(gradient, first)

    def corrections(self, steps: int) -> tuple[float]:
        """Return 1 - beta**steps of the momentum. Its length matters where it is averaged with those of other peers."""
        return (1 - MOMENTUM**steps,)

    def rotate(self, state: BlockState, old: Basis, new: Basis) -> None:
        """Carry the momentum of a core to new bases, without bias correction: its length does not matter."""
        state.first.copy_(rotate_core(state.first, old, new))


def adam_direction(
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    corrections: tuple[Correction, Correction],
    betas: tuple[float, float],
    eps: float,
) -> Tensor:
    """Update both moments by ``gradient``, in place, and return the direction to subtract.

    All tensors have one shape, ``(..., rows, cols)``, and one dtype. ``corrections`` are 1 - beta1**t and 1 - beta2**t
    for the t that counts this step.
    """
    beta1, beta2 = betas
    first.lerp_(gradient, 1 - beta1)  # m = beta1 m + (1 - beta1) g
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)  # v = beta2 v + (1 - beta2) g^2
    # d = m_hat / (sqrt(v_hat) + eps)
    return (first / corrections[0]).div_((second / corrections[1]).sqrt_().add_(eps))


def bias_corrections(betas: tuple[float, float], steps: int) -> tuple[float, float]:
    """Return 1 - beta**t of both moments after t = ``steps`` steps."""
    return 1 - betas[0] ** steps, 1 - betas[1] ** steps


def stacked_corrections(
    betas: tuple[float, float], steps: Sequence[int], device: torch.device
) -> tuple[Correction, Correction]:
    """Return them for a stack of blocks, ``(blocks, 1, 1)`` float32, or as plain numbers where all have the same t."""
    if len(set(steps)) == 1:
        return bias_corrections(betas, steps[0])
    # float64 until the difference is taken: 1 - 0.999 in float32 has lost four digits
    powers = torch.tensor([bias_corrections(betas, count) for count in steps], dtype=torch.float64, device="cpu")
    one, two = powers.to(torch.float32).to(device).view(-1, 2, 1, 1).unbind(1)
    return one, two


def core_update_scale(rows: int, cols: int, left_rank: int, right_rank: int) -> float:
    """Return sqrt(M N / P Q): entries of Adam's directions are near 1, so a core step is as long as a dense one."""
    return math.sqrt(rows * cols / (left_rank * right_rank))


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
