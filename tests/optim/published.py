"""TSR-Adam as its authors' code has it, for one process: a slow reference that tests and a bench hold TSRAdam against.

The rule is that of TSRProjector (proj_type "full") and AdamW in the code published with arXiv 2602.08007: a refresh
takes a cold Gaussian test matrix of R + 5 columns and one power iteration, moments are carried over unchanged, eps is
added to sqrt(v) before the bias correction, and weights decay after the step.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

OVERSAMPLING, POWER_ITERATIONS = 5, 1


class PublishedTSRAdam(Optimizer):
    """Matrices with both sides above ``rank`` are low rank. ``scale`` 0 takes sqrt(M N) / r, which is not theirs."""

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        rank: int,
        refresh_every: int,
        scale: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "rank": rank, "refresh_every": refresh_every, "scale": scale})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group, self.state[parameter])

    def _step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        rank, (beta1, beta2) = group["rank"], group["betas"]
        t, is_low_rank = state.get("step", 0), parameter.dim() == 2 and min(parameter.shape) > rank
        if is_low_rank:
            if t % group["refresh_every"] == 0:
                state["u"], state["v"] = self._bases(gradient, rank)
            gradient = state["u"].mT @ gradient @ state["v"]
        m = beta1 * state.get("m", torch.zeros_like(gradient)) + (1 - beta1) * gradient
        v = beta2 * state.get("v2", torch.zeros_like(gradient)) + (1 - beta2) * gradient**2
        state.update(step=t + 1, m=m, v2=v)
        move = m / (v.sqrt() + group["eps"]) * math.sqrt(1 - beta2 ** (t + 1)) / (1 - beta1 ** (t + 1))
        if is_low_rank:
            scale = group["scale"] or math.sqrt(parameter.numel()) / rank
            move = scale * state["u"] @ move @ state["v"].mT
        parameter.sub_(group["lr"] * move)
        parameter.sub_(group["lr"] * group["weight_decay"] * parameter)

    def _bases(self, g: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        omega = torch.randn(g.shape[1], rank + OVERSAMPLING, generator=self._generator, dtype=torch.float32).to(g)
        q = torch.linalg.qr(g @ omega).Q
        for _ in range(POWER_ITERATIONS):
            q = torch.linalg.qr(g @ torch.linalg.qr(g.mT @ q).Q).Q
        u, _, vh = torch.linalg.svd(q.mT @ g, full_matrices=False)
        return (q @ u)[:, :rank], vh[:rank].mT
