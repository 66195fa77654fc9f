"""The two skeletons of a method: exchange after some local steps, or exchange gradients at every step."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tsr_swarm.errors import RunError


class Gradient(Protocol):
    """Where gradients come from. It keeps the losses, too."""

    def __call__(self, peer: int, step: int, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Gradient of ``peer``'s batch of the global ``step`` at ``weights``, clipped, float32, by parameter name."""
        ...


@dataclass(frozen=True, slots=True)
class ExchangeBytes:
    """Wire bytes of one peer in one exchange, mean over the peers that took part, by payload kind."""

    sent: Mapping[str, float]
    received: Mapping[str, float]
    round_trips: int = 1  # sequential network round trips of the exchange


def both_ways(payloads: Mapping[str, float], round_trips: int = 1) -> ExchangeBytes:
    """An average by all-reduce or by a reducer: a peer uploads its payload and downloads the mean, of the same size.

    Kinds without bytes are left out.
    """
    payloads = {kind: size for kind, size in payloads.items() if size}
    return ExchangeBytes(payloads, payloads, round_trips)


class Method(Protocol):
    """Simulated peers that train by one rule. Deterministic: the same calls, the same bits."""

    @property
    def period(self) -> int:
        """Local steps between two exchanges; 1 for a method that exchanges at every step."""
        ...

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The consensus, which is evaluated, by parameter name. Views: the next ``advance`` changes them."""
        ...

    def advance(
        self, first_step: int, rates: Sequence[float], gradient: Gradient, work: Mapping[int, int]
    ) -> ExchangeBytes:
        """Train ``period`` steps from the global ``first_step``, one of ``rates`` each, and exchange.

        ``work`` says by peer, from 0, how many of the steps it manages: the first ones. Who is not in it, or manages
        none, is absent: it returns later with the consensus weights and with what private state it had. A peer's
        weight in a mean is the steps it took. With nobody there nothing happens and nothing is sent.
        Raises RunError when training has diverged.
        """
        ...


class FlatParameters:
    """Where each parameter lies in a vector of ``size`` numbers (P), in the order of ``shapes``."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self.size = sum(math.prod(shape) for shape in self.shapes.values())

    def parts(self, vectors: Tensor) -> Iterator[Tensor]:
        """Each parameter's numbers in ``vectors`` (..., P), as a view (..., numbers)."""
        start = 0
        for shape in self.shapes.values():
            count = math.prod(shape)
            yield vectors[..., start : start + count]
            start += count

    def views(self, vectors: Tensor) -> dict[str, Tensor]:
        """Each parameter's numbers in ``vectors`` (..., P), as a view (..., *its shape), by name."""
        named = zip(self.shapes.items(), self.parts(vectors), strict=True)
        return {name: part.view(*part.shape[:-1], *shape) for (name, shape), part in named}

    def vector(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A new vector (P,), float32, of a tensor for every parameter."""
        return torch.cat([tensors[name].detach().reshape(-1).to(torch.float32) for name in self.shapes])


def flat_of(weights: Mapping[str, Tensor]) -> FlatParameters:
    """The layout of a model's weights."""
    return FlatParameters({name: tuple(weight.shape) for name, weight in weights.items()})


def is_embedding(name: str) -> bool:
    """Whether a parameter is an embedding or the head, by the names of transformers."""
    return name.endswith(("embed_tokens.weight", "lm_head.weight"))


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is a matrix of a layer: two-dimensional, and neither embedding nor head."""
    return len(shape) == 2 and not is_embedding(name)


@dataclass(frozen=True, slots=True, eq=False)
class ActivePeers:
    """The peers of an exchange, in order."""

    peers: tuple[int, ...]
    rows: slice | list[int]  # of a stack (N, ...): a slice where all are there, so that indexing is a view
    shares: Tensor  # (len(peers),) float32: each one's weight in a mean; they sum to 1

    def mean(self, vectors: Tensor) -> Tensor:
        """The weighted mean (P,) of one vector for each of ``peers``, (len(peers), P)."""
        return self.shares @ vectors


def present_of(work: Mapping[int, int], peers: int, rates: Sequence[float], period: int) -> ActivePeers:
    """Who of ``peers`` took steps, weighted by how many, as our own reduction weights by tokens."""
    if len(rates) != period or any(not 0 <= peer < peers or not 0 <= work[peer] <= period for peer in work):
        raise ValueError(f"{len(rates)} rates and the work {dict(work)} do not fit {peers} peers and {period} steps.")
    took = {peer: work[peer] for peer in sorted(work) if work[peer]}
    shares = torch.tensor(list(took.values()), dtype=torch.float64)
    everybody = len(took) == peers
    return ActivePeers(tuple(took), slice(None) if everybody else list(took), (shares / shares.sum()).to(torch.float32))


def require_finite(vectors: Tensor, step: int) -> None:
    """Raise RunError if training has diverged before ``step``."""
    if not math.isfinite(float(vectors.sum())):
        raise RunError(f"Weights or gradients are not finite at step {step}: training diverged; lower the rate.")


class ErrorFeedback:
    """The residuals (N, P) of N senders. Kept in each: sent + new residual = decay * old residual + vector."""

    def __init__(self, senders: int, size: int, decay: float) -> None:
        self.residual = torch.zeros(senders, size)
        self._decay = decay

    def pending(self, vectors: Tensor, rows: slice | list[int]) -> Tensor:
        """decay * residual + vectors, (len(rows), P): what the senders ``rows`` would like to send."""
        return torch.add(vectors, self.residual[rows], alpha=self._decay)

    def keep(self, dropped: Tensor, rows: slice | list[int]) -> None:
        """Set the residuals of ``rows`` to what was not sent. Others keep theirs."""
        self.residual[rows] = dropped


class Inner(Protocol):
    """One optimizer for every peer. Weights and gradients come by parameter name; it may hold only some of them."""

    def step(self, peer: int, weights: Mapping[str, Tensor], gradient: Mapping[str, Tensor], lr: float) -> None:
        """One step of ``peer`` on ``weights``, in place."""
        ...


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


FLOAT_BYTES = 4  # of a number that is sent as it is
