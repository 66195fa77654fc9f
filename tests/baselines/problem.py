"""A small problem with different peers, a slow Adam, and how to drive a method."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tests.optim.reference import AdamOptions, reference_adam_direction
from tsr_swarm.baselines.method import ExchangeBytes, Method
from tsr_swarm.baselines.registry import make_method

SHAPES: Mapping[str, tuple[int, ...]] = {
    "embed_tokens.weight": (12, 6),
    "a.weight": (8, 6),
    "b.weight": (8, 6),
    "c.weight": (6, 10),
    "norm.weight": (6,),
}


class Pull:
    """Gradients towards a target, with a noise that is fixed by peer and step. ``calls`` lists who asked, and when."""

    def __init__(self, seed: int = 0, shapes: Mapping[str, tuple[int, ...]] = SHAPES, noise: float = 0.3) -> None:
        self.shapes, self.seed, self.noise = shapes, seed, noise
        self.start = self._drawn(-1, -1)
        self.target = self._drawn(-2, -1)
        self.calls: list[tuple[int, int]] = []

    def __call__(self, peer: int, step: int, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.calls.append((peer, step))
        drawn = self._drawn(peer, step)
        return {name: weights[name] - self.target[name] + self.noise * drawn[name] for name in self.shapes}

    def loss(self, weights: Mapping[str, Tensor]) -> float:
        return sum(float((weights[name] - self.target[name]).square().sum()) for name in self.shapes) / 2

    def _drawn(self, peer: int, step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + 1009 * (peer + 7) + step + 3)
        return {name: torch.randn(shape, generator=generator) for name, shape in self.shapes.items()}


class SlowAdam:
    """AdamW of one matrix in float64."""

    def __init__(self, settings: Mapping[str, object], like: Tensor) -> None:
        self.options = AdamOptions(lr=0.0, betas=settings["betas"], eps=settings["eps"])
        self.decay = settings["weight_decay"]
        self.m = self.v = torch.zeros_like(like, dtype=torch.float64)
        self.t = 0

    def step(self, weight: Tensor, gradient: Tensor, lr: float) -> Tensor:
        self.t += 1
        direction, self.m, self.v = reference_adam_direction(gradient.double(), self.m, self.v, self.t, self.options)
        return weight - lr * (direction + self.decay * weight)


def play(
    method: Method, gradient: Pull, periods: int, lr: float = 0.05, work: Sequence[Mapping[int, int]] | None = None
) -> list[ExchangeBytes]:
    """Advance some periods, by default with everybody of three at full work; ``work`` has one entry a period."""
    full = dict.fromkeys(range(3), method.period)
    return [
        method.advance(i * method.period, [lr] * method.period, gradient, full if work is None else work[i])
        for i in range(periods)
    ]


def make(name: str, problem: Pull, peers: int = 3, **settings: object) -> Method:
    """A method of three peers (or ``peers``) at the start of a problem."""
    return make_method(name, problem.start, peers, settings)


def assert_close(one: Method, other: Method, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    for name, weight in one.weights.items():
        torch.testing.assert_close(weight, other.weights[name], rtol=rtol, atol=atol)
