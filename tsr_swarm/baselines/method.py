"""What a method to compare with is: its settings, gradients in, consensus weights and wire bytes out.

All parameters of a model lie in one vector, so that an exchange is a few operations on all of them at once. Two
skeletons: LocalMethod exchanges after some local steps, GradientMethod exchanges gradients at every step.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from tsr_swarm.config.blocks import parse_rank
from tsr_swarm.config.coerce import ConfigSection
from tsr_swarm.errors import RunError


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(ConfigSection):
    """The settings that all methods share: the inner optimizer and the period. Each method has a class of its own."""

    method: ClassVar[str] = ""
    later: ClassVar[tuple[str, ...]] = ()  # settings that were added: at their defaults no part of a run's name
    inner: str = "adam"  # adam | muon; muon for the matrices of layers, adam for everything else
    betas: tuple[float, float] = (0.9, 0.99)  # adam's
    eps: float = 1e-8  # adam's
    weight_decay: float = 0.0  # decoupled
    k_x: int = 20  # local steps between two exchanges of weights

    @classmethod
    def full_key(cls, key: str) -> str:
        """A key as messages write it, such as ``diloco.k_x``."""
        return f"{cls.method}.{key}"

    def check(self) -> None:
        self.require(self.inner in ("adam", "muon"), "inner", '"adam" or "muon"')
        self.require(all(0 <= beta < 1 for beta in self.betas), "betas", "two numbers, each from 0 to below 1")
        self.require(0 < self.eps < 1, "eps", "between 0 and 1")
        self.require(0 <= self.weight_decay <= 1, "weight_decay", "0 to 1")
        self.require(1 <= self.k_x <= 10**6, "k_x", "1 to 1000000")

    def require_rank(self, key: str) -> None:
        """Raise a ConfigError unless the key is a rank: a number, or a share such as "d/2"."""
        value = getattr(self, key)
        is_rank = value >= 1 if isinstance(value, int) else re.fullmatch(r"d(/[1-9]\d*)?", value) is not None
        self.require(is_rank, key, 'a number of at least 1, or a share of a matrix\' shorter side such as "d/2"')

    def require_every_step(self) -> None:
        """Raise a ConfigError unless the period is 1, the only one of this method."""
        self.require(self.k_x == 1, "k_x", "1: this method exchanges at every step")

    def require_adam(self, why: str) -> None:
        """Raise a ConfigError unless the inner optimizer is Adam."""
        self.require(self.inner == "adam", "inner", f'"adam": {why}')


def rank_of(rank: int | str, shape: tuple[int, ...]) -> int:
    """Return the rank of a matrix; d of ``"d/2"`` is the matrix' shorter side."""
    return parse_rank("rank", rank, min(shape))


