"""Adam's direction (Kingma and Ba, arXiv 1412.6980, Algorithm 1), shared by cores, full-size blocks and TSRAdam."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.lowrank.sketch import rotate_moments
from tsr_swarm.optim.block_state import BlockState

Correction = float | Tensor  # 1 - beta**t; a tensor where stacked blocks have different t


class Adam:
    """The inner optimizer of cores, and of full-size blocks of any shape, with two moments."""

    moments = 2

    def __init__(self, betas: tuple[float, float], eps: float) -> None:
        self._betas, self._eps = betas, eps

    def direction(self, gradient: Tensor, first: Tensor, second: Tensor | None, steps: Sequence[int]) -> Tensor:
        """Return Adam's direction, bias-corrected by each block's own step count. See InnerOptimizer."""
        assert second is not None, "a state made for Adam has two moments"
        corrections = stacked_corrections(self._betas, steps, gradient.device)
        return adam_direction(gradient, first, second, corrections, self._betas, self._eps)

    def corrections(self, steps: int) -> tuple[float, float]:
        """Return those of both moments."""
        return bias_corrections(self._betas, steps)

    def rotate(self, state: BlockState, old: Basis, new: Basis) -> None:
        """Carry both moments to new bases, by LDAdam's rule."""
        assert state.second is not None, "a state made for Adam has two moments"
        beta1_t, beta2_t = (beta**state.steps for beta in self._betas)
        first, second = rotate_moments(state.first, state.second, old, new, beta1_t, beta2_t)
        state.first.copy_(first)
        state.second.copy_(second)


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
    """Return the same for a stack of blocks, ``(blocks, 1, 1)`` float32; plain numbers where all have the same t."""
    if len(set(steps)) == 1:
        return bias_corrections(betas, steps[0])
    # float64 until the difference is taken: 1 - 0.999 in float32 has lost four digits
    powers = torch.tensor([bias_corrections(betas, count) for count in steps], dtype=torch.float64, device="cpu")
    one, two = powers.to(torch.float32).to(device).view(-1, 2, 1, 1).unbind(1)
    return one, two


def core_update_scale(rows: int, cols: int, left_rank: int, right_rank: int) -> float:
    """Return sqrt(M N / P Q): entries of Adam's directions are near 1, so a core step is as long as a dense one."""
    return math.sqrt(rows * cols / (left_rank * right_rank))
