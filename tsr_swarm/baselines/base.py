"""The two skeletons of a method: exchange after some local steps, or exchange gradients at every step."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tsr_swarm.baselines.active_peers import ActivePeers, present_of, require_finite
from tsr_swarm.baselines.flat_parameters import flat_of
from tsr_swarm.baselines.inner_optimizer import Inner
from tsr_swarm.baselines.method import ExchangeBytes, Gradient


class LocalMethod(ABC):
    """Peers that take ``period`` steps on their own, exchange, and all go on from the new consensus.

    consensus: (P,). local: every peer's weights (N, P); between two calls each row is the consensus.
    inner: what a peer steps with.
    """

    inner: Inner

    def __init__(self, weights: Mapping[str, Tensor], peers: int, period: int) -> None:
        self.flat = flat_of(weights)
        self.period = period
        self.consensus = self.flat.vector(weights)
        self.local = self.consensus.repeat(peers, 1)
        self.weights: Mapping[str, Tensor] = self.flat.views(self.consensus)
        self._views = [self.flat.views(row) for row in self.local]

    @abstractmethod
    def exchange(self, present: ActivePeers, step: int) -> ExchangeBytes:
        """Change ``consensus``, in place, by what ``present`` did before the global ``step``."""

    def displacements(self, present: ActivePeers) -> Tensor:
        """Consensus minus own weights, of each present peer (len(present.peers), P)."""
        return self.consensus - self.local[present.rows]

    def advance(
        self, first_step: int, rates: Sequence[float], gradient: Gradient, work: Mapping[int, int]
    ) -> ExchangeBytes:
        """One period and one exchange: see Method."""
        present = present_of(work, len(self.local), rates, self.period)
        if not present.peers:
            return ExchangeBytes({}, {})
        for peer in present.peers:  # peer by peer, not step by step: its weights and moments stay in the cache
            weights = self._views[peer]
            for step, lr in enumerate(rates[: work[peer]]):
                self.inner.step(peer, weights, gradient(peer, first_step + step, weights), lr)
        require_finite(self.local, first_step + self.period)
        traffic = self.exchange(present, first_step + self.period)
        self.local.copy_(self.consensus)
        return traffic


class GradientMethod(ABC):
    """Peers that all hold the same weights and exchange something of their gradients at every step.

    consensus: (P,). gradients: (N, P), rows of absent peers hold nothing of use.
    """

    period = 1

    def __init__(self, weights: Mapping[str, Tensor], peers: int) -> None:
        self.flat = flat_of(weights)
        self.consensus = self.flat.vector(weights)
        self.gradients = torch.zeros(peers, self.flat.size)
        self.weights: Mapping[str, Tensor] = self.flat.views(self.consensus)
        self._views = [self.flat.views(row) for row in self.gradients]

    @abstractmethod
    def update(self, present: ActivePeers, lr: float) -> ExchangeBytes:
        """Exchange ``gradients`` of ``present`` and take one step of ``consensus``, in place."""

    def advance(
        self, first_step: int, rates: Sequence[float], gradient: Gradient, work: Mapping[int, int]
    ) -> ExchangeBytes:
        """One step: see Method."""
        present = present_of(work, len(self.gradients), rates, 1)
        if not present.peers:
            return ExchangeBytes({}, {})
        for peer in present.peers:
            given = gradient(peer, first_step, self.weights)
            for name, view in self._views[peer].items():
                view.copy_(given[name])
        require_finite(self.gradients[present.rows], first_step)
        return self.update(present, rates[0])
