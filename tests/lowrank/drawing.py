"""Matrices to quantise."""

import torch
from hypothesis import strategies as st
from torch import Tensor

shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))
seeds = st.integers(0, 2**31)


def draw_matrix(shape: tuple[int, int], seed: int, spread: int = 0) -> Tensor:
    """Normal numbers whose rows differ in size by up to 2**spread."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.randint(-spread, spread + 1, (shape[0], 1), generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 2.0**scale
