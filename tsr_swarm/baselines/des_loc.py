"""Local Adam, which averages weights and moments together, and DES-LOC, which does so at periods of their own.

Local Adam: Cheng and Glasgow, arXiv 2409.13155, Algorithm 1. All state is shared: a peer that was absent goes on from
the averaged moments, too. DES-LOC: Iacob et al., arXiv 2505.22549, Algorithm 1 (Adam form), with the identity as outer
step, which is the proven case. There a state is averaged before a local step t with t mod K = 0, here after step t - 1:
the same sequence. A peer that was absent keeps its own moments until their next average. Both can send few ``bits``:
weights then travel as displacements, see channel.py, and moments as bfloat16. Departures of both: Adam's bias
correction and eps outside of the root, decoupled weight decay, a mean weighted by steps.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tsr_swarm.baselines.channel import MeanChannel, require_width
from tsr_swarm.baselines.inner_optimizer import StackedOptimizer, numbers_of
from tsr_swarm.baselines.method import ActivePeers, ExchangeBytes, LocalMethod, Settings, averaged_floats
from tsr_swarm.optim.periods import moment_periods

AUTO = "auto"
MOMENT_BITS = 16  # at least: an integer grid of few bits would take most second moments for zero


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalAdamSettings(Settings):
    """The settings of Local Adam: the optimizer, the period, and the bits of a weight on the wire."""

    method: ClassVar[str] = "local-adam"
    later: ClassVar[tuple[str, ...]] = ("bits",)
    bits: int = 32

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        require_width(self)


class LocalAdam(LocalMethod):
    """Local AdamW or Muon, all state averaged."""

    def __init__(self, weights: Mapping[str, Tensor], peers: int, settings: LocalAdamSettings) -> None:
        super().__init__(weights, peers, settings.k_x)
        self.inner: StackedOptimizer = StackedOptimizer(self.flat, peers, settings)
        self.channel = MeanChannel(self.flat, peers, settings.bits)
        self._moment_bits = max(settings.bits, MOMENT_BITS)

    def exchange(self, active: ActivePeers, step: int) -> ExchangeBytes:
        """Replace each state by its mean."""
        displacement, up, down = self.channel.mean(self.displacements(active), active)
        self.consensus.sub_(displacement)
        for state in (*self.inner.first, *self.inner.second):
            state.copy_(active.mean_of_floats(state[active.rows], self._moment_bits))
        self.inner.share_counts()
        numbers = {"first_moment": numbers_of(self.inner.first), "second_moment": numbers_of(self.inner.second)}
        return weights_and_moments(up, down, numbers, self._moment_bits)


def weights_and_moments(up: float, down: float, moments: Mapping[str, int], bits: int) -> ExchangeBytes:
    """Return the bytes of weights, ``up`` and ``down``, and of averages of so many moments of ``bits`` by kind."""
    floats = averaged_floats(moments, bits=bits)
    return ExchangeBytes({"weights": up, **floats.sent}, {"weights": down, **floats.received})


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentPeriods(Settings):
    """Periods K_u of first and K_v of second moments, and the bits of a weight on the wire.

    A period is in steps, a multiple of k_x; or "3x", three times k_x; or "auto", the half-life of its moment. The
    paper's main runs have "3x" and "6x".
    """

    later: ClassVar[tuple[str, ...]] = ("bits",)
    k_u: int | str = AUTO
    k_v: int | str = AUTO
    bits: int = 32

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        require_width(self)
        for key in ("k_u", "k_v"):
            steps = _in_steps(getattr(self, key), self.k_x)
            is_legal = steps == AUTO or (isinstance(steps, int) and steps > 0 and steps % self.k_x == 0)
            self.require(is_legal, key, f'a multiple of k_x = {self.k_x}, in steps or as in "3x", or "auto"')

    @property
    def periods(self) -> tuple[int, int]:
        """Return K_u and K_v in steps."""
        k_u, k_v = (_in_steps(period, self.k_x) for period in (self.k_u, self.k_v))
        return moment_periods(k_u, k_v, self.k_x, self.inner, self.betas)


def _in_steps(period: int | str, k_x: int) -> int | str:
    """Return a multiple such as "3x" in steps, anything else as it is."""
    found = re.fullmatch(r"([1-9]\d{0,5})x", period) if isinstance(period, str) else None
    return int(found[1]) * k_x if found else period


@dataclass(frozen=True, slots=True, kw_only=True)
class DesLocSettings(MomentPeriods):
    """The settings of DES-LOC: the optimizer and the periods."""

    method: ClassVar[str] = "des-loc"


class DesLoc(LocalMethod):
    """Desynchronised local AdamW or Muon."""

    def __init__(self, weights: Mapping[str, Tensor], peers: int, settings: DesLocSettings) -> None:
        super().__init__(weights, peers, settings.k_x)
        self.inner: StackedOptimizer = StackedOptimizer(self.flat, peers, settings)
        self.channel = MeanChannel(self.flat, peers, settings.bits)
        self._periods = settings.periods
        self._moment_bits = max(settings.bits, MOMENT_BITS)

    def exchange(self, active: ActivePeers, step: int) -> ExchangeBytes:
        """Average the weights, and the moments that are due after ``step`` steps."""
        displacement, up, down = self.channel.mean(self.displacements(active), active)
        self.consensus.sub_(displacement)
        moments = self.inner.first, self.inner.second
        numbers = average_moments(active, step, self._periods, moments, self._moment_bits)
        return weights_and_moments(up, down, numbers, self._moment_bits)


def average_moments(
    active: ActivePeers,
    step: int,
    periods: tuple[int, int],
    moments: tuple[Sequence[Tensor], Sequence[Tensor]],
    bits: int,
) -> dict[str, int]:
    """Average what of first and second ``moments`` (N, numbers) is due after ``step`` steps, in place, as floats.

    Returns how many numbers of each are sent.
    """
    numbers = {}
    for kind, states, period in zip(("first_moment", "second_moment"), moments, periods, strict=True):
        if step % period == 0:
            for state in states:
                state[active.rows] = active.mean_of_floats(state[active.rows], bits)
            numbers[kind] = numbers_of(states)
    return numbers