class Gradient(Protocol):
    """The source of gradients. It keeps the losses, too."""

    def __call__(self, peer: int, step: int, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Gradient of ``peer``'s batch of the global ``step`` at ``weights``, clipped, float32, by parameter name."""


@dataclass(frozen=True, slots=True)
class ExchangeBytes:
    """Wire bytes of one peer in one exchange, mean over the peers that took part, by payload kind."""

    sent: Mapping[str, float]
    received: Mapping[str, float]
    round_trips: int = 1  # sequential network round trips of the exchange


def averaged_floats(numbers: Mapping[str, int], round_trips: int = 1, bits: int = 32) -> ExchangeBytes:
    """Return the bytes of an average of floats of ``bits``, ``numbers`` by kind, by all-reduce or by a reducer.

    A peer uploads its payload and downloads the mean, of the same size. Kinds without numbers are left out.
    """
    payloads = {kind: bits // 8 * count for kind, count in numbers.items() if count}
    return ExchangeBytes(payloads, payloads, round_trips)


def as_floats(numbers: Tensor, bits: int) -> Tensor:
    """Return float32 ``numbers`` as they arrive: as they are, or, of 16 ``bits``, rounded to bfloat16."""
    return numbers if bits == 32 else numbers.to(torch.bfloat16).to(torch.float32)


class FlatParameters:
    """Where each parameter lies in a vector of ``size`` numbers (P), in the order of ``shapes``."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self.size = sum(math.prod(shape) for shape in self.shapes.values())

    def parts(self, vectors: Tensor) -> Iterator[Tensor]:
        """Yield each parameter's numbers in ``vectors`` (..., P), as a view (..., numbers)."""
        start = 0
        for shape in self.shapes.values():
            count = math.prod(shape)
            yield vectors[..., start : start + count]
            start += count

    def views(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return each parameter's numbers in ``vectors`` (..., P), as a view (..., *its shape), by name."""
        named = zip(self.shapes.items(), self.parts(vectors), strict=True)
        return {name: part.view(*part.shape[:-1], *shape) for (name, shape), part in named}

    def vector(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return a new vector (P,), float32, of a tensor for every parameter."""
        return torch.cat([tensors[name].detach().reshape(-1).to(torch.float32) for name in self.shapes])


def is_embedding(name: str) -> bool:
    """Return whether a parameter is an embedding or the head, by the names of transformers."""
    return name.endswith(("embed_tokens.weight", "lm_head.weight"))


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a parameter is a matrix of a layer: two-dimensional, and neither embedding nor head."""
    return len(shape) == 2 and not is_embedding(name)


@dataclass(frozen=True, slots=True, eq=False)
class ActivePeers:
    """The peers that take part in an exchange, in order, and their weights in a mean."""

    peers: tuple[int, ...]
    rows: slice | list[int]  # of a stack (N, ...): a slice where all are there, so that indexing is a view
    shares: Tensor  # (len(peers),) float32: each one's weight in a mean; they sum to 1

    def mean(self, vectors: Tensor) -> Tensor:
        """Return the weighted mean (P,) of one vector for each of ``peers``, (len(peers), P)."""
        return self.shares @ vectors

    def mean_of_floats(self, vectors: Tensor, bits: int) -> Tensor:
        """Return the mean of ``vectors`` that travel as floats of 32 or 16 bits, as which it comes back."""
        return as_floats(self.mean(as_floats(vectors, bits)), bits)


def active_peers(work: Mapping[int, int], peers: int, rates: Sequence[float], period: int) -> ActivePeers:
    """Return those of ``peers`` that took steps, weighted by how many, as our own reduction weights by tokens."""
    if len(rates) != period or any(not 0 <= peer < peers or not 0 <= work[peer] <= period for peer in work):
        raise ValueError(f"{len(rates)} rates and the work {dict(work)} do not fit {peers} peers and {period} steps.")
    took = {peer: work[peer] for peer in sorted(work) if work[peer]}
    shares = torch.tensor(list(took.values()), dtype=torch.float64)
    rows = slice(None) if len(took) == peers else list(took)
    return ActivePeers(tuple(took), rows, (shares / shares.sum()).to(torch.float32))


def require_finite(vectors: Tensor, step: int) -> None:
    """Raise RunError if training has diverged before ``step``."""
    if not math.isfinite(float(vectors.sum())):
        raise RunError(f"Weights or gradients are not finite at step {step}: training diverged; lower the rate.")


class ErrorFeedback:
    """What N senders drop and send later: residuals (N, P), with sent + new residual = decay * old residual + vector.

    Seide et al. 2014; Karimireddy et al., arXiv 1901.09847.
    """

    def __init__(self, senders: int, size: int, decay: float) -> None:
        self.residual = torch.zeros(senders, size)
        self._decay = decay

    def pending(self, vectors: Tensor, rows: slice | list[int]) -> Tensor:
        """Return decay * residual + vectors, (len(rows), P): what the senders ``rows`` have to send."""
        return torch.add(vectors, self.residual[rows], alpha=self._decay)

    def keep(self, dropped: Tensor, rows: slice | list[int]) -> None:
        """Set the residuals of ``rows`` to what was not sent. Others keep theirs."""
        self.residual[rows] = dropped


class PeerOptimizer(Protocol):
    """The inner optimizers of all peers. Weights and gradients come by name; it may step only some of them."""

    def step(self, peer: int, weights: Mapping[str, Tensor], gradient: Mapping[str, Tensor], lr: float) -> None:
        """Take one step of ``peer`` on ``weights``, in place."""


class Method(ABC):
    """Simulated peers that train by one rule. Deterministic: the same calls, the same bits.

    consensus: (P,), which is evaluated. weights: views of it by parameter name; the next ``advance`` changes them.
    """

    period = 1  # local steps between two exchanges

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.flat = FlatParameters({name: tuple(weight.shape) for name, weight in weights.items()})
        self.consensus = self.flat.vector(weights)
        self.weights: Mapping[str, Tensor] = self.flat.views(self.consensus)

    @abstractmethod
    def advance(
        self, first_step: int, rates: Sequence[float], gradient: Gradient, work: Mapping[int, int]
    ) -> ExchangeBytes:
        """Train ``period`` steps from the global ``first_step``, one of ``rates`` each, and exchange.

        ``work``: by peer, from 0, how many of the steps it manages: the first ones. A peer that is not in it, or
        manages none, is absent: it returns later with the consensus weights and its old private state. A peer's weight
        in a mean is the number of its steps. Without active peers nothing happens and nothing is sent. Raises RunError
        when training has diverged.
        """


class LocalMethod(Method):
    """Peers that take ``period`` steps on their own, exchange, and all go on from the new consensus.

    local: every peer's weights (N, P); between two calls each row is the consensus.
    """

    inner: PeerOptimizer

    def __init__(self, weights: Mapping[str, Tensor], peers: int, period: int) -> None:
        super().__init__(weights)
        self.period = period
        self.local = self.consensus.repeat(peers, 1)
        self._views = [self.flat.views(row) for row in self.local]

    @abstractmethod
    def exchange(self, active: ActivePeers, step: int) -> ExchangeBytes:
        """Change ``consensus``, in place, by what ``active`` did before the global ``step``."""

    def displacements(self, active: ActivePeers) -> Tensor:
        """Return consensus minus own weights of each active peer, (len(active.peers), P)."""
        return self.consensus - self.local[active.rows]

    def advance(
        self, first_step: int, rates: Sequence[float], gradient: Gradient, work: Mapping[int, int]
    ) -> ExchangeBytes:
        active = active_peers(work, len(self.local), rates, self.period)
        if not active.peers:
            return ExchangeBytes({}, {})
        for peer in active.peers:  # peer by peer, not step by step: its weights and moments stay in the cache
            weights = self._views[peer]
            for step, lr in enumerate(rates[: work[peer]]):
                self.inner.step(peer, weights, gradient(peer, first_step + step, weights), lr)
        require_finite(self.local, first_step + self.period)
        traffic = self.exchange(active, first_step + self.period)
        self.local.copy_(self.consensus)
        return traffic


class GradientMethod(Method):
    """Peers that all hold the same weights and exchange something of their gradients at every step.

    gradients: (N, P), rows of absent peers are stale.
    """

    def __init__(self, weights: Mapping[str, Tensor], peers: int) -> None:
        super().__init__(weights)
        self.gradients = torch.zeros(peers, self.flat.size)
        self._views = [self.flat.views(row) for row in self.gradients]

    @abstractmethod
    def update(self, active: ActivePeers, lr: float) -> ExchangeBytes:
        """Exchange ``gradients`` of ``active`` and take one step of ``consensus``, in place."""

    def advance(
        self, first_step: int, rates: Sequence[float], gradient: Gradient, work: Mapping[int, int]
    ) -> ExchangeBytes:
        active = active_peers(work, len(self.gradients), rates, 1)
        if not active.peers:
            return ExchangeBytes({}, {})
        for peer in active.peers:
            given = gradient(peer, first_step, self.weights)
            for name, view in self._views[peer].items():
                view.copy_(given[name])
        require_finite(self.gradients[active.rows], first_step)
        return self.update(active, rates[0])
