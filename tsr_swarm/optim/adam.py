"""Adam's direction (Kingma and Ba, arXiv 1412.6980, Algorithm 1), shared by cores, full-size blocks and TSRAdam."""

import math

import torch
from torch import Tensor

Correction = float | Tensor  # 1 - beta**t; a tensor where stacked blocks have different t


def adam_direction(
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    corrections: tuple[Correction, Correction],
    betas: tuple[float, float],
    eps: float,
) -> Tensor:
    """Fold ``gradient`` into both moments, in place, and return the direction to subtract.

    All tensors have one shape, ``(..., rows, cols)``, and one dtype. ``corrections`` are 1 - beta1**t and 1 - beta2**t
    for the t that counts this step.
    """
    beta1, beta2 = betas
    first.lerp_(gradient, 1 - beta1)  # m = beta1 m + (1 - beta1) g
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)  # v = beta2 v + (1 - beta2) g^2
    # d = m_hat / (sqrt(v_hat) + eps)
    return (first / corrections[0]).div_((second / corrections[1]).sqrt_().add_(eps))


def bias_corrections(betas: tuple[float, float], steps: int) -> tuple[float, float]:
    """1 - beta**t for both moments after ``steps`` >= 1 steps."""
    return 1 - betas[0] ** steps, 1 - betas[1] ** steps


def stacked_corrections(
    betas: tuple[float, float], steps: list[int], device: torch.device
) -> tuple[Correction, Correction]:
    """The same for a stack of blocks, shape ``(blocks, 1, 1)`` float32; plain numbers where all have the same t."""
    if len(set(steps)) == 1:
        return bias_corrections(betas, steps[0])
    # float64 until the difference is taken: 1 - 0.999 in float32 has lost four digits
    powers = torch.tensor([bias_corrections(betas, count) for count in steps], dtype=torch.float64)
    one, two = powers.to(torch.float32).to(device).view(-1, 2, 1, 1).unbind(1)
    return one, two


def core_update_scale(rows: int, cols: int, rank: int) -> float:
    """sqrt(M N) / R: Adam's directions have entries near 1, so a core step is then as long as a dense Adam step."""
    return math.sqrt(rows * cols) / rank
