"""Who takes part in an exchange, and what its mean is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tsr_swarm.errors import RunError


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
