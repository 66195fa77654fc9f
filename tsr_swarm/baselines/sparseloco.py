"""SparseLoCo: the largest entries of each chunk of a displacement, in two bits, with error feedback.

Sarfi et al., arXiv 2508.15706, Algorithm 1: m <- beta m + displacement; send Q(top-k(m)); m <- m - sent; the consensus
moves by the mean with outer rate 1 and no outer momentum. Chunks of 4096, top 64, beta 0.95.
Departures, in its favour or without effect: two bits are a sign and one of two magnitudes, which are the means of
the chunk's kept magnitudes below and above their mean (its code shares four levels in a whole tensor); a chunk is 4096
consecutive numbers of a tensor, not 64 x 64, and a tensor's last chunk is shorter; the positions in a chunk are one
number of the enumerative code (see positions.py), 7.4 bits an entry where the paper counts 12. ``average = "senders"``
divides each entry by the weight of the peers that sent it, as the first released code did (CCLoco), where the paper
divides by all. Payloads cannot be summed, so each peer downloads those of all others.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tsr_swarm.baselines.inner_optimizer import StackedOptimizer
from tsr_swarm.baselines.method import ActivePeers, ErrorFeedback, ExchangeBytes, FlatParameters, LocalMethod, Settings
from tsr_swarm.baselines.positions import code_bits

SCALE_BITS = 2 * 32  # two float32 magnitudes a chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseLoCoSettings(Settings):
    """What is kept of a displacement, and how it is averaged."""

    method: ClassVar[str] = "sparseloco"
    density: float = 1 / 64  # share of entries that is sent
    decay: float = 0.95  # of the residual
    chunk: int = 4096
    value_bits: int = 2  # 2, or 32 for float32 as it is
    outer_lr: float = 1.0
    average: str = "all"  # all | senders

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        self.require(0 < self.density <= 1, "density", "above 0, at most 1")
        self.require(0 <= self.decay <= 1, "decay", "0 to 1")
        self.require(2 <= self.chunk <= 2**24, "chunk", "2 to 16777216")
        self.require(self.value_bits in (2, 32), "value_bits", "2 or 32")
        self.require(0 < self.outer_lr <= 10, "outer_lr", "above 0, at most 10")
        self.require(self.average in ("all", "senders"), "average", '"all" or "senders"')


class SparseLoCo(LocalMethod):
    """Local AdamW or Muon with sparse averages."""

    def __init__(self, weights: Mapping[str, Tensor], peers: int, settings: SparseLoCoSettings) -> None:
        super().__init__(weights, peers, settings.k_x)
        self.inner: StackedOptimizer = StackedOptimizer(self.flat, peers, settings)
        self.feedback = ErrorFeedback(peers, self.flat.size, settings.decay)
        self._settings = settings
        self._payload = payload_bytes(self.flat, settings)

    def exchange(self, active: ActivePeers, step: int) -> ExchangeBytes:
        """Send sparse displacements to all peers, and apply their mean."""
        pending = self.feedback.pending(self.displacements(active), active.rows)
        sent = sparsify(self.flat, pending, self._settings)
        self.feedback.keep(pending.sub_(sent), active.rows)
        mean = active.mean(sent)
        if self._settings.average == "senders":
            mean /= active.mean((sent != 0).to(torch.float32)).clamp_min_(1e-12)
        self.consensus.sub_(mean, alpha=self._settings.outer_lr)
        others = len(active.peers) - 1
        return ExchangeBytes({"sparse": self._payload}, {"sparse": others * self._payload} if others else {})


def sparsify(flat: FlatParameters, vectors: Tensor, settings: SparseLoCoSettings) -> Tensor:
    """Return Q(top-k) of ``vectors`` (S, P), chunk by chunk: what arrives, (S, P), zero where nothing was sent."""
    sent = torch.zeros_like(vectors)
    for given, out in zip(flat.parts(vectors), flat.parts(sent), strict=True):
        for start, count, size in _chunks(given.shape[-1], settings.chunk):
            chunks, target = (x[:, start : start + count * size].view(-1, count, size) for x in (given, out))
            positions = chunks.abs().topk(_kept(settings.density, size), dim=-1, sorted=False).indices
            values = chunks.gather(-1, positions)
            target.scatter_(-1, positions, _two_bits(values) if settings.value_bits == 2 else values)
    return sent


def payload_bytes(flat: FlatParameters, settings: SparseLoCoSettings) -> float:
    """Return wire bytes of one peer's payload: positions, values and, for two bits, the magnitudes of each chunk."""
    bits = 0
    for part in flat.parts(torch.empty(flat.size, device="meta")):
        for _, count, size in _chunks(part.numel(), settings.chunk):
            kept = _kept(settings.density, size)
            scales = SCALE_BITS * (settings.value_bits == 2)
            bits += count * (code_bits(size, kept) + kept * settings.value_bits + scales)
    return float(-(-bits // 8))


def _chunks(numbers: int, chunk: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, count, size) of the whole chunks of a tensor, and of the shorter one at its end."""
    whole = numbers // chunk
    if whole:
        yield 0, whole, chunk
    if numbers % chunk:
        yield whole * chunk, 1, numbers % chunk


def _kept(density: float, size: int) -> int:
    return max(1, round(density * size))


def _two_bits(values: Tensor) -> Tensor:
    """Replace each value (..., kept) by its sign times the mean of the larger or smaller magnitudes of its chunk."""
    magnitudes = values.abs()
    is_large = magnitudes > magnitudes.mean(dim=-1, keepdim=True)
    large = _mean_where(magnitudes, is_large)
    small = _mean_where(magnitudes, ~is_large)
    return torch.where(is_large, large, small).mul_(values.sign())


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True).clamp_min(1)
