"""TSR-Adam: Adam in r x r cores of the gradient, exchanged at every step, in bases that follow the gradient.

Dang et al., arXiv 2602.08007, Algorithm 1. ``refresh = "published"`` is the algorithm as printed: each peer's own
randomized SVD with one power iteration, of which the factors are averaged, and moments that stay as they are.
``"linear"`` averages only what is linear in the gradient, Y = G V_old and then B = Q^T G with Q = orth(Y), and turns
the moments (see tsr_swarm/optim/tsr_adam_refresh.py). Its core needs no message in that step: it follows from B's SVD.
Departures: moments are float32, the head is low-rank as the embedding is, bytes count everything, as float32.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tsr_swarm.baselines.inner_optimizer import StackedAdamW
from tsr_swarm.baselines.method import (
    ActivePeers,
    ExchangeBytes,
    FlatParameters,
    GradientMethod,
    Settings,
    averaged_floats,
    is_embedding,
    rank_of,
)
from tsr_swarm.lowrank.basis import random_basis
from tsr_swarm.lowrank.sketch import core_of, rotate_moments
from tsr_swarm.optim.core_stack import subtract_lifted
from tsr_swarm.optim.inner_optimizer import adam_direction, bias_corrections
from tsr_swarm.optim.tsr_adam_refresh import aim


@dataclass(frozen=True, slots=True, kw_only=True)
class TSRAdamSettings(Settings):
    """Ranks and refresh periods. Published: d/2 to d/4, embedding d/8, k_r 100 (embedding 2), scale 0.5 to 0.75."""

    method: ClassVar[str] = "tsr-adam-paper"
    k_x: int = 1
    rank: int | str = "d/2"
    embedding_rank: int | str = "d/4"
    k_r: int = 100  # steps between two refreshes
    k_r_embedding: int = 100
    oversampling: int = 5  # p of the published refresh
    scale: float = 0.75  # of low-rank steps; 0: sqrt(rows * cols) / rank, as long as dense ones
    refresh: str = "published"  # published | linear

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        self.require_every_step()
        self.require_adam("TSR-Adam's moments are Adam's")
        self.require_rank("rank")
        self.require_rank("embedding_rank")
        self.require(self.k_r >= 1, "k_r", "1 or more")
        self.require(self.k_r_embedding >= 1, "k_r_embedding", "1 or more")
        self.require(self.oversampling >= 0, "oversampling", "0 or more")
        self.require(0 <= self.scale <= 1e4, "scale", "0 (automatic) to 10000")
        self.require(self.refresh in ("published", "linear"), "refresh", '"published" or "linear"')


class TSRAdamMethod(GradientMethod):
    """Matrices, embedding and head in cores, where the rank is below both sides; the rest is dense AdamW."""

    def __init__(self, weights: Mapping[str, Tensor], peers: int, settings: TSRAdamSettings) -> None:
        super().__init__(weights, peers)
        self._settings = settings
        matrices = {name: shape for name, shape in self.flat.shapes.items() if len(shape) == 2}
        low = {name: shape for name, shape in matrices.items() if _rank(name, shape, settings) < min(shape)}
        self.cores = {name: _Core(name, shape, settings) for name, shape in low.items()}
        dense = FlatParameters({name: shape for name, shape in self.flat.shapes.items() if name not in low})
        self._dense, self._inner = dense.size, StackedAdamW(dense, 1, settings)
        self._count = 0

    def update(self, active: ActivePeers, lr: float) -> ExchangeBytes:
        """Refresh what is due, then W <- W - lr (scale U D V^T + weight_decay W)."""
        stack = self.gradients[active.rows]
        own, means = self.flat.views(stack), self.flat.views(active.mean(stack))
        numbers = {"core": 0, "sketch": 0, "dense": self._dense}
        for name, core in self.cores.items():
            is_due = self._count % core.period == 0
            if is_due:
                core.refresh(own[name], means[name], active.shares, self._count)
                numbers["sketch"] += core.sketch_numbers
            if not (is_due and core.is_linear):
                numbers["core"] += core.numbers
            core.step(self.weights[name], means[name], lr, self._count + 1)
        self._inner.step(0, self.weights, means, lr)
        self._count += 1
        return averaged_floats(numbers, 2 if numbers["sketch"] else 1)


def _rank(name: str, shape: tuple[int, ...], settings: TSRAdamSettings) -> int:
    return rank_of(settings.embedding_rank if is_embedding(name) else settings.rank, shape)


class _Core:
    """Bases U (M, R), V (N, R) and moments (R, R) of one matrix: shared by all peers."""

    def __init__(self, name: str, shape: tuple[int, ...], settings: TSRAdamSettings) -> None:
        rows, cols = shape
        rank = _rank(name, shape, settings)
        self.period = settings.k_r_embedding if is_embedding(name) else settings.k_r
        self.is_linear = settings.refresh == "linear"
        self.numbers = rank * rank
        width = rank if self.is_linear else min(rank + settings.oversampling, rows, cols)
        self.sketch_numbers = (rows + cols) * width
        self.first, self.second = torch.zeros(rank, rank), torch.zeros(rank, rank)
        self.left, self.right = torch.zeros(rows, rank), torch.zeros(cols, rank)
        self._rank, self._width, self._settings = rank, width, settings
        self._scale = settings.scale or math.sqrt(rows * cols) / rank
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little")
        self.generator = torch.Generator().manual_seed(seed)  # shared: test matrices are not sent
        self.basis = random_basis(rows, cols, rank, seed, 0) if self.is_linear else None

    def step(self, weight: Tensor, gradient: Tensor, lr: float, count: int) -> None:
        """Take one step of ``weight`` (M, N), in place, along the core of the mean ``gradient``; ``count`` from 1."""
        settings = self._settings
        corrections = bias_corrections(settings.betas, count)
        core = core_of(gradient, self.left, self.right)
        move = adam_direction(core, self.first, self.second, corrections, settings.betas, settings.eps)
        weight.mul_(1 - lr * settings.weight_decay)
        subtract_lifted([weight], move[None] * (lr * self._scale), self.left[None], self.right[None])

    def refresh(self, own: Tensor, mean: Tensor, shares: Tensor, count: int) -> None:
        """Take new bases from every peer's gradient ``own`` (peers, M, N) and their ``mean``, after ``count`` steps."""
        if self.basis is None:
            omega = torch.randn(mean.shape[1], self._width, generator=self.generator)
            self.left, self.right = published_refresh(own, shares, omega, self._rank)
            return
        old, self.basis = self.basis, aim(mean, self.basis)
        powers = (beta**count for beta in self._settings.betas)
        self.first, self.second = rotate_moments(self.first, self.second, old, self.basis, *powers)
        self.left, self.right = self.basis.left_float(), self.basis.right_float()


def published_refresh(own: Tensor, shares: Tensor, omega: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return U (M, R) and V (N, R) of Algorithm 1 from gradients (peers, M, N), weights (peers,) and Omega (N, R + p).

    U is not orthonormal where the peers' gradients differ: that is the algorithm as printed.
    """
    q = torch.linalg.qr(own @ omega).Q  # Q_i = orth(G_i Omega)
    q = torch.linalg.qr(own @ torch.linalg.qr(own.mT @ q).Q).Q  # one power iteration
    b = q.mT @ own  # B_i = Q_i^T G_i
    mean_q, mean_b = (torch.einsum("p,pij->ij", shares, x) for x in (q, b))  # all that is exchanged
    left, _, right = torch.linalg.svd(mean_b, full_matrices=False)
    return mean_q @ left[:, :rank], right[:rank].mT.contiguous()
