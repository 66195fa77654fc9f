"""The optimizer of a peer's own steps: AdamW, or Muon for the matrices of layers. States of all peers in stacks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from tsr_swarm.baselines.method import FlatParameters, Settings, is_matrix
from tsr_swarm.optim.inner_optimizer import muon_direction


class StackedAdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2) with torch's fused kernel, one pass over memory.

    first, second: moments of all peers (N, P). Each peer counts its own steps, for the bias correction.
    """

    def __init__(self, flat: FlatParameters, peers: int, settings: Settings) -> None:
        self.flat = flat
        self.first, self.second = torch.zeros(peers, flat.size), torch.zeros(peers, flat.size)
        self.counts = torch.zeros(peers, len(flat.shapes))  # the kernel wants one a tensor; all of a row are equal
        self._settings = settings
        self._names = list(flat.shapes)
        rows = zip(self.first, self.second, self.counts, strict=True)
        self._states = [[*(list(flat.views(x).values()) for x in (m, v)), list(t.unbind())] for m, v, t in rows]

    def step(self, peer: int, weights: Mapping[str, Tensor], gradient: Mapping[str, Tensor], lr: float) -> None:
        if not self._names:
            return
        first, second, counts = self._states[peer]
        adamw(
            [weights[name] for name in self._names],
            [gradient[name].contiguous() for name in self._names],
            first,
            second,
            [],
            counts,
            fused=True,
            amsgrad=False,
            beta1=self._settings.betas[0],
            beta2=self._settings.betas[1],
            lr=lr,
            weight_decay=self._settings.weight_decay,
            eps=self._settings.eps,
            maximize=False,
        )


class StackedMuon:
    """Muon with decoupled weight decay (Liu et al., arXiv 2502.16982, section 2.2); matrices of a shape are a stack.

    first: the momenta of all peers, one (N, numbers) a shape.
    """

    def __init__(self, flat: FlatParameters, peers: int, settings: Settings) -> None:
        self._weight_decay = settings.weight_decay
        self._names: dict[tuple[int, ...], list[str]] = {}
        for name, shape in flat.shapes.items():
            self._names.setdefault(shape, []).append(name)
        self._momenta = {shape: torch.zeros(peers, len(names), *shape) for shape, names in self._names.items()}
        self.first = [momentum.view(peers, -1) for momentum in self._momenta.values()]

    def step(self, peer: int, weights: Mapping[str, Tensor], gradient: Mapping[str, Tensor], lr: float) -> None:
        for shape, names in self._names.items():
            stacked = torch.stack([gradient[name] for name in names])
            directions = muon_direction(stacked, self._momenta[shape][peer])
            for name, direction in zip(names, directions, strict=True):
                weights[name].mul_(1 - lr * self._weight_decay).sub_(direction, alpha=lr)


class StackedOptimizer:
    """What ``settings.inner`` names, for all parameters: Muon leaves embedding, head and vectors to AdamW.

    first, second: moments of all peers, stacks (N, numbers) that together cover every parameter. Muon has no second.
    """

    def __init__(self, flat: FlatParameters, peers: int, settings: Settings) -> None:
        by_muon = {n: s for n, s in flat.shapes.items() if settings.inner == "muon" and is_matrix(n, s)}
        self._muon = StackedMuon(FlatParameters(by_muon), peers, settings)
        self._adam = StackedAdamW(
            FlatParameters({n: s for n, s in flat.shapes.items() if n not in by_muon}), peers, settings
        )
        self.first = [self._adam.first, *self._muon.first]
        self.second = [self._adam.second]

    def step(self, peer: int, weights: Mapping[str, Tensor], gradient: Mapping[str, Tensor], lr: float) -> None:
        self._adam.step(peer, weights, gradient, lr)
        self._muon.step(peer, weights, gradient, lr)

    def share_counts(self) -> None:
        """Give every peer the step count of the one that has taken most, for moments that all have in common."""
        self._adam.counts.copy_(self._adam.counts.amax(dim=0))


def numbers_of(states: Sequence[Tensor]) -> int:
    """Return how many numbers a peer holds in stacks (N, numbers)."""
    return sum(state.shape[1] for state in states)
