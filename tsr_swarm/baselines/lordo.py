"""LoRDO: moments of rank r, local steps with a full-rank share, and a projection from the mean displacement.

Jovanovic et al., arXiv 2602.04396 (global and local projection, full-rank quasi-hyperbolic update). For a matrix
W (p, q), p <= q (else its transpose), with basis Q (p, r):

    g = Q^T (G + E);  E <- G + E - Q g;  u, v: Adam's moments of g
    W <- W - lr [(1 - omega) G / (mu (sqrt(v) + eps)) + omega Q (u / (sqrt(v) + eps))]

every k_x steps the weights are averaged and Q <- the r leading directions of the mean displacement; u and v are
averaged every k_u and k_v steps, as in DES-LOC. Weights travel whole; Q is not sent, everybody has what it follows
from. Departures and readings, as the paper's text was not at hand but its equations were: v (r, q) divides the
full-rank G as the root of its mean over r, one number a column; moments are bias-corrected and turn with a new Q by
LDAdam's rule (arXiv 2410.16103, R = Q_new^T Q_old); the first Q of "global" is random. "local": each peer takes Q from
its own first gradient of a round, and keeps its low-rank moments, whose coordinates mean nothing to others. Embedding,
head, vectors and matrices with p <= r: dense AdamW, whose moments follow the same periods.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tsr_swarm.baselines.active_peers import ActivePeers
from tsr_swarm.baselines.base import LocalMethod
from tsr_swarm.baselines.des_loc import MomentPeriods
from tsr_swarm.baselines.flat_parameters import FLOAT_BYTES, FlatParameters, is_matrix
from tsr_swarm.baselines.inner_optimizer import StackedAdamW, numbers_of
from tsr_swarm.baselines.low_rank_adam import LowRankAdam
from tsr_swarm.baselines.method import ExchangeBytes, both_ways
from tsr_swarm.baselines.settings import rank_of


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRDOSettings(MomentPeriods):
    """The rank, and how much of a step is full-rank."""

    method: ClassVar[str] = "lordo"
    rank: int | str = "d/4"
    omega: float = 0.9  # weight of the low-rank term; 1: none of the full-rank one
    mu: float = 1.0  # divides the full-rank term
    projection: str = "global"  # global | local
    error_feedback: bool = True  # False: E stays zero

    def __post_init__(self) -> None:
        MomentPeriods.__post_init__(self)
        self.require_rank("rank")
        self.require_adam("LoRDO's low-rank moments are Adam's")
        self.require(0 <= self.omega <= 1, "omega", "0 to 1")
        self.require(0 < self.mu <= 1e6, "mu", "above 0, at most 1000000")
        self.require(self.projection in ("global", "local"), "projection", '"global" or "local"')


class LoRDOInner:
    """Low-rank steps for the matrices of layers, dense ones for the rest."""

    def __init__(self, flat: FlatParameters, peers: int, settings: LoRDOSettings) -> None:
        ranks = {n: rank_of(settings.rank, s) for n, s in flat.shapes.items() if is_matrix(n, s)}
        low = {n: r for n, r in ranks.items() if r < min(flat.shapes[n])}
        self.low_rank = LowRankAdam({n: flat.shapes[n] for n in low}, low, peers, settings)
        self.dense = StackedAdamW(
            FlatParameters({n: s for n, s in flat.shapes.items() if n not in low}), peers, settings
        )

    def step(self, peer: int, weights: Mapping[str, Tensor], gradient: Mapping[str, Tensor], lr: float) -> None:
        """One step of ``peer`` on ``weights``, in place."""
        self.low_rank.step(peer, weights, gradient, lr)
        self.dense.step(peer, weights, gradient, lr)


class LoRDO(LocalMethod):
    """Local low-rank AdamW with a shared or a private projection."""

    def __init__(self, weights: Mapping[str, Tensor], peers: int, settings: LoRDOSettings) -> None:
        super().__init__(weights, peers, settings.k_x)
        self.inner: LoRDOInner = LoRDOInner(self.flat, peers, settings)
        self._is_global = settings.projection == "global"
        self._k_u, self._k_v = settings.periods

    def exchange(self, present: ActivePeers, step: int) -> ExchangeBytes:
        """Average weights and what moments are due, in the old basis, and then aim the new one."""
        mean = present.mean(self.local[present.rows])
        displacement = self.flat.views(self.consensus - mean)
        self.consensus.copy_(mean)
        low, dense = self.inner.low_rank, self.inner.dense
        first, second = [dense.first], [dense.second]
        if self._is_global:
            first, second = [*low.first, *first], [*low.second, *second]
        numbers = {"weights": self.flat.size}
        for kind, states, period in (("first_moment", first, self._k_u), ("second_moment", second, self._k_v)):
            if step % period == 0:
                for state in states:
                    state[present.rows] = present.mean(state[present.rows])
                numbers[kind] = numbers_of(states)
        if self._is_global:
            low.aim_all(displacement)
        else:
            low.aim_at_next_gradient()
        return both_ways({kind: FLOAT_BYTES * count for kind, count in numbers.items()})
